/*
 * Scenarios: small programs in one, each run in a process of its own. Natively
 * and in a session every one must print the same and end in the same way.
 * What it printed stands between "scenario NAME" and "end NAME HOW"; how much
 * of it rode goes to the file that the environment variable RIDES names.
 */
#ifndef SCENARIO_H
#define SCENARIO_H

#include "../session.h"

#include <sys/types.h>

/* What must be known about the ride for the scenario to count. */
enum riding {
	RIDES,		/* system calls were made in a ride */
	MAY_RIDE,	/* what matters happens elsewhere: in user mode, in other threads */
};

/*
 * A name that begins with '-' is a part that scenarios execute (become()): it
 * is run in the calling process and only when it is named.
 */
struct scenario {
	const char *name;
	void (*run)(void);
	enum riding riding;
};

/* Runs those that the arguments name, or all. */
int run_scenarios(int argc, char **argv, const struct scenario *scenarios, size_t count);

#define SCENARIO_MAIN(scenarios)                                               \
	int main(int argc, char **argv)                                        \
	{                                                                      \
		return run_scenarios(argc, argv, scenarios,                    \
				     sizeof(scenarios) / sizeof(scenarios[0])); \
	}

/* Calls that ride once they are warm, and a sequence that shows each of them. */
uint64_t ridden_steps(long count, uint64_t seed);
/* Until these ride, from one turn of the loop to the next as well. */
#define WARM_STEPS() WARM_UP_ALL(4, ridden_steps(4, 1))
/*
 * The same, until the flag is set: returns the count. For threads that ride along, which
 * ride once AWAIT_RIDES() says so.
 */
long ride_until(volatile int *stop);
/* The same for a thread; stop is such an int. */
void *ride_along(void *stop);

/* Writes `count` bytes and reads one: with none to read, it waits for one. */
long exchange(const int ends[2], char *byte, long count);

/* How many of so many calls without arguments give this result. */
long count_results(long call, int times, long result);
#define WARM_CALL(call) WARM_UP(count_results(call, 1, 0))

/* Keeps a thread, or the calling one (0), on that CPU. */
void pin(pid_t thread, int cpu);

/* Waits for the child; exit status, or 1000 + the signal that killed it. */
int end_of(pid_t child);

/* Executes this program again, as the part of that name; returns on errors only. */
void become(const char *part);

/* Prints "WHAT: ok" or what was wrong. */
void expect_equal(const char *what, long value, long expected);

/* Threads without an error to check. */
#include <pthread.h>
pthread_t start_thread(void *(*run)(void *), void *argument);
void *join_thread(pthread_t thread);

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

#endif

#include "scenario.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

#define LIMIT_SECONDS 60

uint64_t ridden_steps(long count, uint64_t seed)
{
	for (long i = 0; i < count; i++)
		seed = step(seed + call0(SYS_getuid));
	return seed;
}

long ride_until(volatile int *stop)
{
	long count = 0;

	while (!*stop) {
		call0(SYS_getuid);
		count++;
	}
	return count;
}

void *ride_along(void *stop)
{
	return (void *)ride_until(stop);
}

__attribute__((noinline)) long exchange(const int ends[2], char *byte, long count)
{
	if (call3(SYS_write, ends[1], (long)byte, count) != count)
		die("write");
	return call3(SYS_read, ends[0], (long)byte, 1);
}

long count_results(long call, int times, long result)
{
	long count = 0;

	for (int i = 0; i < times; i++)
		count += call0(call) == result;
	return count;
}

void pin(pid_t thread, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	MUST(sched_setaffinity(thread, sizeof(set), &set));
}

int end_of(pid_t child)
{
	int status;

	while (waitpid(child, &status, __WALL) < 0)
		if (errno != EINTR)
			die("waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

void expect_equal(const char *what, long value, long expected)
{
	if (value == expected)
		printf("%s: ok\n", what);
	else
		printf("%s: %ld, expected %ld FAILED\n", what, value, expected);
}

pthread_t start_thread(void *(*run)(void *), void *argument)
{
	pthread_t thread;

	errno = pthread_create(&thread, NULL, run, argument);
	if (errno)
		die("pthread_create");
	return thread;
}

void *join_thread(pthread_t thread)
{
	void *result;

	errno = pthread_join(thread, &result);
	if (errno)
		die("pthread_join");
	return result;
}

static bool is_named(const char *name, int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (!strcmp(name, argv[i]))
			return true;
	return argc < 2;
}

static pid_t start(const struct scenario *scenario)
{
	pid_t child;

	printf("scenario %s\n", scenario->name);
	fflush(stdout);
	child = MUST(fork());
	if (child)
		return child;
	/* What it leaves behind must not outlive it. */
	setpgid(0, 0);
	scenario->run();
	exit(0);
}

static void finish(const struct scenario *scenario, pid_t child)
{
	struct pollfd ended = { .fd = MUST(syscall(SYS_pidfd_open, child, 0)), .events = POLLIN };
	int limit = LIMIT_SECONDS * slowness();
	bool in_time = poll(&ended, 1, limit * 1000) == 1;
	int end;

	close(ended.fd);
	if (!in_time)
		kill(child, SIGKILL);
	end = end_of(child);
	kill(-child, SIGKILL);
	if (in_time)
		printf("end %s %s %d\n", scenario->name, end < 1000 ? "exit" : "signal", end % 1000);
	else
		printf("end %s FAILED after %d seconds\n", scenario->name, limit);
	fflush(stdout);
}

void become(const char *part)
{
	execl("/proc/self/exe", "scenario", part, NULL);
}

static void run_part(const char *name, const struct scenario *scenarios, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (!strcmp(name, scenarios[i].name))
			scenarios[i].run();
	exit(0);
}

int run_scenarios(int argc, char **argv, const struct scenario *scenarios, size_t count)
{
	const char *rides = getenv("RIDES");
	FILE *ridden;

	/* Scenarios are killed, and fork. */
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 2 && argv[1][0] == '-')
		run_part(argv[1], scenarios, count);
	ridden = rides ? fopen(rides, "we") : NULL;
	if (rides && !ridden)
		die(rides);
	session_count_warmed();
	for (size_t i = 0; i < count; i++) {
		const struct scenario *scenario = &scenarios[i];
		uint64_t before, warmed_before;

		if (scenario->name[0] == '-' || !is_named(scenario->name, argc, argv))
			continue;
		before = session_ridden();
		warmed_before = session_warmed();
		finish(scenario, start(scenario));
		if (ridden) {
			fprintf(ridden, "%s %lu %lu%s\n", scenario->name,
				(unsigned long)(session_ridden() - before),
				(unsigned long)(session_warmed() - warmed_before),
				scenario->riding == MAY_RIDE ? " may ride" : "");
			fflush(ridden);
		}
	}
	return 0;
}

/* Riders that are stopped, and killed while they compute. */
#include "scenario.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

static volatile int stop;

static void stopped_and_continued(void)
{
	pid_t child = MUST(fork());
	int status;

	if (child == 0)
		ride_until(&stop);
	AWAIT_RIDES(1000);
	for (int i = 0; i < 10; i++) {
		MUST(kill(child, SIGSTOP));
		MUST(waitpid(child, &status, WUNTRACED));
		if (!WIFSTOPPED(status))
			break;
		usleep(2000);
		MUST(kill(child, SIGCONT));
		MUST(waitpid(child, &status, WCONTINUED));
		usleep(5000);
	}
	MUST(kill(child, SIGKILL));
	expect_equal("end", end_of(child), 1000 + SIGKILL);
}

/*
 * One gap, as long as it takes. Its loop begins where the gap does, so that a ride finds code
 * to go on with when something has interrupted it: from another loop it goes to user mode.
 */
static __attribute__((noinline)) void spin_after_call(volatile long *turns, long limit)
{
	long result = SYS_getuid;

	asm volatile("	syscall\n"
		     "1:	incq (%[turns])\n"
		     "	cmpq %[limit], (%[turns])\n"
		     "	jl 1b\n"
		     : "+a"(result)
		     : [turns] "r"(turns), [limit] "r"(limit)
		     : "rcx", "r11", "memory", "cc");
}

/* Clock ticks for which the process has run. */
struct ticks {
	long user, system;
};

static struct ticks ticks_of(pid_t process)
{
	struct ticks ticks;
	char path[64], text[512] = "", *name_end;
	int file;

	snprintf(path, sizeof(path), "/proc/%d/stat", process);
	file = MUST(open(path, O_RDONLY));
	MUST(read(file, text, sizeof(text) - 1));
	close(file);
	name_end = strrchr(text, ')');
	if (!name_end || sscanf(name_end, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %ld %ld",
				&ticks.user, &ticks.system) != 2)
		die(path);
	return ticks;
}

/*
 * Whether who computes does so in a ride: that is system time. Natively nobody does, and
 * nobody looks. Shorter than what a ride that computes may take.
 */
static bool computes_in_ride(pid_t process)
{
	struct ticks before = ticks_of(process), after;

	usleep(30 * 1000);
	after = ticks_of(process);
	return after.system - before.system >= 2 && after.user - before.user <= 1;
}

/*
 * Ten times a second newer kernels have a task do something for its address space on the way
 * to user mode, for which a ride is left: when the endless loop begins, that has just been.
 */
static void spin_forever(volatile long *turns)
{
	volatile long few;
	double until;

	/* So many turns that it is interrupted also where that waits for a budget. */
	WARM_UP(({ few = 0; spin_after_call(&few, 20000); }));
	WARM_STEPS();
	usleep(110 * 1000);
	for (until = seconds() + 0.012; seconds() < until;)
		ridden_steps(20, 1);
	/* The first store to a page that is shared faults, which no ride survives either. */
	*turns = 0;
	spin_after_call(turns, LONG_MAX);
}

/* The program never calls again, and yet dies at once. */
static void killed_in_endless_loop(void)
{
	volatile long *turns = mmap(NULL, sizeof(*turns), PROT_READ | PROT_WRITE,
				    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int killed = 0, other_ends = 0;

	/* Now and then something else has ended the ride by then. */
	for (int i = 0; i < 15 && killed < 3; i++) {
		pid_t child;

		*turns = 0;
		child = MUST(fork());
		if (child == 0)
			spin_forever(turns);
		while (!*turns)
			usleep(1000);
		killed += !session_supervisor() || computes_in_ride(child);
		MUST(kill(child, SIGKILL));
		other_ends += end_of(child) != 1000 + SIGKILL;
	}
	expect_equal("killed in a ride", killed, 3);
	expect_equal("other ends", other_ends, 0);
}

static const struct scenario scenarios[] = {
	{ "stopped-and-continued", stopped_and_continued },
	{ "killed-in-endless-loop", killed_in_endless_loop },
};
SCENARIO_MAIN(scenarios)

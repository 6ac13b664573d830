/* Signals and interrupted calls in hot loops. One mode per argument. */
#include "session.h"

#include <poll.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>

static volatile sig_atomic_t ticks;

static void on_signal(int signal)
{
	(void)signal;
	ticks++;
}

static void handle(int signal, int flags)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = flags };

	MUST(sigaction(signal, &action, NULL));
}

static void set_timer(long microseconds, bool repeat)
{
	struct itimerval timer = { .it_value.tv_usec = microseconds };

	if (repeat)
		timer.it_interval = timer.it_value;
	MUST(setitimer(ITIMER_REAL, &timer, NULL));
}

static __attribute__((noinline)) int steps(uint64_t *x)
{
	for (int i = 0; i < 50; i++) {
		if (call0(SYS_getuid) != 0)
			die("getuid");
		*x = step(*x);
	}
	return 50;
}

/* 1000 signals a second while a loop rides: every iteration counts once. */
static void timer(void)
{
	uint64_t x = 1, again = 1;
	long count = 0;

	handle(SIGALRM, SA_RESTART);
	set_timer(1000, true);
	WARM_UP_ALL(50, count += steps(&x));
	for (ticks = 0; ticks < 200;)
		count += steps(&x);
	set_timer(0, false);
	for (long i = 0; i < count; i++)
		again = step(again);
	printf("timer: sequence %s, 200 ticks\n", x == again ? "intact" : "BROKEN");
}

/* Writes `count` bytes and reads one: with none to read, it waits for one. */
static __attribute__((noinline)) long exchange(const int ends[2], char *byte, long count)
{
	if (call3(SYS_write, ends[1], (long)byte, count) != count)
		die("write");
	return call3(SYS_read, ends[0], (long)byte, 1);
}

/* A read that is reached in a ride and that a signal interrupts. */
static void interrupted(int flags)
{
	int ends[2];
	char byte = 'x';
	pid_t child;
	long result;

	MUST(pipe(ends));
	handle(SIGALRM, flags);
	WARM_UP_ALL(2, exchange(ends, &byte, 1));
	child = MUST(fork());
	if (child == 0) {
		usleep(300 * 1000);
		byte = 'y';
		MUST(write(ends[1], &byte, 1));
		_exit(0);
	}
	set_timer(100 * 1000, false);
	result = exchange(ends, &byte, 0);
	printf("interrupted with flags %x: result %ld byte %c ticks %d\n", flags, result, byte,
	       (int)ticks);
	waitpid(child, NULL, 0);
}

static __attribute__((noinline)) long sleep_for(const struct timespec *first,
						const struct timespec *second)
{
	call4(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, (long)first, 0);
	/* Reached through the gap behind the first. */
	return call4(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, (long)second, 0);
}

/* A call that goes on with a restart block after STOP and CONT. */
static void stopped(int unused)
{
	struct timespec moment = { .tv_nsec = 1 }, while_stopped = { .tv_nsec = 400 * 1000 * 1000 };
	pid_t parent = getpid(), child;
	double start;
	long result;

	(void)unused;

	WARM_UP_ALL(2, sleep_for(&moment, &moment));
	child = MUST(fork());
	if (child == 0) {
		usleep(100 * 1000);
		kill(parent, SIGSTOP);
		usleep(100 * 1000);
		kill(parent, SIGCONT);
		_exit(0);
	}
	start = seconds();
	result = sleep_for(&moment, &while_stopped);
	printf("stopped: result %ld, %s\n", result,
	       seconds() - start < 0.39 ? "slept TOO SHORT" : "slept long enough");
	waitpid(child, NULL, 0);
}

static volatile sig_atomic_t spinning;

static void stop_spinning(int signal)
{
	(void)signal;
	spinning = 0;
}

static long spin_gaps(long count)
{
	long turns = 0;

	for (long i = 0; i < count; i++) {
		call0(SYS_getuid);
		do
			turns++;
		while (spinning);
	}
	return turns;
}

/* A gap that turns into an endless loop must stay stoppable and killable. */
static void endless(int signal)
{
	int ready[2], status;
	pid_t child;
	char byte = 0;

	MUST(pipe(ready));
	child = MUST(fork());
	if (child == 0) {
		struct sigaction action = { .sa_handler = stop_spinning };

		MUST(sigaction(SIGUSR1, &action, NULL));
		WARM_UP_ALL(100, spin_gaps(100));
		MUST(write(ready[1], &byte, 1));
		spinning = 1;
		spin_gaps(1);
		_exit(spin_gaps(10));
	}
	MUST(read(ready[0], &byte, 1));
	usleep(100 * 1000);
	MUST(kill(child, SIGSTOP));
	MUST(waitpid(child, &status, WUNTRACED));
	printf("endless: stopped %d by %d\n", WIFSTOPPED(status), WSTOPSIG(status));
	MUST(kill(child, SIGCONT));
	MUST(waitpid(child, &status, WCONTINUED));
	usleep(50 * 1000);
	MUST(kill(child, signal));
	MUST(waitpid(child, &status, 0));
	printf("endless: after signal %d: killed by %d, exit %d\n", signal, WTERMSIG(status),
	       WEXITSTATUS(status));
}

/*
 * More than once, because a ride may end for another reason just before the
 * call that matters. What the program prints is the same either way.
 */
static void repeat(void (*scenario)(int), int argument)
{
	for (int round = 0; round < 3; round++) {
		ticks = 0;
		scenario(argument);
	}
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	if (!strcmp(mode, "timer"))
		timer();
	else if (!strcmp(mode, "interrupted"))
		repeat(interrupted, 0);
	else if (!strcmp(mode, "restarted"))
		repeat(interrupted, SA_RESTART);
	else if (!strcmp(mode, "stopped"))
		repeat(stopped, 0);
	else if (!strcmp(mode, "endless")) {
		endless(SIGUSR1);
		endless(SIGTERM);
		endless(SIGKILL);
	} else
		return 2;
	return 0;
}

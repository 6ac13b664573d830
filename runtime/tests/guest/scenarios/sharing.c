/* The time of riders and the CPU that they share: what they use is theirs, and they give way. */
#include "scenario.h"

#include <sys/resource.h>

static volatile int stop;

static double used(int who)
{
	struct rusage use;

	MUST(getrusage(who, &use));
	return use.ru_utime.tv_sec + use.ru_stime.tv_sec +
	       (use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
}

static double clock_of(clockid_t clock)
{
	struct timespec now;

	MUST(clock_gettime(clock, &now));
	return now.tv_sec + now.tv_nsec * 1e-9;
}

/* A rider's time is charged to it, as user or as system time. */
static void time_adds_up(void)
{
	double start, rusage, process, thread;

	WARM_STEPS();
	start = seconds();
	rusage = used(RUSAGE_SELF);
	process = clock_of(CLOCK_PROCESS_CPUTIME_ID);
	thread = clock_of(CLOCK_THREAD_CPUTIME_ID);
	while (clock_of(CLOCK_THREAD_CPUTIME_ID) - thread < 0.5)
		ridden_steps(100, 1);
	thread = clock_of(CLOCK_THREAD_CPUTIME_ID) - thread;
	process = clock_of(CLOCK_PROCESS_CPUTIME_ID) - process;
	rusage = used(RUSAGE_SELF) - rusage;
	start = seconds() - start;
	expect_equal("process and thread agree", process >= thread - 0.02 && process < thread + 0.1, 1);
	expect_equal("rusage and clock agree", rusage > thread - 0.05 && rusage < thread + 0.1, 1);
	expect_equal("no more than elapsed", thread <= start + 0.02, 1);
}

static void time_of_threads_adds_up(void)
{
	pthread_t threads[2];
	double before, after, own;

	WARM_STEPS();
	for (int i = 0; i < 2; i++)
		threads[i] = start_thread(ride_along, (void *)&stop);
	AWAIT_RIDES(500);
	before = used(RUSAGE_SELF);
	own = used(RUSAGE_THREAD);
	while (used(RUSAGE_SELF) - before < 0.3)
		usleep(10 * 1000);
	stop = 1;
	for (int i = 0; i < 2; i++)
		join_thread(threads[i]);
	after = used(RUSAGE_SELF);
	own = used(RUSAGE_THREAD) - own;
	expect_equal("most of it is the threads'", own < (after - before) / 2, 1);
}

/* A rider that never sleeps does not keep others from its CPU. */
static void shared_cpu(void)
{
	pthread_t rider;

	WARM_STEPS();
	pin(0, 0);
	rider = start_thread(ride_along, (void *)&stop);
	AWAIT_RIDES(500);
	for (int i = 0; i < 200; i++)
		usleep(1000);
	stop = 1;
	expect_equal("rider went on", (long)join_thread(rider) > 0, 1);
}

static void yielding(void)
{
	pthread_t rider;

	WARM_STEPS();
	WARM_UP_ALL(4, count_results(SYS_sched_yield, 4, 0));
	pin(0, 0);
	rider = start_thread(ride_along, (void *)&stop);
	AWAIT_RIDES(500);
	expect_equal("yielded", count_results(SYS_sched_yield, 500, 0), 500);
	stop = 1;
	join_thread(rider);
}

static const struct scenario scenarios[] = {
	{ "time-adds-up", time_adds_up },
	{ "time-of-threads-adds-up", time_of_threads_adds_up },
	{ "shared-cpu", shared_cpu },
	{ "yielding", yielding },
};
SCENARIO_MAIN(scenarios)

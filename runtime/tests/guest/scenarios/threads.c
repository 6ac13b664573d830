/* Threads that share a translation cache: what they compute, how they wait, how they end. */
#include "scenario.h"

#include <signal.h>

#define THREADS 4

static volatile int stop;

static void *steps(void *seed)
{
	return (void *)ridden_steps(3000, (uint64_t)seed);
}

static void print_sums(pthread_t *threads, int count)
{
	for (int i = 0; i < count; i++)
		printf("thread %d: %lx\n", i, (unsigned long)join_thread(threads[i]));
}

/* Once while it becomes hot for all of them, and once when it is. */
static void shared_code(void)
{
	for (int hot = 0; hot < 2; hot++) {
		pthread_t threads[2 * THREADS];

		for (long i = 0; i < 2 * THREADS; i++)
			threads[i] = start_thread(steps, (void *)i);
		print_sums(threads, 2 * THREADS);
		if (!hot)
			WARM_STEPS();
	}
}

#define OWN_CODE(name, operation)                                              \
	static __attribute__((noinline)) uint64_t name##_loop(int count, uint64_t x) \
	{                                                                      \
		for (int i = 0; i < count; i++)                                \
			x = (operation) + call0(SYS_getuid);                   \
		return x;                                                      \
	}                                                                      \
	static void *name(void *seed)                                          \
	{                                                                      \
		return (void *)name##_loop(seed ? 3000 : 4, (uint64_t)seed);   \
	}
OWN_CODE(own_multiply, x * 6364136223846793005 + 1)
OWN_CODE(own_rotate, ((x << 7) | (x >> 57)) ^ 0x55)
OWN_CODE(own_add, x + 0x123456789)
OWN_CODE(own_step, step(x))

static void own_code(void)
{
	void *(*const codes[])(void *) = { own_multiply, own_rotate, own_add, own_step };

	for (int hot = 0; hot < 2; hot++) {
		pthread_t threads[COUNT_OF(codes)];

		for (size_t i = 0; i < COUNT_OF(codes); i++)
			threads[i] = start_thread(codes[i], (void *)(i + 1));
		print_sums(threads, COUNT_OF(codes));
		for (size_t i = 0; i < COUNT_OF(codes) && !hot; i++)
			WARM_UP_ALL(4, codes[i](NULL));
	}
}

static void *few_steps(void *seed)
{
	return (void *)ridden_steps(20, (uint64_t)seed);
}

static void short_lived(void)
{
	uint64_t sum = 0;

	WARM_STEPS();
	for (long i = 0; i < 100; i++) {
		pthread_t thread = start_thread(few_steps, (void *)i);

		sum += ridden_steps(20, i);
		sum = step(sum + (uint64_t)join_thread(thread));
	}
	printf("sum %lx\n", (unsigned long)sum);
}

/* Spins in a gap, without any call, until another thread stores. */
static volatile int spun, released, pause_us;

static __attribute__((noinline)) void spin_after_call(void)
{
	call0(SYS_getuid);
	while (released < spun)
		;
}

static void *release_spinner(void *unused)
{
	while (!stop) {
		released = spun;
		if (pause_us)
			usleep(pause_us);
	}
	return unused;
}

static void spinning(void)
{
	pthread_t other;

	other = start_thread(release_spinner, NULL);
	WARM_UP(({ spun++; spin_after_call(); }));
	WARM_STEPS();
	pause_us = 1000;
	for (int i = 0; i < 50; i++) {
		ridden_steps(20, 1);
		spun++;
		spin_after_call();
	}
	expect_equal("releases", released, spun);
	stop = 1;
	join_thread(other);
}

static __thread long private_count;

static __attribute__((noinline)) void count_to(int count)
{
	for (int i = 0; i < count; i++) {
		private_count += i;
		errno = call0(SYS_getuid);
	}
}

static void *count_privately(void *unused)
{
	(void)unused;
	WARM_UP_ALL(4, count_to(4));
	private_count = 0;
	count_to(2000);
	return (void *)private_count;
}

static void thread_local(void)
{
	pthread_t threads[THREADS];

	for (int i = 0; i < THREADS; i++)
		threads[i] = start_thread(count_privately, NULL);
	for (int i = 0; i < THREADS; i++)
		expect_equal("private count", (long)join_thread(threads[i]), 1999000);
}

static int ends[2];
static volatile int cleaned, ready;

static void clean_up(void *by)
{
	cleaned += (long)by;
}

/* A cancellation point that sleeps: glibc's own read. */
static __attribute__((noinline)) void read_behind_steps(void)
{
	char byte;

	ridden_steps(20, 1);
	MUST(read(ends[0], &byte, 1));
}

static void *read_forever(void *unused)
{
	pthread_cleanup_push(clean_up, (void *)1);
	WARM_UP_ALL(22, ({ MUST(write(ends[1], "x", 1)); read_behind_steps(); }));
	ready = 1;
	for (;;)
		read_behind_steps();
	pthread_cleanup_pop(0);
	return unused;
}

static void cancel_sleeper(void)
{
	pthread_t thread;

	MUST(pipe(ends));
	for (int i = 0; i < 3; i++) {
		ready = 0;
		thread = start_thread(read_forever, NULL);
		/* Finding out whether it rides can be cancelled as well. */
		while (!ready)
			usleep(1000);
		usleep(20 * 1000);
		pthread_cancel(thread);
		expect_equal("cancelled", join_thread(thread) == PTHREAD_CANCELED, 1);
	}
	expect_equal("cleaned", cleaned, 3);
}

static void *ride_cancelled(void *unused)
{
	pthread_cleanup_push(clean_up, (void *)1);
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
	ready = 1;
	ride_until(&stop);
	pthread_cleanup_pop(0);
	return unused;
}

static void cancel_rider(void)
{
	for (int i = 0; i < 5; i++) {
		pthread_t thread = start_thread(ride_cancelled, NULL);

		while (!ready)
			usleep(1000);
		ready = 0;
		AWAIT_RIDES(1000);
		pthread_cancel(thread);
		expect_equal("cancelled", join_thread(thread) == PTHREAD_CANCELED, 1);
	}
	expect_equal("cleaned", cleaned, 5);
}

static void *ride_until_allowed(void *unused)
{
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	pthread_cleanup_push(clean_up, (void *)1);
	ready = 1;
	ride_until(&stop);
	cleaned += 10;
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
	pthread_testcancel();
	pthread_cleanup_pop(0);
	return unused;
}

static void cancel_disabled(void)
{
	pthread_t thread = start_thread(ride_until_allowed, NULL);

	while (!ready)
		usleep(1000);
	AWAIT_RIDES(1000);
	pthread_cancel(thread);
	usleep(50 * 1000);
	expect_equal("cleaned while disabled", cleaned, 0);
	stop = 1;
	expect_equal("cancelled", join_thread(thread) == PTHREAD_CANCELED, 1);
	expect_equal("cleaned", cleaned, 11);
}

static const struct scenario scenarios[] = {
	{ "shared-code", shared_code },
	{ "own-code", own_code },
	{ "short-lived", short_lived },
	{ "spinning", spinning },
	{ "thread-local", thread_local },
	{ "cancel-sleeper", cancel_sleeper },
	{ "cancel-rider", cancel_rider },
	{ "cancel-disabled", cancel_disabled },
};
SCENARIO_MAIN(scenarios)

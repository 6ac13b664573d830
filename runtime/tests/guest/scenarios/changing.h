/*
 * Versions at a fixed address, for scenarios in which code changes: what was
 * run there is compared with what should have been.
 */
#ifndef CHANGING_H
#define CHANGING_H

#include "scenario.h"
#include "../versions.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#define CODE ((version_fn *)0x40000000)
#define AT ((char *)CODE)

static inline void map_file(int file, int flags)
{
	if (mmap(AT, PAGE, PROT_READ | PROT_EXEC, flags | MAP_FIXED, file, 0) != AT)
		die("mmap");
}

static inline void map_version(int version)
{
	int file = version_file(version);

	map_file(file, MAP_PRIVATE);
	close(file);
}

/* settle(), and from one turn of the version's loop to the next as well. */
static inline void settle_loop(version_fn *code, int version)
{
	WARM_UP_ALL(4, expect(code, version, 4));
	expect(code, version, 200);
}

static inline void report(void)
{
	expect_equal("stale", stale, 0);
}

static sigjmp_buf back;
static volatile sig_atomic_t faults;

static inline void on_fault(int signal)
{
	faults++;
	siglongjmp(back, signal);
}

/* Nothing there any more: the call must fault, as it would natively. */
static inline void expect_fault(int signal)
{
	struct sigaction action = { .sa_handler = on_fault };
	int got;

	MUST(sigaction(signal, &action, NULL));
	got = sigsetjmp(back, 1);
	if (!got)
		CODE(5);
	stale += got != signal;
}

static volatile int newest, done;

static inline void *follow(void *unused)
{
	long older = 0;

	(void)unused;
	while (!done) {
		int before = newest;
		long sum = CODE(5);

		older += sum < 5l * before || sum > 5l * (newest + 1);
	}
	return (void *)older;
}

/* Returns when they ride in version 1, which is the newest. */
static inline void start_followers(pthread_t *followers, int count)
{
	newest = 1;
	settle_loop(CODE, 1);
	for (int i = 0; i < count; i++)
		followers[i] = start_thread(follow, NULL);
	AWAIT_RIDES(500);
}

/*
 * When they ride again, also after the last change. Whoever waits for that after many
 * changes waits long: what is missed again and again is reported more and more seldom.
 */
static inline void stop_followers(pthread_t *followers, int count)
{
	AWAIT_RIDES(500);
	done = 1;
	for (int i = 0; i < count; i++)
		stale += (long)join_thread(followers[i]);
}

#endif

/*
 * What the guest programs share. Each program runs natively and in a session;
 * its output must be the same, so it prints nothing that depends on time,
 * process ids or how long it took to get hot.
 */
#ifndef GUEST_H
#define GUEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* A system call inside the program's own code, so that its gaps are too. */
static inline long call6(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 asm("r10") = d;
	register long r8 asm("r8") = e;
	register long r9 asm("r9") = f;
	long result;

	asm volatile("syscall"
		     : "=a"(result)
		     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return result;
}

static inline long call4(long number, long a, long b, long c, long d)
{
	register long r10 asm("r10") = d;
	long result;

	asm volatile("syscall"
		     : "=a"(result)
		     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
		     : "rcx", "r11", "memory");
	return result;
}

static inline long call3(long number, long a, long b, long c)
{
	return call4(number, a, b, c, 0);
}

static inline long call0(long number)
{
	return call3(number, 0, 0, 0);
}

static inline double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec * 1e-9;
}

/* How many times longer than on a stock kernel things may take on this one. */
static inline int slowness(void)
{
	const char *times = getenv("UB_LAB_SLOWNESS");

	return times ? atoi(times) : 1;
}

/* One step of a sequence that shows any lost or repeated iteration. */
static inline uint64_t step(uint64_t x)
{
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x + 0x9e3779b97f4a7c15;
}

static inline __attribute__((noreturn)) void die(const char *what)
{
	printf("FAILED %s: %s\n", what, strerror(errno));
	exit(99);
}

/* For what must not fail natively or ridden. */
#define MUST(expression)                                                       \
	({                                                                     \
		__typeof__(expression) must_result = (expression);             \
		if ((long)must_result == -1)                                   \
			die(#expression);                                      \
		must_result;                                                   \
	})

#endif

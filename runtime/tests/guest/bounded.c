/*
 * The program that keeps a CPU longest in a ride: as many repetitions as a
 * fragment may hold between two polls, in a loop. A thread of higher priority
 * prints by how much it was late at worst, in ns: woken by a timer's
 * interrupt, and by a softirq.
 */
#include "session.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>

#define WAKES 200
#define PERIOD_NS 1000000

static volatile bool over;
static unsigned char area[2048];

static __attribute__((noinline)) void worst(long turns)
{
	asm volatile(
		"1:\n"
		".rept 7\n"
		"	mov $1024, %%ecx\n"
		"	lea %1, %%rdi\n"
		"	rep stosb\n"
		".endr\n"
		".rept 300\n"
		"	inc %%rax\n"
		".endr\n"
		"	dec %0\n"
		"	jnz 1b\n"
		: "+r"(turns) : "m"(area) : "rax", "rcx", "rdi", "memory", "cc");
}

static void *work(void *unused)
{
	while (!over) {
		call0(SYS_getuid);
		worst(20);
	}
	return unused;
}

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ll + time.tv_nsec;
}

/* How late a thread is that an interrupt wakes. */
static int64_t late_by_interrupt(void)
{
	int64_t start = now(), worst = 0;

	for (int i = 1; i <= WAKES; i++) {
		int64_t wake = start + i * PERIOD_NS, late;
		struct timespec time = { wake / 1000000000, wake % 1000000000 };

		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
		late = now() - wake;
		if (late > worst)
			worst = late;
	}
	return worst;
}

/* Time between two ticks of the kernels that this runs on, which have HZ=250. */
#define TICK_NS 4000000

/*
 * Waits with a timer of the wheel, which a softirq runs at a tick. How much
 * further from its tick the latest wake-up was than the earliest.
 */
static int64_t late_by_softirq(void)
{
	int pair[2];
	struct timeval timeout = { .tv_usec = 7000 };
	int64_t before, took, offset = 0, earliest = 0, latest = 0;
	char byte;

	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	MUST(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)));
	recv(pair[0], &byte, 1, 0);
	before = now();
	for (int i = 0; i < WAKES / 2; i++) {
		recv(pair[0], &byte, 1, 0);
		took = now() - before;
		before += took;
		offset += (took + TICK_NS / 2) % TICK_NS - TICK_NS / 2;
		if (offset < earliest)
			earliest = offset;
		if (offset > latest)
			latest = offset;
	}
	return latest - earliest;
}

int main(void)
{
	struct sched_param urgent = { .sched_priority = 50 };
	pthread_t worker;
	uint64_t before;

	pthread_create(&worker, NULL, work, NULL);
	AWAIT_RIDES(3000);
	/* Only the ride is asked about, not what a supervisor does in the kernel. */
	if (session_supervisor())
		MUST(kill(session_supervisor(), SIGSTOP));
	MUST(sched_setscheduler(0, SCHED_FIFO, &urgent));
	/*
	 * Once without counting: pages are touched for the first time, and this
	 * code is translated, which delays it by what the kernel does for that.
	 */
	late_by_interrupt();
	late_by_softirq();
	sleep(1);
	before = session_ridden();
	printf("interrupt %ld\n", (long)late_by_interrupt());
	printf("softirq %ld\n", (long)late_by_softirq());
	printf("ridden %ld\n", (long)(session_ridden() - before));
	over = true;
	pthread_join(worker, NULL);
	if (session_supervisor())
		MUST(kill(session_supervisor(), SIGCONT));
	return 0;
}

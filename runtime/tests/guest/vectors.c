/*
 * Vector registers and restartable sequences across blocking calls and
 * migrations: every ymm register holds a pattern while the thread sleeps in a
 * read and somebody else uses the same registers on the same CPU.
 */
#include "session.h"
#include "patterns.h"

#include <pthread.h>
#include <sched.h>

static void pin(pid_t thread, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	MUST(sched_setaffinity(thread, sizeof(set), &set));
}

static int cpus;
static volatile int stop;
static int ping[2], pong[2];

/* Answers each byte, dirtying every vector register before and after. */
static void *answer(void *unused)
{
	static struct patterns mine, ignored;
	char byte;

	memset(&mine, 0xa5, sizeof(mine));
	while (read_with_patterns(ping[0], &byte, &mine, &ignored) == 1 && byte)
		MUST(write(pong[1], &byte, 1));
	return unused;
}

static __attribute__((noinline)) int ask_once(void)
{
	static struct patterns in, out;
	static uint64_t x = 1;
	char byte = 1;

	for (int i = 0; i < REGISTERS; i++)
		for (int j = 0; j < 4; j++)
			in.words[i][j] = x = step(x);
	call3(SYS_write, ping[1], (long)&byte, 1);
	if (read_with_patterns(pong[0], &byte, &in, &out) != 1)
		die("read");
	return memcmp(&in, &out, sizeof(in)) != 0;
}

static void keep_patterns(void)
{
	long lost = 0;
	char byte = 0;
	pthread_t other;

	MUST(pipe(ping));
	MUST(pipe(pong));
	pin(0, 0);	/* and so is the thread created from here */
	if (pthread_create(&other, NULL, answer, NULL))
		die("pthread_create");
	WARM_UP(lost += ask_once());
	for (int i = 0; i < 200; i++)
		lost += ask_once();
	MUST(write(ping[1], &byte, 1));
	pthread_join(other, NULL);
	printf("patterns: %ld lost\n", lost);
}

/* Moves the rider to and fro. */
static void *move(void *rider)
{
	for (int i = 0; !stop; i++) {
		pin((pid_t)(long)rider, i % cpus);
		usleep(500);
	}
	return NULL;
}

static __attribute__((noinline)) int tell_oneself(void)
{
	static struct patterns in, out;
	char byte = 1;

	memset(&in, 0x3c, sizeof(in));
	call3(SYS_write, ping[1], (long)&byte, 1);
	read_with_patterns(ping[0], &byte, &in, &out);
	return memcmp(&in, &out, sizeof(in)) != 0;
}

/*
 * The rider moves itself too, and glibc's sched_getcpu(), which reads the
 * number that restartable sequences keep, must know at once.
 */
static void migrate(void)
{
	long wrong_cpu = 0, lost = 0;
	pthread_t mover;
	cpu_set_t set;

	if (pthread_create(&mover, NULL, move, (void *)(long)gettid()))
		die("pthread_create");
	WARM_UP(lost += tell_oneself());
	for (int i = 0; i < 2000; i++)
		lost += tell_oneself();
	stop = 1;
	pthread_join(mover, NULL);
	for (int i = 0; i < 2000; i++) {
		int cpu = i % cpus;

		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		call0(SYS_getuid);
		call3(SYS_sched_setaffinity, 0, sizeof(set), (long)&set);
		wrong_cpu += sched_getcpu() != cpu;
	}
	printf("migration: %ld lost, %ld wrong CPU numbers\n", lost, wrong_cpu);
}

int main(void)
{
	cpus = sysconf(_SC_NPROCESSORS_ONLN);
	keep_patterns();
	migrate();
	return 0;
}

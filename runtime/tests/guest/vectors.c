/*
 * Vector registers and restartable sequences across blocking calls and
 * migrations: every ymm register holds a pattern while the thread sleeps in a
 * read and somebody else uses the same registers on the same CPU.
 */
#include "session.h"

#include <pthread.h>
#include <sched.h>

#define REGISTERS 16

struct patterns {
	uint64_t words[REGISTERS][4];
};

/* Loads all registers, reads one byte, stores all registers. */
static __attribute__((noinline)) long read_with_patterns(int file, char *byte,
							 const struct patterns *in,
							 struct patterns *out)
{
	long result;

	asm volatile(
		".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\t"
		"vmovdqu \\n*32(%[in]), %%ymm\\n\n\t"
		".endr\n\t"
		"syscall\n\t"
		".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\t"
		"vmovdqu %%ymm\\n, \\n*32(%[out])\n\t"
		".endr\n\t"
		"vzeroupper"
		: "=a"(result)
		: "a"(SYS_read), "D"(file), "S"(byte), "d"(1), [in] "r"(in), [out] "r"(out)
		: "rcx", "r11", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",
		  "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
	return result;
}

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

static void keep_patterns(void)
{
	struct patterns in, out;
	uint64_t x = 1;
	long rounds = 0, lost = 0;
	char byte = 1;
	pthread_t other;
	struct heat heat;

	MUST(pipe(ping));
	MUST(pipe(pong));
	pin(0, 0);	/* and so is the thread created from here */
	if (pthread_create(&other, NULL, answer, NULL))
		die("pthread_create");
	heat = heat_begin(2, 1);
	while (!heat_done(&heat) || rounds < 200) {
		for (int i = 0; i < REGISTERS; i++)
			for (int j = 0; j < 4; j++)
				in.words[i][j] = x = step(x);
		byte = 1;
		call3(SYS_write, ping[1], (long)&byte, 1);
		if (read_with_patterns(pong[0], &byte, &in, &out) != 1)
			die("read");
		lost += memcmp(&in, &out, sizeof(in)) != 0;
		rounds++;
	}
	byte = 0;
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

/*
 * The rider moves itself too, and glibc's sched_getcpu(), which reads the
 * number that restartable sequences keep, must know at once.
 */
static void migrate(void)
{
	struct patterns in, out;
	long wrong_cpu = 0, lost = 0;
	pthread_t mover;
	char byte = 1;
	cpu_set_t set;
	struct heat heat;

	memset(&in, 0x3c, sizeof(in));
	if (pthread_create(&mover, NULL, move, (void *)(long)gettid()))
		die("pthread_create");
	heat = heat_begin(2, 50);
	do {
		for (int i = 0; i < 100; i++) {
			call3(SYS_write, ping[1], (long)&byte, 1);
			read_with_patterns(ping[0], &byte, &in, &out);
			lost += memcmp(&in, &out, sizeof(in)) != 0;
		}
	} while (!heat_done(&heat));
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

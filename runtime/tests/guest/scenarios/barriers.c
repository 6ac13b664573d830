/* Barriers that one thread puts all others under, riders too: membarrier(2). */
#include "scenario.h"
#include "sequence.h"

#include <linux/membarrier.h>

static volatile int stop;

static void memory_barriers(int enable, int command)
{
	pthread_t threads[2];

	WARM_STEPS();
	for (int i = 0; i < 2; i++)
		threads[i] = start_thread(ride_along, (void *)&stop);
	AWAIT_RIDES(500);
	MUST(syscall(SYS_membarrier, enable, 0, 0));
	for (int i = 0; i < 100; i++) {
		MUST(syscall(SYS_membarrier, command, 0, 0));
		ridden_steps(10, 1);
	}
	stop = 1;
	for (int i = 0; i < 2; i++)
		expect_equal("went on", (long)join_thread(threads[i]) > 0, 1);
}

static void memory_barrier(void)
{
	memory_barriers(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED,
			MEMBARRIER_CMD_PRIVATE_EXPEDITED);
}

static void memory_barrier_of_code(void)
{
	memory_barriers(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE,
			MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE);
}

/* How often a sequence was ended before its end. */
static volatile long ended;

/* All of it in one piece, as riders look for what they have to do in loops. */
static __attribute__((noinline)) void fill_in_sequence(char *area)
{
	asm volatile(
		SEQUENCE(".rept 4\n\t"
			 "movq %[area], %%rdi\n\t"
			 "movl $1024, %%ecx\n\t"
			 "rep stosb\n\t"
			 ".endr\n\t",
			 "incq %[ended]\n\t")
		: [ended] "+m"(ended)
		: SEQUENCE_OPERANDS, [area] "r"(area)
		: "rax", "rcx", "rdi", "memory", "cc");
}

static __attribute__((noinline)) void fill_often(int times)
{
	char area[1024];

	for (int i = 0; i < times; i++) {
		fill_in_sequence(area);
		call0(SYS_getuid);
	}
}

static void *fill_until_stopped(void *unused)
{
	pin(0, 1);
	while (!stop)
		fill_often(100);
	return unused;
}

#define BARRIERS 300

/*
 * The barrier ends all sequences that are under way. Whoever has a CPU to itself is hardly
 * ever in anything else.
 */
static void memory_barrier_of_sequences(void)
{
	pthread_t filler;

	WARM_UP_ALL(4, fill_often(4));
	pin(0, 0);
	filler = start_thread(fill_until_stopped, NULL);
	/* Nobody rides any more once it is enabled. */
	AWAIT_RIDES(500);
	MUST(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ, 0, 0));
	ended = 0;
	for (int i = 0; i < BARRIERS; i++) {
		MUST(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, 0, 0));
		usleep(200);
	}
	stop = 1;
	join_thread(filler);
	if (ended < BARRIERS / 10)
		printf("only %ld were ended: FAILED\n", ended);
}

static const struct scenario scenarios[] = {
	{ "memory-barrier", memory_barrier },
	{ "memory-barrier-of-code", memory_barrier_of_code },
	{ "memory-barrier-of-sequences", memory_barrier_of_sequences },
};
SCENARIO_MAIN(scenarios)

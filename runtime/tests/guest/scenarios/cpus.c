/* What belongs to the CPU that a rider is on: its number, its vector registers. */
#include "scenario.h"
#include "sequence.h"
#include "../patterns.h"

#include <fcntl.h>
#include <sched.h>
#include <x86intrin.h>

static volatile int stop;
static int cpus;

static void count_cpus(void)
{
	cpus = sysconf(_SC_NPROCESSORS_ONLN);
}

/* Who is moved; riders that there are not are 0. */
#define MOST_MOVED 3
static volatile pid_t moved[MOST_MOVED];
/* Odd while they are being moved. */
static volatile unsigned long moves;

/* Each to the next CPU, so that there is always one with two of three riders on it. */
static void *move_riders(void *unused)
{
	for (int i = 0; !stop; i++) {
		moves++;
		__sync_synchronize();
		for (int j = 0; j < MOST_MOVED; j++)
			if (moved[j])
				pin(moved[j], (i + j) % cpus);
		__sync_synchronize();
		moves++;
		usleep(1500);
	}
	return unused;
}

static pthread_t start_moving_us(void)
{
	moved[0] = gettid();
	return start_thread(move_riders, NULL);
}

/* The CPU that the kernel says restartable sequences are on. */
static inline int cpu_of_sequences(void)
{
	return __atomic_load_n(&own_rseq()->cpu_id, __ATOMIC_RELAXED);
}

static __attribute__((noinline)) int compare_cpus(void)
{
	unsigned int before, after;
	unsigned long first = moves;
	int between;

	__sync_synchronize();
	call3(SYS_getcpu, (long)&before, 0, 0);
	between = cpu_of_sequences();
	call3(SYS_getcpu, (long)&after, 0, 0);
	__sync_synchronize();
	/* Not moved meanwhile, so all three are one. */
	if (first % 2 == 0 && moves == first)
		return before != after || (int)before != between;
	return 0;
}

static void cpu_number(void)
{
	pthread_t mover;
	long wrong = 0;
	double until;

	count_cpus();
	WARM_UP(compare_cpus());
	mover = start_moving_us();
	until = seconds() + 1;
	while (seconds() < until)
		for (int i = 0; i < 100; i++)
			wrong += compare_cpus();
	stop = 1;
	join_thread(mover);
	expect_equal("wrong", wrong, 0);
}

/* How often libc is wrong about it, between calls that ride. */
static __attribute__((noinline)) long compare_with_libc(int cpu, int times)
{
	long wrong = 0;

	for (int i = 0; i < times; i++) {
		call0(SYS_getuid);
		wrong += sched_getcpu() != cpu;
	}
	return wrong;
}

static void cpu_number_of_libc(void)
{
	long wrong = 0;

	count_cpus();
	pin(0, 0);
	WARM_UP_ALL(4, wrong += compare_with_libc(0, 4));
	for (int i = 1; i < 500; i++) {
		pin(0, i % cpus);
		wrong += compare_with_libc(i % cpus, 4);
	}
	expect_equal("wrong", wrong, 0);
}

/*
 * Adds one to the CPU's counter in a restartable sequence: if the thread is
 * interrupted, preempted or moved before the store, it starts again.
 */
static long counters[64][16];

static __attribute__((noinline)) void count_on_cpu(void)
{
	asm volatile(
		SEQUENCE("movl %c[cpu](%[rseq]), %%eax\n\t"
			 "shlq $7, %%rax\n\t"
			 "leaq (%[counters],%%rax), %%rdx\n\t"
			 "movq (%%rdx), %%rcx\n\t"
			 ".rept 200\n\tleaq 1(%%rcx), %%rcx\n\tleaq -1(%%rcx), %%rcx\n\t.endr\n\t"
			 "leaq 1(%%rcx), %%rcx\n\t"
			 "movq %%rcx, (%%rdx)\n\t",
			 "")
		: : SEQUENCE_OPERANDS, [counters] "r"(counters),
		  [cpu] "i"(offsetof(struct rseq, cpu_id))
		: "rax", "rcx", "rdx", "memory", "cc");
}

static __attribute__((noinline)) void count_often(int times)
{
	for (int i = 0; i < times; i++) {
		count_on_cpu();
		call0(SYS_getuid);
	}
}

static volatile int all_moved;

static void *count_while_moved(void *place)
{
	long counts = 0;

	*(volatile pid_t *)place = gettid();
	for (; !all_moved; counts += 100)
		count_often(100);
	return (void *)counts;
}

#define MOVES 300

/* Riders that count on the same CPUs, and are moved while they do. */
static void restartable_sequences(void)
{
	pthread_t counting[MOST_MOVED], mover;
	long sum = 0;

	count_cpus();
	WARM_UP_ALL(4, count_often(4));
	memset(counters, 0, sizeof(counters));
	for (int i = 0; i < MOST_MOVED; i++)
		counting[i] = start_thread(count_while_moved, (void *)&moved[i]);
	AWAIT_RIDES(500);
	mover = start_thread(move_riders, NULL);
	while (moves < 2 * MOVES)
		AWAIT_RIDES(500);
	stop = 1;
	join_thread(mover);
	all_moved = 1;
	for (int i = 0; i < MOST_MOVED; i++)
		sum -= (long)join_thread(counting[i]);
	for (int i = 0; i < 64; i++)
		sum += counters[i][0];
	expect_equal("lost or counted twice", sum, 0);
}

static int to_other[2], from_other[2];

static __attribute__((noinline)) long send_and_read(char *byte, const struct patterns *in,
						    struct patterns *out)
{
	if (call3(SYS_write, to_other[1], (long)byte, 1) != 1)
		die("write");
	return read_with_patterns(from_other[0], byte, in, out);
}

static void *answer_with_patterns(void *unused)
{
	struct patterns mine, ignored;
	char byte;

	memset(&mine, 0xa5, sizeof(mine));
	while (read_with_patterns(to_other[0], &byte, &mine, &ignored) == 1 && byte)
		MUST(write(from_other[1], &byte, 1));
	return unused;
}

static void keep_patterns(bool moved)
{
	struct patterns in, out;
	pthread_t other, mover = 0;
	uint64_t x = 1;
	long lost = 0;
	char byte = 1;

	count_cpus();
	MUST(pipe(to_other));
	MUST(pipe(from_other));
	if (!moved)
		pin(0, 0);	/* and so is the thread created from here */
	other = start_thread(answer_with_patterns, NULL);
	memset(&in, 0x3c, sizeof(in));
	WARM_UP(send_and_read(&byte, &in, &out));
	if (moved)
		mover = start_moving_us();
	for (int i = 0; i < 1500; i++) {
		for (int j = 0; j < REGISTERS * 4; j++)
			in.words[j / 4][j % 4] = x = step(x);
		byte = 1;
		if (send_and_read(&byte, &in, &out) != 1)
			die("read");
		lost += memcmp(&in, &out, sizeof(in)) != 0;
	}
	stop = 1;
	byte = 0;
	MUST(write(to_other[1], &byte, 1));
	join_thread(other);
	if (moved)
		join_thread(mover);
	expect_equal("lost", lost, 0);
}

static void vectors_of_sleeper(void) { keep_patterns(false); }
static void vectors_of_moved_sleeper(void) { keep_patterns(true); }

/* The vector unit computes in the ride; with the x87 there is none. */
static __attribute__((noinline)) long check_modes(double expected, unsigned short control, int times)
{
	static volatile double one = 1, three = 3;
	unsigned short now;
	long wrong = 0;

	for (int i = 0; i < times; i++) {
		call0(SYS_getuid);
		wrong += one / three != expected;
		call0(SYS_getuid);
		asm volatile("fnstcw %0" : "=m"(now));
		wrong += now != control;
	}
	return wrong;
}

/* Rounding of the vector unit and of the x87. */
static void float_modes(void)
{
	volatile double one = 1, three = 3, down, up;
	unsigned short expected;
	long wrong = 0;

	WARM_UP_UNTIL(WARM_UP_BATCH * 2, check_modes(0, 0, 4));
	_mm_setcsr((_mm_getcsr() & ~0x6000u) | 0x2000);
	down = one / three;
	_mm_setcsr((_mm_getcsr() & ~0x6000u) | 0x4000);
	up = one / three;
	expect_equal("down and up differ", down < up, 1);
	asm volatile("fnstcw %0" : "=m"(expected));
	expected = (expected & ~0x0c00) | 0x0400;
	asm volatile("fldcw %0" : : "m"(expected));
	wrong += check_modes(up, expected, 500);
	expect_equal("wrong", wrong, 0);
}

/* A long sum in floating point, in vectors and in the x87, which does not ride. */
static __attribute__((noinline)) long sum_floats(long start, int times)
{
	double sum = start;
	long double more = start;

	for (int i = 1; i < times; i++) {
		call0(SYS_getuid);
		sum = sum * 1.0000001 + 1.0 / i;
		call0(SYS_getuid);
		more += (long double)1 / i;
	}
	return sum * 1e9 + (double)more;
}

/* While others compute. */
static void *sum_many_floats(void *start)
{
	return (void *)sum_floats((long)start, 3000);
}

static void floats_of_threads(void)
{
	pthread_t threads[4];

	WARM_UP_UNTIL(WARM_UP_BATCH * 2, sum_floats(0, 5));
	for (long i = 0; i < 4; i++)
		threads[i] = start_thread(sum_many_floats, (void *)i);
	for (int i = 0; i < 4; i++)
		printf("sum %lx\n", (long)join_thread(threads[i]));
}

static bool set_online(int cpu, const char *value)
{
	char path[80];
	int file;
	bool done;

	snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/online", cpu);
	file = open(path, O_WRONLY);
	done = file >= 0 && write(file, value, 1) == 1;
	if (file >= 0)
		close(file);
	return done;
}

/* The rider's CPU goes and comes back. */
static void hotplug(void)
{
	pthread_t riders[3];
	long wrong = 0;

	WARM_STEPS();
	for (int i = 0; i < 3; i++)
		riders[i] = start_thread(ride_along, (void *)&stop);
	for (int i = 0; i < 5; i++) {
		AWAIT_RIDES(500);
		wrong += !set_online(1, "0");
		wrong += sched_getcpu() != 0;
		AWAIT_RIDES(500);
		ridden_steps(200, 1);
		wrong += !set_online(1, "1");
	}
	stop = 1;
	for (int i = 0; i < 3; i++)
		expect_equal("went on", (long)join_thread(riders[i]) > 0, 1);
	expect_equal("wrong", wrong, 0);
}

/* Pinned to a CPU that goes: the rider runs on elsewhere, with its vectors. */
static void hotplug_of_pinned(void)
{
	struct patterns in, out;
	pthread_t other;
	long lost = 0;
	char byte = 1;

	MUST(pipe(to_other));
	MUST(pipe(from_other));
	other = start_thread(answer_with_patterns, NULL);
	memset(&in, 0x5a, sizeof(in));
	WARM_UP(send_and_read(&byte, &in, &out));
	for (int i = 0; i < 4; i++) {
		pin(0, 1);
		for (int j = 0; j < 200; j++) {
			byte = 1;
			if (j == 100)
				lost += !set_online(1, "0");
			send_and_read(&byte, &in, &out);
			lost += memcmp(&in, &out, sizeof(in)) != 0;
		}
		lost += !set_online(1, "1");
	}
	byte = 0;
	MUST(write(to_other[1], &byte, 1));
	join_thread(other);
	expect_equal("lost", lost, 0);
}

static const struct scenario scenarios[] = {
	{ "cpu-number", cpu_number },
	{ "cpu-number-of-libc", cpu_number_of_libc },
	{ "restartable-sequences", restartable_sequences },
	{ "vectors-of-sleeper", vectors_of_sleeper },
	{ "vectors-of-moved-sleeper", vectors_of_moved_sleeper },
	{ "float-modes", float_modes },
	{ "floats-of-threads", floats_of_threads },
	{ "hotplug", hotplug },
	{ "hotplug-of-pinned", hotplug_of_pinned },
};
SCENARIO_MAIN(scenarios)

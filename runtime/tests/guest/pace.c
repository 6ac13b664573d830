/*
 * Programs of different rhythm, for the question whether a session pays:
 * `pace RHYTHM WARM_MS TIMED_MS` does the same thing over and over and prints,
 * for each kind of thing, its name and how many it did in a second of the
 * timed part. `pace address` prints where the gap of `short` begins.
 */
#include "guest.h"

#include <sys/personality.h>

/* Instructions of one turn of spin(). */
#define SPIN_INSTRUCTIONS 4
#define LONG_GAP 50000
/* Operations between two looks at the clock take about so many instructions. */
#define CHUNK 100000

static inline uint64_t spin(uint64_t x, long turns)
{
	asm volatile(
		"1:	lea 1(%0,%0,2), %0\n"
		"	xor $0x55, %0\n"
		"	dec %1\n"
		"	jnz 1b\n"
		: "+r"(x), "+r"(turns) :: "cc");
	return x;
}

extern char pace_gap[];

/* Each call is followed by a gap of a few instructions, at a known address. */
static __attribute__((noinline, noclone)) void short_gaps(long count)
{
	asm volatile(
		".globl pace_gap\n"
		"1:	mov %1, %%eax\n"
		"	syscall\n"
		"pace_gap: dec %0\n"
		"	jnz 1b\n"
		: "+r"(count) : "i"(SYS_getuid) : "rax", "rcx", "r11", "cc", "memory");
}

/* A call, and a computation of this many turns. */
static __attribute__((noinline, noclone)) uint64_t long_gaps(uint64_t x, long turns, long count)
{
	while (count--) {
		call0(SYS_getuid);
		x = spin(x, turns);
	}
	return x;
}

/* Computes; makes a call each 100 us, as the clock of the vDSO says. */
static __attribute__((noinline, noclone)) uint64_t sparse(uint64_t x, double *next)
{
	for (int i = 0; i < CHUNK / SPIN_INSTRUCTIONS / 250; i++) {
		x = spin(x, 250);
		if (seconds() >= *next) {
			*next = seconds() + 100e-6;
			call0(SYS_getuid);
		}
	}
	return x;
}

struct result {
	const char *name;
	double operations, duration;
};

static double next_call;
static volatile uint64_t sink = 1;

/* Does one chunk of the rhythm; how many operations that were. */
static double chunk(const char *rhythm)
{
	if (!strcmp(rhythm, "short")) {
		short_gaps(256);
		return 256;
	}
	if (!strcmp(rhythm, "long")) {
		sink = long_gaps(sink, LONG_GAP / SPIN_INSTRUCTIONS, 2);
		return 2;
	}
	if (!strcmp(rhythm, "sparse")) {
		sink = sparse(sink, &next_call);
		return 1;
	}
	if (!strcmp(rhythm, "compute")) {
		sink = spin(sink, CHUNK / SPIN_INSTRUCTIONS);
		return 1;
	}
	errno = EINVAL;
	die(rhythm);
}

static void run(const char *rhythm, double span, struct result *result)
{
	double start = seconds(), now = start;

	while (now < start + span) {
		result->operations += chunk(rhythm);
		now = seconds();
	}
	result->duration += now - start;
}

static void report(const struct result *result)
{
	printf("%s %.0f\n", result->name, result->operations / result->duration);
}

/* Calls, computes, calls ... a second each; an even number of seconds. */
static void phases(double warm, double timed)
{
	struct result calls = { .name = "phases-short" }, computing = { .name = "phases-compute" };
	struct result unused = { 0 };

	for (double done = 0; done < warm + timed; done += 2) {
		bool counts = done >= warm;

		run("short", 1, counts ? &calls : &unused);
		run("compute", 1, counts ? &computing : &unused);
	}
	report(&calls);
	report(&computing);
}

int main(int argc, char **argv)
{
	/* The same addresses each time. */
	if (!(MUST(personality(0xffffffff)) & ADDR_NO_RANDOMIZE)) {
		MUST(personality(personality(0xffffffff) | ADDR_NO_RANDOMIZE));
		MUST(execv("/proc/self/exe", argv));
	}
	if (argc == 2 && !strcmp(argv[1], "address")) {
		printf("%p\n", (void *)pace_gap);
		return 0;
	}
	if (argc != 4)
		return 2;
	double warm = atoi(argv[2]) / 1000.0, timed = atoi(argv[3]) / 1000.0;
	struct result unused = { 0 }, result = { .name = argv[1] };

	if (!strcmp(argv[1], "phases")) {
		phases(warm, timed);
		return 0;
	}
	run(argv[1], warm, &unused);
	run(argv[1], timed, &result);
	report(&result);
	return 0;
}

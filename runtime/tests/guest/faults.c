/*
 * Faults from inside hot gaps: prints signal, code, address and every
 * register that the handler sees. Address space layout is fixed, so that the
 * native and the ridden run print the same text.
 */
#include "session.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <ucontext.h>
#include <xmmintrin.h>

#define ARENA 0x10000000ul
#define PAGE 0x1000ul
#define GOOD (ARENA + 0x800)

enum use { MEMORY, CODE, NUMBER, ABSOLUTE };

#define GAP(name, use, live)                                                   \
	extern void gap_##name(long count, unsigned long operand);             \
	extern char gap_##name##_at[];
#include "fault_gaps.h"
#undef GAP

static const struct gap {
	const char *name;
	void (*run)(long, unsigned long);
	const char *at;
	enum use use;
	/* Whether the arithmetic flags matter after the instruction. */
	bool flags_live;
} gaps[] = {
#define GAP(name, use, live) { #name, gap_##name, gap_##name##_at, use, live },
#include "fault_gaps.h"
#undef GAP
};

#define COUNT (sizeof(gaps) / sizeof(gaps[0]))

extern char fault_recover[], target_return[], target_jump[];

static const struct gap *current;
static volatile bool caught;

static void on_fault(int signal, siginfo_t *info, void *context)
{
	static const struct { const char *name; int index; } registers[] = {
		{ "rax", REG_RAX }, { "rbx", REG_RBX }, { "rcx", REG_RCX }, { "rdx", REG_RDX },
		{ "rsi", REG_RSI }, { "rdi", REG_RDI }, { "rbp", REG_RBP }, { "rsp", REG_RSP },
		{ "r8", REG_R8 },   { "r9", REG_R9 },   { "r10", REG_R10 }, { "r11", REG_R11 },
		{ "r12", REG_R12 }, { "r13", REG_R13 }, { "r14", REG_R14 }, { "r15", REG_R15 },
	};
	greg_t *value = ((ucontext_t *)context)->uc_mcontext.gregs;
	unsigned long flags = value[REG_EFL] & 0x8d5;

	caught = true;
	printf(" signal %d code %d addr %p rip %+lld trap %lld error %llx", signal,
	       info->si_code, info->si_addr, (long long)(value[REG_RIP] - (long)current->at),
	       value[REG_TRAPNO], value[REG_ERR]);
	for (size_t i = 0; i < sizeof(registers) / sizeof(registers[0]); i++)
		printf(" %s %llx", registers[i].name, value[registers[i].index]);
	if (current->flags_live)
		printf(" flags %lx", flags);
	value[REG_RIP] = (long)fault_recover;
}

static unsigned long good_operand(const struct gap *gap)
{
	switch (gap->use) {
	case CODE:
		return (unsigned long)(strcmp(gap->name, "call") ? target_jump : target_return);
	case NUMBER:
		return 3;
	default:
		return GOOD;
	}
}

static void set_arena(void)
{
	/* Written anew for every case: a case must not see what another left. */
	mprotect((void *)ARENA, 6 * PAGE, PROT_READ | PROT_WRITE);
	memset((void *)ARENA, 0x5a, 6 * PAGE);
	mprotect((void *)(ARENA + 2 * PAGE), PAGE, PROT_NONE);
	mprotect((void *)(ARENA + 3 * PAGE), PAGE, PROT_READ);
}

static void try(const struct gap *gap, const char *what, unsigned long operand)
{
	caught = false;
	current = gap;
	printf("%s %s:", gap->name, what);
	gap->run(1, operand);
	if (!caught)
		printf(" none");
	printf(" left %lx\n", *(unsigned long *)GOOD);
}

static void try_pointers(const struct gap *gap)
{
	static const struct { const char *what; unsigned long operand; } pointers[] = {
		{ "null", 0 },
		{ "null-page", 0x80 },
		{ "unmapped", 0x20000000 },
		{ "no-access", ARENA + 2 * PAGE + 0x800 },
		{ "read-only", ARENA + 3 * PAGE + 0x800 },
		{ "straddling", ARENA + 2 * PAGE - 12 },
		{ "straddling-line", ARENA + 0x83c },
		{ "misaligned", GOOD + 4 },
		{ "kernel-direct-map", 0xffff888000000000 },
		{ "kernel-text", 0xffffffff81000000 },
		{ "vsyscall-neighbour", 0xffffffffff601000 },
		{ "top", 0xfffffffffffffff0 },
		{ "above-47-bits", 0x0000800000000000 },
		{ "non-canonical", 0x0100000000000000 },
		{ "bit-63", 0x8000000000000000 },
		{ "bit-63-valid", GOOD | 1ul << 63 },
		{ "bit-62-valid", GOOD | 1ul << 62 },
	};

	for (size_t i = 0; i < sizeof(pointers) / sizeof(pointers[0]); i++) {
		set_arena();
		try(gap, pointers[i].what, pointers[i].operand);
	}
}

static void try_gap(const struct gap *gap)
{
	switch (gap->use) {
	case NUMBER:
		try(gap, "zero", 0);
		try(gap, "minus-one", -1ul);
		break;
	case ABSOLUTE:
		set_arena();
		try(gap, "good", 0);
		mprotect((void *)ARENA, PAGE, PROT_NONE);
		caught = false;
		current = gap;
		printf("%s no-access:", gap->name);
		gap->run(1, 0);
		printf("%s\n", caught ? "" : " none");
		set_arena();
		break;
	default:
		try_pointers(gap);
	}
}

int main(int argc, char **argv)
{
	static char stack[64 << 10];
	stack_t alternate = { .ss_sp = stack, .ss_size = sizeof(stack) };
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP };
	struct warming warming;

	(void)argc;
	if (!(personality(0xffffffff) & ADDR_NO_RANDOMIZE)) {
		MUST(personality(ADDR_NO_RANDOMIZE));
		MUST(execv("/proc/self/exe", argv));
	}
	if (mmap((void *)ARENA, 6 * PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != (void *)ARENA)
		die("mmap");
	MUST(sigaltstack(&alternate, NULL));
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		MUST(sigaction(signals[i], &action, NULL));
	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	set_arena();
	/* Unmasks division by zero for gap_vector_divide. */
	_mm_setcsr(_mm_getcsr() & ~0x200u);

	/* Nearly all of them: some are left for a guard. */
	warming = warming_begin(COUNT * 80);
	do
		for (size_t i = 0; i < COUNT; i++)
			gaps[i].run(100, good_operand(&gaps[i]));
	while (!warming_done(&warming, __func__, __LINE__));
	for (size_t i = 0; i < COUNT; i++)
		try_gap(&gaps[i]);
	return 0;
}

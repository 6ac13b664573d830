/* seccomp, ptrace and PR_SET_TSC, each begun when the program already rides. */
#include "session.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <x86intrin.h>

static __attribute__((noinline)) int refusals(int calls)
{
	int refused = 0;

	for (int i = 0; i < calls; i++)
		refused += call0(SYS_getuid) == -EPERM;
	return refused;
}

static void seccomp_filter(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getuid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof(code) / sizeof(code[0]), .filter = code };
	int before, after;

	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	WARM_UP_ALL(20, refusals(20));
	before = refusals(1000);
	MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
	after = refusals(1000);
	printf("seccomp: %d refused, then %d\n", before, after);
}

/* What the traced child and the tracer share. */
struct shared {
	volatile long calls;
	volatile int stop;
};

extern char traced_gap[];

static __attribute__((noinline, noclone)) void traced_loop(struct shared *shared)
{
	while (!shared->stop) {
		call0(SYS_getuid);
		asm volatile(".globl traced_gap\ntraced_gap: nop" ::: "memory");
		shared->calls++;
	}
}

/* Stops of other kinds (a group stop of PTRACE_ATTACH) do not matter here. */
static int wait_stop(pid_t child)
{
	int status;

	MUST(waitpid(child, &status, __WALL));
	if (!WIFSTOPPED(status)) {
		printf("tracing: child ended, status %x\n", status);
		exit(1);
	}
	return WSTOPSIG(status);
}

static void trace_calls(pid_t child, struct shared *shared)
{
	long first = shared->calls, last;
	int entries = 0, others = 0;

	/* From a call's entry to the entry 500 calls later. */
	for (int stops = 0; stops < 1000; stops++) {
		struct __ptrace_syscall_info info;

		MUST(ptrace(PTRACE_SYSCALL, child, 0, 0));
		if (wait_stop(child) != (SIGTRAP | 0x80)) {
			others++;
			continue;
		}
		MUST(ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof(info), &info));
		if (info.op == PTRACE_SYSCALL_INFO_ENTRY)
			entries += info.entry.nr == SYS_getuid;
	}
	last = shared->calls;
	/* The first entry may belong to an iteration that was already counted. */
	printf("tracing: %d entries, %d others, counted %s\n", entries, others,
	       labs(last - first - entries) <= 1 ? "the same" : "DIFFERENTLY");
}

static void step_through(pid_t child)
{
	struct user_regs_struct registers;
	long passed_gap = 0;

	for (int i = 0; i < 200; i++) {
		MUST(ptrace(PTRACE_SINGLESTEP, child, 0, 0));
		if (wait_stop(child) != SIGTRAP)
			printf("stepping: other signal\n");
		MUST(ptrace(PTRACE_GETREGS, child, 0, &registers));
		passed_gap += registers.rip == (unsigned long)traced_gap;
	}
	printf("stepping: %s\n", passed_gap >= 10 ? "every instruction seen" : "instructions MISSED");
}

static void breakpoint(pid_t child)
{
	long word = ptrace(PTRACE_PEEKTEXT, child, traced_gap, 0);
	struct user_regs_struct registers;

	MUST(ptrace(PTRACE_POKETEXT, child, traced_gap, (word & ~0xffl) | 0xcc));
	for (int i = 0; i < 20; i++) {
		MUST(ptrace(PTRACE_CONT, child, 0, 0));
		if (wait_stop(child) != SIGTRAP)
			printf("breakpoint: other signal\n");
		MUST(ptrace(PTRACE_GETREGS, child, 0, &registers));
		if (registers.rip != (unsigned long)traced_gap + 1)
			printf("breakpoint: elsewhere\n");
		/* Over the nop that the breakpoint replaced: nothing to undo. */
	}
	MUST(ptrace(PTRACE_POKETEXT, child, traced_gap, word));
	printf("breakpoint: hit 20 times\n");
}

static void traced(void)
{
	struct shared *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t child = MUST(fork());
	int status;
	long before;

	if (child == 0) {
		traced_loop(shared);
		_exit(5);
	}
	AWAIT_RIDES(3000);
	MUST(ptrace(PTRACE_SEIZE, child, 0, PTRACE_O_TRACESYSGOOD));
	MUST(ptrace(PTRACE_INTERRUPT, child, 0, 0));
	wait_stop(child);
	trace_calls(child, shared);
	step_through(child);
	breakpoint(child);
	before = shared->calls;
	MUST(ptrace(PTRACE_DETACH, child, 0, 0));
	/* Natively: where a debugger wrote, it could do so again unseen. */
	for (int i = 0; i < 1000 && shared->calls < before + 1000; i++)
		usleep(10 * 1000);
	printf("tracing: goes on %s\n", shared->calls >= before + 1000 ? "afterwards" : "NOT");
	shared->stop = 1;
	MUST(waitpid(child, &status, 0));
	printf("tracing: exit %d\n", WEXITSTATUS(status));
}

static void on_fault(int signal)
{
	printf("tsc: signal %d\n", signal);
	fflush(stdout);
	_exit(0);
}

static __attribute__((noinline)) void read_clock(int calls)
{
	static uint64_t last;

	for (int i = 0; i < calls; i++) {
		uint64_t now;

		call0(SYS_getuid);
		now = __rdtsc();
		if (now < last)
			printf("tsc: backwards\n");
		last = now;
	}
}

static void forbid_tsc(void)
{
	signal(SIGSEGV, on_fault);
	WARM_UP_ALL(20, read_clock(20));
	read_clock(1000);
	MUST(prctl(PR_SET_TSC, PR_TSC_SIGSEGV));
	read_clock(1000);
	printf("tsc: NOT forbidden\n");
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	if (!strcmp(mode, "seccomp"))
		seccomp_filter();
	else if (!strcmp(mode, "ptrace"))
		traced();
	else if (!strcmp(mode, "tsc"))
		forbid_tsc();
	else
		return 2;
	return 0;
}

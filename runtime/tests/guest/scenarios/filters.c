/* Seccomp filters and other judges of system calls that come in the middle of a ride. */
#include "scenario.h"

#include <asm/prctl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_OFF 0
#define PR_SYS_DISPATCH_ON 1
#endif

static volatile int stop;

/* A filter that decides on one call and lets all others pass. */
static long filter(unsigned int flags, long call, unsigned int verdict)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned int)call, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, verdict),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = COUNT_OF(code), .filter = code };

	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	return MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program));
}

/*
 * How many of so many calls give this result. What is refused at its entry starts no ride,
 * so each comes behind one that does.
 */
static __attribute__((noinline)) long count_behind(long call, int times, long result)
{
	long count = 0;

	for (int i = 0; i < times; i++) {
		call0(SYS_getppid);
		count += call0(call) == result;
	}
	return count;
}
#define WARM_BEHIND() WARM_UP_ALL(8, count_behind(SYS_getuid, 4, 0))

static long allowed, refused;

/* The two calls of which one is refused. */
static __attribute__((noinline)) void call_both(int times)
{
	for (int i = 0; i < times; i++) {
		allowed += call0(SYS_geteuid) == 0;
		refused += call0(SYS_getuid) == -EPERM;
	}
}

static void filter_refuses(void)
{
	WARM_UP_ALL(10, call_both(5));
	filter(0, SYS_getuid, SECCOMP_RET_ERRNO | EPERM);
	allowed = 0;
	call_both(1000);
	expect_equal("refused", refused, 1000);
	expect_equal("not refused", allowed, 1000);
	/* And whoever has a filter rides on. */
	WARM_CALL(SYS_geteuid);
	expect_equal("refused", count_results(SYS_getuid, 1000, -EPERM), 1000);
	expect_equal("not refused", count_results(SYS_geteuid, 1000, 0), 1000);
}

static void filter_on_filter(void)
{
	WARM_BEHIND();
	filter(0, SYS_getuid, SECCOMP_RET_ERRNO | 1);
	expect_equal("first", count_behind(SYS_getuid, 300, -1), 300);
	filter(0, SYS_geteuid, SECCOMP_RET_ERRNO | 2);
	expect_equal("first", count_behind(SYS_getuid, 300, -1), 300);
	expect_equal("second", count_behind(SYS_geteuid, 300, -2), 300);
	filter(0, SYS_getuid, SECCOMP_RET_ERRNO | 3);
	/* The later of two equals. */
	expect_equal("third", count_behind(SYS_getuid, 300, -3), 300);
}

static void filter_allows(void)
{
	WARM_UP_ALL(10, count_results(SYS_getuid, 10, 0));
	filter(0, SYS_getuid, SECCOMP_RET_ALLOW);
	expect_equal("allowed", count_results(SYS_getuid, 1000, 0), 1000);
}

static volatile long traps, trap_call, trap_error;

static void on_trap(int signal, siginfo_t *info, void *context)
{
	ucontext_t *where = context;

	(void)signal;
	traps++;
	trap_call += info->si_syscall;
	trap_error += info->si_errno;
	where->uc_mcontext.gregs[REG_RAX] = 77;
}

static void filter_traps(void)
{
	struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO };

	MUST(sigaction(SIGSYS, &action, NULL));
	WARM_BEHIND();
	filter(0, SYS_getuid, SECCOMP_RET_TRAP | 5);
	expect_equal("answers of the handler", count_behind(SYS_getuid, 200, 77), 200);
	expect_equal("traps", traps, 200);
	expect_equal("calls", trap_call, 200 * SYS_getuid);
	expect_equal("data", trap_error, 200 * 5);
}

static void filter_kills_process(void)
{
	prctl(PR_SET_DUMPABLE, 0);
	WARM_BEHIND();
	filter(0, SYS_geteuid, SECCOMP_RET_KILL_PROCESS);
	expect_equal("alive", count_behind(SYS_getuid, 500, 0), 500);
	count_behind(SYS_geteuid, 1, 0);
	printf("not reached: FAILED\n");
}

static void *die_by_filter(void *unused)
{
	(void)unused;
	count_behind(SYS_getuid, 500, 0);
	count_behind(SYS_geteuid, 1, 0);
	stop = 1;
	return NULL;
}

static void filter_kills_thread(void)
{
	WARM_BEHIND();
	filter(0, SYS_geteuid, SECCOMP_RET_KILL_THREAD);
	join_thread(start_thread(die_by_filter, NULL));
	expect_equal("went on", stop, 0);
	expect_equal("others live", count_behind(SYS_getuid, 500, 0), 500);
}

static volatile long passed_later, all_filtered;

/* The call that is judged is made before as well, by the same code. */
static void *count_passed(void *unused)
{
	while (!stop) {
		bool all = all_filtered;

		passed_later += call0(SYS_getuid) != -EPERM && all;
		call0(SYS_getppid);
	}
	return unused;
}

/* Put on a riding thread by another one. */
static void filter_on_all_threads(void)
{
	pthread_t threads[3];

	WARM_BEHIND();
	for (int i = 0; i < 3; i++)
		threads[i] = start_thread(count_passed, NULL);
	AWAIT_RIDES(3000);
	filter(SECCOMP_FILTER_FLAG_TSYNC, SYS_getuid, SECCOMP_RET_ERRNO | EPERM);
	all_filtered = 1;
	AWAIT_RIDES(3000);
	stop = 1;
	for (int i = 0; i < 3; i++)
		join_thread(threads[i]);
	expect_equal("passed", passed_later, 0);
	expect_equal("we are refused", count_behind(SYS_getuid, 100, -EPERM), 100);
}

static void *answer_listener(void *file)
{
	struct seccomp_notif notice;
	struct seccomp_notif_resp answer;

	for (int i = 0; i < 100; i++) {
		memset(&notice, 0, sizeof(notice));
		memset(&answer, 0, sizeof(answer));
		MUST(ioctl((long)file, SECCOMP_IOCTL_NOTIF_RECV, &notice));
		answer.id = notice.id;
		answer.val = 1000 + notice.data.nr;
		MUST(ioctl((long)file, SECCOMP_IOCTL_NOTIF_SEND, &answer));
	}
	return NULL;
}

static void filter_asks_listener(void)
{
	pthread_t listener;
	long file;

	WARM_BEHIND();
	file = filter(SECCOMP_FILTER_FLAG_NEW_LISTENER, SYS_getuid, SECCOMP_RET_USER_NOTIF);
	listener = start_thread(answer_listener, (void *)file);
	expect_equal("answers", count_behind(SYS_getuid, 100, 1000 + SYS_getuid), 100);
	join_thread(listener);
}

/* In that mode no call rides: it comes behind calls that do, and judges the same code. */
static void strict_mode(void)
{
	WARM_BEHIND();
	expect_equal("alive", count_behind(SYS_getuid, 500, 0), 500);
	MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
	call3(SYS_write, 1, (long)"written\n", 8);
	count_behind(SYS_getuid, 1, 0);
	call3(SYS_write, 1, (long)"FAILED\n", 7);
}

static volatile char dispatch = 0;

static void on_dispatch(int signal, siginfo_t *info, void *context)
{
	dispatch = 0;
	on_trap(signal, info, context);
}

/* How many of so many calls the handler answers. */
static __attribute__((noinline)) long count_dispatched(int times)
{
	long answers = 0;

	for (int i = 0; i < times; i++) {
		dispatch = 0;
		call0(SYS_getppid);
		dispatch = 1;
		answers += call0(SYS_getuid) == 77;
	}
	return answers;
}

/* While the kernel may hand calls back it is no ride that makes them, but before and after. */
static void user_dispatch(void)
{
	struct sigaction action = { .sa_sigaction = on_dispatch, .sa_flags = SA_SIGINFO };

	MUST(sigaction(SIGSYS, &action, NULL));
	WARM_UP_ALL(8, count_dispatched(4));
	expect_equal("before", count_dispatched(100), 0);
	dispatch = 0;
	MUST(prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0, 0, &dispatch));
	expect_equal("answers of the handler", count_dispatched(100), 100);
	MUST(prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_OFF, 0, 0, 0));
	expect_equal("traps", traps, 100);
	expect_equal("after", count_dispatched(100), 0);
}

/* From such a place below a thread's data it is read, and far below any user address if that moves. */
#define BELOW 0x7f000000
#define TURNS 1000000

/* What those who take part have in common. */
struct reading {
	volatile unsigned int turns, reads;
	volatile unsigned int reads_before;	/* the data moved */
};

/*
 * Calls in a gap that reads relative to the FS base; each two-hundredth is one that a
 * filter hands to a tracer, if there is one. It comes back to the same gap, as behind what
 * is refused at its entry nothing becomes hot. Nothing else touches the thread's data.
 */
static __attribute__((noinline)) void read_below_data(struct reading *reading)
{
	static const struct timespec while_tracer_ends = { .tv_sec = 1 };

	asm volatile("	xorl %%ebx, %%ebx\n"
		     "1:	movq %%fs:-%c[below], %%rdx\n"
		     "	incl 4(%[turns])\n"
		     "	incl %%ebx\n"
		     "	movl %[often], %%eax\n"
		     "	cmpl $200, %%ebx\n"
		     "	jb 2f\n"
		     "	xorl %%ebx, %%ebx\n"
		     "	incl (%[turns])\n"
		     "	movl %[traced], %%eax\n"
		     "2:	movq %[pause], %%rdi\n"
		     "	xorl %%esi, %%esi\n"
		     "	syscall\n"
		     "	cmpl %[enough], (%[turns])\n"
		     "	jb 1b\n"
		     "	movl $14, %%edi\n"
		     "	movl %[end], %%eax\n"
		     "	syscall\n"
		     :
		     : [turns] "r"(reading), [pause] "r"(&while_tracer_ends), [below] "i"(BELOW),
		       [often] "i"(SYS_getuid), [traced] "i"(SYS_nanosleep), [enough] "i"(TURNS),
		       [end] "i"(SYS_exit_group)
		     : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r11", "memory", "cc");
}

static void be_read_below(struct reading *reading)
{
	unsigned long data;

	MUST(syscall(SYS_arch_prctl, ARCH_GET_FS, &data));
	data = (data - BELOW) & -4096ul;
	if (mmap((void *)data, 2 * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
		 -1, 0) != (void *)data)
		die("mmap");
	filter(0, SYS_nanosleep, SECCOMP_RET_TRACE);
	read_below_data(reading);
}

/* Where the kernel's code begins. */
static unsigned long kernel_text(void)
{
	FILE *symbols = fopen("/proc/kallsyms", "r");
	unsigned long address, text = 0;
	char name[200];

	while (symbols && !text && fscanf(symbols, "%lx %*c %199s%*[^\n]", &address, name) == 2)
		if (strcmp(name, "_text") == 0)
			text = address;
	if (!text)
		die("/proc/kallsyms");
	fclose(symbols);
	return text;
}

/*
 * Comes when the filter is about to judge, moves the thread's data and is gone before the
 * call is over, so that nothing about the thread tells of it.
 */
static void move_data_and_go(pid_t rider, struct reading *reading)
{
	unsigned long data = kernel_text() + BELOW;
	unsigned int turn;
	int status;

	AWAIT_RIDES(20000);
	for (turn = reading->turns; reading->turns == turn;)
		;
	MUST(ptrace(PTRACE_SEIZE, rider, 0, PTRACE_O_TRACESECCOMP));
	MUST(waitpid(rider, &status, __WALL));
	if (status >> 8 != (SIGTRAP | PTRACE_EVENT_SECCOMP << 8))
		die("another stop");
	reading->reads_before = reading->reads;
	MUST(ptrace(PTRACE_POKEUSER, rider, offsetof(struct user, regs.fs_base), data));
	MUST(ptrace(PTRACE_CONT, rider, 0, 0));
	_exit(0);
}

static void tracer_between(void)
{
	struct reading *reading =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t rider = MUST(fork()), tracer;

	if (rider == 0)
		be_read_below(reading);
	tracer = MUST(fork());
	if (tracer == 0)
		move_data_and_go(rider, reading);
	expect_equal("tracer", end_of(tracer), 0);
	/* Where it reads now is kernel code. */
	expect_equal("rider", end_of(rider), 1000 + SIGSEGV);
	expect_equal("read of the kernel", reading->reads - reading->reads_before, 0);
}

static const struct scenario scenarios[] = {
	{ "refuses", filter_refuses },
	{ "on-filter", filter_on_filter },
	{ "allows", filter_allows },
	{ "traps", filter_traps },
	{ "kills-process", filter_kills_process },
	{ "kills-thread", filter_kills_thread },
	{ "on-all-threads", filter_on_all_threads },
	{ "asks-listener", filter_asks_listener },
	{ "strict-mode", strict_mode },
	{ "user-dispatch", user_dispatch },
	{ "tracer-between", tracer_between },
};
SCENARIO_MAIN(scenarios)

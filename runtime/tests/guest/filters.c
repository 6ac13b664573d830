/*
 * Seccomp filters over calls made in a ride: every verdict there is, each
 * reached by a call that comes right after one that rode.
 */
#include "session.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <ucontext.h>

/* A call that may ride, of a process that is there and of two that are not. */
#define JUDGED SYS_getpgid
#define SELF 0
#define NOBODY 0x7ffffff0
#define NOBODY_ELSE 0x7ffffff1

/* The verdict for JUDGED when its first argument is `argument`; all else is allowed. */
static int install(unsigned int argument, unsigned int verdict, unsigned int flags)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 5),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, JUDGED, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, argument, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, verdict),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof(code) / sizeof(code[0]), .filter = code };

	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	return MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program));
}

/* A call that is allowed and, in the next gap's reach, one that is judged. */
static __attribute__((noinline)) long pair(long argument)
{
	call0(SYS_getuid);
	return call3(JUDGED, argument, 0, 0);
}

/* Counts what the pairs gave: normal results, ESRCH, EXDEV, others. One in ten is about `other`. */
static __attribute__((noinline)) void judge(int pairs, long other, long results[4])
{
	for (int i = 0; i < pairs; i++) {
		/* Of nobody, the kernel itself says ESRCH. */
		long result = pair(i % 10 == 7 ? other : SELF);

		results[result >= 0 ? 0 : result == -ESRCH ? 1 : result == -EXDEV ? 2 : 3]++;
	}
}

static void warm_up(void)
{
	long ignored[4] = { 0 };

	WARM_UP_ALL(20, judge(10, SELF, ignored));
}

static void count_results(const char *what)
{
	long results[4] = { 0 };

	judge(1000, NOBODY, results);
	printf("%s: %ld normal, %ld ESRCH, %ld EXDEV, %ld others\n", what, results[0], results[1],
	       results[2], results[3]);
}

static void errors(void)
{
	warm_up();
	count_results("no filter");
	install(NOBODY, SECCOMP_RET_ERRNO | EXDEV, 0);
	count_results("one argument");
	/* The strictest of several filters counts. */
	install(SELF, SECCOMP_RET_LOG, 0);
	install(SELF, SECCOMP_RET_ERRNO | EXDEV, 0);
	count_results("the other as well");
}

/* Begins before there is anything hot: all rides are under the filter. */
static void from_the_start(void)
{
	install(NOBODY, SECCOMP_RET_ERRNO | EXDEV, 0);
	warm_up();
	count_results("from the start");
	/* No tracer: ENOSYS. */
	install(NOBODY_ELSE, SECCOMP_RET_TRACE | 1, 0);
	printf("traced by nobody: %ld\n", pair(NOBODY_ELSE));
	count_results("and on");
}

static volatile int traps;

static void on_trap(int signal, siginfo_t *info, void *context)
{
	ucontext_t *user = context;
	greg_t *registers = user->uc_mcontext.gregs;

	if (signal != SIGSYS || info->si_code != 1 /* SYS_SECCOMP */ || info->si_syscall != JUDGED ||
	    info->si_arch != AUDIT_ARCH_X86_64 || info->si_errno != 77 ||
	    info->si_call_addr != (void *)registers[REG_RIP] || registers[REG_RAX] != JUDGED ||
	    registers[REG_RDI] != NOBODY || registers[REG_RCX] != registers[REG_RIP])
		printf("trap: WRONG %d %d %d\n", info->si_code, info->si_syscall, info->si_errno);
	traps++;
	registers[REG_RAX] = -EXDEV;
}

static void trapped(void)
{
	struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO };

	MUST(sigaction(SIGSYS, &action, NULL));
	install(NOBODY, SECCOMP_RET_TRAP | 77, 0);
	warm_up();
	count_results("trapped");
	printf("trapped: %d signals\n", traps);
}

static void *ends_here(void *warm)
{
	WARM_UP_ALL(2, pair(SELF));
	*(volatile int *)warm = 1;
	pair(NOBODY);
	*(volatile int *)warm = 2;
	return NULL;
}

/* Threads that their filter ends, one after the other; the program goes on. */
static void thread_killed(void)
{
	install(NOBODY, SECCOMP_RET_KILL_THREAD, 0);
	for (int i = 0; i < 3; i++) {
		volatile int warm = 0;
		pthread_t thread;

		if (pthread_create(&thread, NULL, ends_here, (void *)&warm))
			die("pthread_create");
		pthread_join(thread, NULL);
		printf("thread %d: %s\n", i, warm == 1 ? "ended by its filter" : "NOT ended");
	}
	for (int i = 0; i < 1000; i++)
		MUST(pair(SELF));
	printf("the program goes on\n");
}

#define STRICT_MODE 1

static void child_killed(const char *what, unsigned int verdict)
{
	pid_t child = MUST(fork());
	int status;

	if (child == 0) {
		struct rlimit none = { 0, 0 };

		MUST(setrlimit(RLIMIT_CORE, &none));
		if (verdict != STRICT_MODE)
			install(NOBODY, verdict, 0);
		WARM_UP_ALL(2, pair(SELF));
		if (verdict == STRICT_MODE)
			MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
		pair(NOBODY);
		_exit(1);
	}
	MUST(waitpid(child, &status, 0));
	printf("%s: signal %d, exit %d\n", what, WTERMSIG(status), WEXITSTATUS(status));
}

struct listener {
	int fd;
	int answered;
};

static void *answer(void *argument)
{
	struct listener *listener = argument;
	struct seccomp_notif request;
	struct seccomp_notif_resp response;

	while (listener->answered < 200) {
		struct pollfd ready = { .fd = listener->fd, .events = POLLIN };

		MUST(poll(&ready, 1, -1));
		memset(&request, 0, sizeof(request));
		MUST(ioctl(listener->fd, SECCOMP_IOCTL_NOTIF_RECV, &request));
		memset(&response, 0, sizeof(response));
		response.id = request.id;
		if (listener->answered % 2)
			response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
		else
			response.error = -EXDEV;
		listener->answered++;
		MUST(ioctl(listener->fd, SECCOMP_IOCTL_NOTIF_SEND, &response));
	}
	return NULL;
}

/* A listener that is asked, while the ridden call sleeps in its filter. */
static void listened_to(void)
{
	struct listener listener = { 0 };
	long refused = 0, made = 0;
	pthread_t thread;

	listener.fd = install(NOBODY, SECCOMP_RET_USER_NOTIF, SECCOMP_FILTER_FLAG_NEW_LISTENER);
	if (pthread_create(&thread, NULL, answer, &listener))
		die("pthread_create");
	WARM_UP_ALL(2, pair(SELF));
	for (int i = 0; i < 200; i++) {
		long result = pair(NOBODY);

		refused += result == -EXDEV;
		made += result == -ESRCH;
	}
	pthread_join(thread, NULL);
	printf("listener: %d asked, %ld refused, %ld made\n", listener.answered, refused, made);
}

struct together {
	volatile long calls;
	volatile int filtered;
	volatile long late;
};

static void *call_on(void *argument)
{
	struct together *together = argument;

	while (!together->filtered) {
		pair(NOBODY);
		together->calls++;
	}
	for (int i = 0; i < 1000; i++)
		together->late += pair(NOBODY) != -EXDEV;
	return NULL;
}

/* A filter that another thread puts over one that is riding. */
static void for_all_threads(void)
{
	struct together together = { 0 };
	pthread_t thread;

	if (pthread_create(&thread, NULL, call_on, &together))
		die("pthread_create");
	AWAIT_RIDES(2000);
	install(NOBODY, SECCOMP_RET_ERRNO | EXDEV, SECCOMP_FILTER_FLAG_TSYNC);
	together.filtered = 1;
	pthread_join(thread, NULL);
	printf("all threads: %ld calls after the filter\n", together.late);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	if (!strcmp(mode, "errors"))
		errors();
	else if (!strcmp(mode, "start"))
		from_the_start();
	else if (!strcmp(mode, "trap"))
		trapped();
	else if (!strcmp(mode, "thread"))
		thread_killed();
	else if (!strcmp(mode, "listener"))
		listened_to();
	else if (!strcmp(mode, "threads"))
		for_all_threads();
	else if (!strcmp(mode, "children")) {
		child_killed("process", SECCOMP_RET_KILL_PROCESS);
		child_killed("last thread", SECCOMP_RET_KILL_THREAD);
		child_killed("strict mode", STRICT_MODE);
	} else
		return 2;
	return 0;
}

/* clone and clone3 with each flag that says what child and parent share. */
#include "scenario.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#define STACK (1 << 16)

static volatile int ready, stop;
static volatile long number;

/* Rides on its own behalf: with CLONE_VM in fragments of the parent's making. */
static void ride_a_while(void)
{
	WARM_STEPS();
	ridden_steps(300, 1);
}

static char *new_stack(void)
{
	char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (stack == MAP_FAILED)
		die("mmap");
	return stack + STACK;
}

static int run_child(int (*run)(void *), int flags)
{
	ride_a_while();
	return end_of(MUST(clone(run, new_stack(), flags | SIGCHLD, NULL)));
}

static __attribute__((noinline)) void add_often(volatile long *sum, int times)
{
	for (int i = 0; i < times; i++) {
		*sum += 1;
		call0(SYS_getuid);
	}
}

static void warm_adding(void)
{
	volatile long sum = 0;

	WARM_UP_ALL(4, add_often(&sum, 4));
}

static int add_to_number(void *unused)
{
	(void)unused;
	/* Without thread-local storage of its own: no libc in here. */
	add_often(&number, 500);
	return 4;
}

/* Fragments are of the memory: what was warmed up is the parent's. */
static int warm_and_add(void *unused)
{
	warm_adding();
	return add_to_number(unused);
}

static void memory_shared(void)
{
	warm_adding();
	expect_equal("child", run_child(add_to_number, CLONE_VM), 4);
	expect_equal("number", number, 500);
}

static void memory_copied(void)
{
	expect_equal("child", run_child(warm_and_add, 0), 4);
	expect_equal("number", number, 0);
}

static void memory_lent(void)
{
	warm_adding();
	expect_equal("child", run_child(add_to_number, CLONE_VM | CLONE_VFORK), 4);
	expect_equal("number", number, 500);
}

static int open_file(void *unused)
{
	(void)unused;
	ride_a_while();
	return dup2(0, 600) == 600 ? 0 : 1;
}

static void files_shared(void)
{
	expect_equal("child", run_child(open_file, CLONE_FILES), 0);
	expect_equal("file is there", fcntl(600, F_GETFD) >= 0, 1);
}

static void files_copied(void)
{
	expect_equal("child", run_child(open_file, 0), 0);
	expect_equal("file is there", fcntl(600, F_GETFD) >= 0, 0);
}

static int change_folder(void *unused)
{
	(void)unused;
	ride_a_while();
	umask(0171);
	return chdir("/proc");
}

static void print_folder(void)
{
	char folder[100];

	printf("folder %s, mask %o\n", getcwd(folder, sizeof(folder)), umask(022));
}

static void folder_shared(void)
{
	MUST(chdir("/"));
	expect_equal("child", run_child(change_folder, CLONE_FS), 0);
	print_folder();
}

static void folder_copied(void)
{
	MUST(chdir("/"));
	umask(027);
	expect_equal("child", run_child(change_folder, 0), 0);
	print_folder();
}

static int ignore_signal(void *unused)
{
	struct sigaction action = { .sa_handler = SIG_IGN };

	(void)unused;
	ridden_steps(100, 1);
	return sigaction(SIGUSR1, &action, NULL);
}

static void handlers_shared(void)
{
	struct sigaction now;

	expect_equal("child", run_child(ignore_signal, CLONE_VM | CLONE_SIGHAND), 0);
	MUST(sigaction(SIGUSR1, NULL, &now));
	expect_equal("ignored", now.sa_handler == SIG_IGN, 1);
}

static void handlers_copied(void)
{
	struct sigaction now;

	expect_equal("child", run_child(ignore_signal, CLONE_VM), 0);
	MUST(sigaction(SIGUSR1, NULL, &now));
	expect_equal("ignored", now.sa_handler == SIG_IGN, 0);
}

static int parent_of_child(void *parent)
{
	(void)parent;
	ride_a_while();
	return getppid() & 0x3f;
}

static void parent_shared(void)
{
	int expected = getppid() & 0x3f;
	pid_t child;

	ride_a_while();
	/* The child is our parent's: that one reaps it, we cannot. */
	child = MUST(fork());
	if (child == 0) {
		MUST(clone(parent_of_child, new_stack(), CLONE_PARENT | SIGCHLD, NULL));
		_exit(0);
	}
	expected = getpid() & 0x3f;
	int ends[] = { end_of(-1), end_of(-1) };
	expect_equal("one of the children knew", ends[0] == expected || ends[1] == expected, 1);
}

static volatile int child_tid = -1, parent_tid;

static int thread_body(void *unused)
{
	(void)unused;
	add_often(&number, 500);
	call3(SYS_exit, 0, 0, 0);
	return 0;
}

/* A thread without libc: it is over when the kernel clears its number and wakes us. */
static void thread_by_hand(void)
{
	warm_adding();
	for (int round = 0; round < 5; round++) {
		number = 0;
		MUST(clone(thread_body, new_stack(),
			   CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD |
				   CLONE_SYSVSEM | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID |
				   CLONE_PARENT_SETTID,
			   NULL, &parent_tid, NULL, &child_tid));
		while (child_tid)
			call4(SYS_futex, (long)&child_tid, FUTEX_WAIT, child_tid, 0);
		child_tid = -1;
		expect_equal("number", number, 500);
		expect_equal("told its number", parent_tid > 0, 1);
	}
}

/* Who does not see the supervisor cannot ask for rides: its parent does. */
static volatile int *seen_riding;

static int same_pid(void *unused)
{
	(void)unused;
	ride_until(seen_riding);
	return getpid() == 1 ? 5 : 6;
}

static void run_unseeing_child(int flags)
{
	pid_t child;

	seen_riding = mmap(NULL, sizeof(*seen_riding), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (seen_riding == MAP_FAILED)
		die("mmap");
	child = MUST(clone(same_pid, new_stack(), flags | SIGCHLD, NULL));
	AWAIT_RIDES(500);
	*seen_riding = 1;
	expect_equal("child", end_of(child), 5);
}

static void own_pids(void)
{
	run_unseeing_child(CLONE_NEWPID);
}

static int rename_host(void *unused)
{
	(void)unused;
	ride_a_while();
	return sethostname("other", 5);
}

static void own_host_name(void)
{
	struct utsname before, after;

	uname(&before);
	expect_equal("child", run_child(rename_host, CLONE_NEWUTS), 0);
	uname(&after);
	expect_equal("our name", strcmp(before.nodename, after.nodename), 0);
}

static void own_user_ids(void)
{
	run_unseeing_child(CLONE_NEWUSER | CLONE_NEWPID);
}

static int io_child(void *unused)
{
	(void)unused;
	ride_a_while();
	return 8;
}

static void io_shared(void)
{
	expect_equal("child", run_child(io_child, CLONE_IO), 8);
	expect_equal("untraced child", run_child(io_child, CLONE_UNTRACED), 8);
}

static long clone3(struct clone_args *arguments)
{
	return syscall(SYS_clone3, arguments, sizeof(*arguments));
}

static void clone3_as_fork(void)
{
	struct clone_args arguments = { .exit_signal = SIGCHLD };
	pid_t child;

	ride_a_while();
	child = MUST(clone3(&arguments));
	if (child == 0) {
		ride_a_while();
		_exit(ridden_steps(100, 5) & 0x3f);
	}
	printf("child %d\n", end_of(child));
}

static void clone3_with_file(void)
{
	int file = -1;
	struct clone_args arguments = { .flags = CLONE_PIDFD, .exit_signal = SIGCHLD,
					.pidfd = (uintptr_t)&file };
	struct pollfd ended;
	siginfo_t info = { 0 };
	pid_t child;

	ride_a_while();
	child = MUST(clone3(&arguments));
	if (child == 0) {
		ride_a_while();
		ride_until(&stop);
	}
	ended = (struct pollfd){ .fd = file, .events = POLLIN };
	AWAIT_RIDES(500);
	expect_equal("running", poll(&ended, 1, 50), 0);
	MUST(syscall(SYS_pidfd_send_signal, file, SIGTERM, NULL, 0));
	expect_equal("ended", poll(&ended, 1, 10000), 1);
	MUST(waitid(P_PIDFD, file, &info, WEXITED));
	expect_equal("killed by", info.si_status, SIGTERM);
}

static void on_signal(int signal)
{
	(void)signal;
	number++;
}

static void clone3_clears_handlers(void)
{
	struct clone_args arguments = { .flags = CLONE_CLEAR_SIGHAND, .exit_signal = SIGCHLD };
	struct sigaction now;
	pid_t child;

	signal(SIGUSR1, on_signal);
	ride_a_while();
	child = MUST(clone3(&arguments));
	if (child == 0) {
		ride_a_while();
		sigaction(SIGUSR1, NULL, &now);
		_exit(now.sa_handler == SIG_DFL ? 3 : 4);
	}
	expect_equal("child", end_of(child), 3);
}

static void clone3_sets_number(void)
{
	pid_t wanted = 4000;
	struct clone_args arguments = { .exit_signal = SIGCHLD, .set_tid = (uintptr_t)&wanted,
					.set_tid_size = 1 };
	pid_t child;

	ride_a_while();
	/* The same number again and again: nothing may be left of the one before. */
	for (int i = 0; i < 5; i++) {
		child = MUST(clone3(&arguments));
		if (child == 0) {
			ride_a_while();
			_exit(getpid() == wanted ? ridden_steps(50, i) & 0x3f : 99);
		}
		expect_equal("number", child, wanted);
		printf("child %d\n", end_of(child));
	}
}

static void clone3_without_signal(void)
{
	struct clone_args arguments = { .exit_signal = 0 };
	pid_t child;

	signal(SIGCHLD, on_signal);
	ride_a_while();
	child = MUST(clone3(&arguments));
	if (child == 0) {
		ride_a_while();
		_exit(6);
	}
	expect_equal("child", end_of(child), 6);
	expect_equal("signals", number, 0);
}

static void unshared(void)
{
	struct utsname name;
	pid_t child;

	ride_a_while();
	child = MUST(fork());
	if (child == 0) {
		ride_a_while();
		MUST(unshare(CLONE_FILES | CLONE_FS | CLONE_NEWUTS | CLONE_NEWNS));
		MUST(sethostname("alone", 5));
		ride_a_while();
		uname(&name);
		_exit(strcmp(name.nodename, "alone") == 0);
	}
	expect_equal("child", end_of(child), 1);
	uname(&name);
	expect_equal("our name changed", strcmp(name.nodename, "alone") == 0, 0);
}

static const struct scenario scenarios[] = {
	{ "memory-shared", memory_shared },
	{ "memory-copied", memory_copied },
	{ "memory-lent", memory_lent },
	{ "files-shared", files_shared },
	{ "files-copied", files_copied },
	{ "folder-shared", folder_shared },
	{ "folder-copied", folder_copied },
	{ "handlers-shared", handlers_shared },
	{ "handlers-copied", handlers_copied },
	{ "parent-shared", parent_shared },
	{ "thread-by-hand", thread_by_hand },
	{ "own-pids", own_pids },
	{ "own-host-name", own_host_name },
	{ "own-user-ids", own_user_ids },
	{ "io-shared", io_shared },
	{ "clone3-as-fork", clone3_as_fork },
	{ "clone3-with-file", clone3_with_file },
	{ "clone3-clears-handlers", clone3_clears_handlers },
	{ "clone3-sets-number", clone3_sets_number },
	{ "clone3-without-signal", clone3_without_signal },
	{ "unshared", unshared },
};
SCENARIO_MAIN(scenarios)

/* Children of every kind: fork, vfork, clone with its flags, clone3, posix_spawn, and how they end. */
#include "scenario.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

static volatile int stop;
static volatile long number;
extern char **environ;

/* Rides in its own right, so that it shows what the child's memory is. */
static int child_work(long seed)
{
	WARM_STEPS();
	return ridden_steps(500, seed) & 0x3f;
}

static __attribute__((noinline)) void add_often(volatile long *sum, long each, int times)
{
	for (int i = 0; i < times; i++) {
		*sum += each;
		call0(SYS_getuid);
	}
}

static void copies_memory(void)
{
	volatile long warm = 0;
	pid_t child;

	WARM_UP_ALL(4, add_often(&warm, 1, 4));
	number = 5;
	child = MUST(fork());
	if (child == 0)
		WARM_UP_ALL(4, add_often(&warm, 2, 4));
	add_often(&number, child ? 1 : 2, 1000);
	if (child == 0)
		_exit(number == 2005);
	expect_equal("child's number is its own", end_of(child), 1);
	expect_equal("parent's number", number, 1005);
}

static void child_rides(void)
{
	pid_t child;

	WARM_STEPS();
	child = MUST(fork());
	if (child == 0)
		_exit(child_work(7));
	printf("child %d, parent %lx\n", end_of(child), (unsigned long)ridden_steps(500, 7));
}

static void many_forks(void)
{
	uint64_t sum = 0;

	WARM_STEPS();
	for (long i = 0; i < 60; i++) {
		pid_t child = MUST(fork());

		if (child == 0)
			_exit(ridden_steps(30, i) & 0x7f);
		sum = step(sum + end_of(child) + ridden_steps(30, i));
	}
	printf("sum %lx\n", (unsigned long)sum);
}

static void generations(void)
{
	for (int depth = 0; depth < 5; depth++) {
		WARM_STEPS();
		pid_t child = MUST(fork());

		ridden_steps(50, depth);
		if (child) {
			int end = end_of(child);

			if (depth)
				_exit(end + 1);
			expect_equal("generations", end, 4 + 9);
			return;
		}
	}
	_exit(9);
}

static void *fork_often(void *failures)
{
	for (int i = 0; i < 20; i++) {
		pid_t child = MUST(fork());

		if (child == 0)
			_exit(ridden_steps(10, i) & 0x3f);
		*(long *)failures += end_of(child) != (int)(ridden_steps(10, i) & 0x3f);
	}
	return NULL;
}

static pthread_t riders[3];

/* Returns when they ride, which they go on with. */
static void start_riders(int count)
{
	WARM_STEPS();
	for (int i = 0; i < count; i++)
		riders[i] = start_thread(ride_along, (void *)&stop);
	AWAIT_RIDES(500);
}

static void fork_while_others_ride(void)
{
	pthread_t forker;
	long failures = 0;

	start_riders(2);
	forker = start_thread(fork_often, &failures);
	join_thread(forker);
	stop = 1;
	for (int i = 0; i < 2; i++)
		expect_equal("rider went on", (long)join_thread(riders[i]) > 0, 1);
	expect_equal("failures", failures, 0);
}

static void vfork_and_exit(void)
{
	WARM_STEPS();
	for (int i = 0; i < 20; i++) {
		pid_t child = vfork();

		if (child == 0) {
			/* In the parent's memory, with the parent's translations. */
			number += ridden_steps(10, i) & 0xff;
			_exit(i);
		}
		expect_equal("child", end_of(child), i);
	}
	printf("number %ld\n", number);
}

static void work(void)
{
	exit(child_work(11));
}

static void vfork_and_execute(void)
{
	WARM_STEPS();
	for (int i = 0; i < 2; i++) {
		pid_t child = vfork();

		if (child == 0) {
			become("-work");
			_exit(99);
		}
		printf("child %d\n", end_of(child));
	}
}

static void fork_and_execute(void)
{
	pid_t child;

	WARM_STEPS();
	child = MUST(fork());
	if (child == 0) {
		ridden_steps(100, 1);
		become("-work");
	}
	printf("child %d\n", end_of(child));
}

static void not_executed(void)
{
	char *arguments[] = { "x", NULL };

	WARM_STEPS();
	for (int i = 0; i < 3; i++) {
		ridden_steps(20, 1);
		expect_equal("missing", (execv("/nowhere", arguments), errno), ENOENT);
		ridden_steps(20, 1);
		expect_equal("a folder", (execv("/tmp", arguments), errno), EACCES);
	}
	printf("sum %lx\n", (unsigned long)ridden_steps(100, 3));
}

static void execute_by_file(void)
{
	pid_t child;
	char *arguments[] = { "x", "-work", NULL };
	int file = MUST(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));

	WARM_STEPS();
	child = MUST(fork());
	if (child == 0)
		fexecve(file, arguments, environ);
	printf("child %d\n", end_of(child));
}

/* Handlers, the alternate stack and files marked for it do not outlive exec. */
static void on_signal(int signal)
{
	(void)signal;
	number++;
}

static void check_reset(void)
{
	struct sigaction action;
	sigset_t blocked;
	stack_t stack;

	WARM_STEPS();
	MUST(sigaction(SIGUSR1, NULL, &action));
	expect_equal("handler", action.sa_handler == SIG_DFL, 1);
	MUST(sigaction(SIGUSR2, NULL, &action));
	expect_equal("ignored", action.sa_handler == SIG_IGN, 1);
	MUST(sigprocmask(0, NULL, &blocked));
	expect_equal("blocked", sigismember(&blocked, SIGHUP), 1);
	MUST(sigaltstack(NULL, &stack));
	expect_equal("stack", stack.ss_flags, SS_DISABLE);
	expect_equal("file", fcntl(700, F_GETFD), -1);
	expect_equal("number", number, 0);
}

static void execution_resets(void)
{
	static char stack[1 << 14];
	sigset_t set;
	int file;

	number = 3;
	WARM_STEPS();
	signal(SIGUSR1, on_signal);
	signal(SIGUSR2, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	MUST(sigaltstack(&(stack_t){ .ss_sp = stack, .ss_size = sizeof(stack) }, NULL));
	file = MUST(open("/dev/null", O_RDONLY));
	MUST(dup3(file, 700, O_CLOEXEC));
	ridden_steps(100, 1);
	become("-check-reset");
}

static void *become_work(void *unused)
{
	/* The leader rides as well by now. */
	AWAIT_RIDES(500);
	ridden_steps(100, 1);
	become("-work");
	return unused;
}

/* The leader's pid goes to the thread that executes; all others end. */
static void execute_from_thread(void)
{
	pid_t child = MUST(fork());

	if (child == 0) {
		start_riders(2);
		start_thread(become_work, NULL);
		ride_until(&stop);
	}
	printf("child %d\n", end_of(child));
}

static void execute_from_leader(void)
{
	pid_t child = MUST(fork());

	if (child == 0) {
		start_riders(3);
		ridden_steps(1000, 1);
		become("-work");
	}
	printf("child %d\n", end_of(child));
}

static void exit_while_others_ride(void)
{
	for (int i = 0; i < 5; i++) {
		pid_t child = MUST(fork());

		if (child == 0) {
			start_riders(3);
			ridden_steps(500, 1);
			_exit(40 + i);
		}
		expect_equal("end", end_of(child), 40 + i);
	}
}

static void *exit_all(void *status)
{
	AWAIT_RIDES(500);
	ridden_steps(500, 1);
	_exit((long)status);
}

static void exit_from_thread(void)
{
	for (long i = 0; i < 5; i++) {
		pid_t child = MUST(fork());

		if (child == 0) {
			start_riders(1);
			start_thread(exit_all, (void *)(50 + i));
			ride_until(&stop);
		}
		expect_equal("end", end_of(child), 50 + i);
	}
}

static void *end_last(void *leader)
{
	join_thread((pthread_t)leader);
	ridden_steps(3000, 1);
	exit(23);
}

static void leader_ends_first(void)
{
	pid_t child = MUST(fork());

	if (child == 0) {
		WARM_STEPS();
		start_thread(end_last, (void *)pthread_self());
		pthread_exit(NULL);
	}
	expect_equal("end", end_of(child), 23);
}

static void killed_by_own_signal(void)
{
	static const int signals[] = { SIGTERM, SIGABRT, SIGSEGV, SIGUSR1, SIGKILL };

	for (size_t i = 0; i < COUNT_OF(signals); i++) {
		pid_t child = MUST(fork());

		if (child == 0) {
			prctl(PR_SET_DUMPABLE, 0);
			start_riders(1);
			ridden_steps(200, 1);
			kill(getpid(), signals[i]);
			ride_until(&stop);
		}
		expect_equal("end", end_of(child), 1000 + signals[i]);
	}
}

static void spawned(void)
{
	char *arguments[] = { "scenario", "-work", NULL };
	pid_t child;

	WARM_STEPS();
	for (int i = 0; i < 2; i++) {
		ridden_steps(50, 1);
		errno = posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environ);
		if (errno)
			die("posix_spawn");
		printf("child %d\n", end_of(child));
	}
	expect_equal("missing", posix_spawn(&child, "/nowhere", NULL, NULL, arguments, environ), ENOENT);
}

static void say_hello(void)
{
	WARM_STEPS();
	ridden_steps(100, 1);
	printf("hello\n");
}

static void spawned_with_actions(void)
{
	char *arguments[] = { "scenario", "-say-hello", NULL }, text[32] = "";
	posix_spawn_file_actions_t actions;
	int ends[2];
	pid_t child;

	MUST(pipe2(ends, O_CLOEXEC));
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
	WARM_STEPS();
	ridden_steps(100, 1);
	errno = posix_spawn(&child, "/proc/self/exe", &actions, NULL, arguments, environ);
	if (errno)
		die("posix_spawn");
	close(ends[1]);
	MUST(read(ends[0], text, sizeof(text) - 1));
	printf("read %s", text);
	expect_equal("child", end_of(child), 0);
}

static void through_the_shell(void)
{
	char text[64] = "";
	FILE *pipe;

	WARM_STEPS();
	ridden_steps(100, 1);
	expect_equal("system", system("exit 5") >> 8, 5);
	ridden_steps(100, 1);
	pipe = popen("echo one; echo two", "r");
	while (fgets(text, sizeof(text), pipe))
		printf("%s", text);
	expect_equal("pclose", pclose(pipe), 0);
}

/* The daemon's way: the grandchild goes on when its parent is gone. */
static void orphaned(void)
{
	int ends[2];
	long sum;
	pid_t child;

	MUST(pipe(ends));
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	child = MUST(fork());
	if (child == 0) {
		setsid();
		if (MUST(fork()))
			_exit(1);
		WARM_STEPS();
		sum = ridden_steps(500, 21);
		MUST(write(ends[1], &sum, sizeof(sum)));
		_exit(2);
	}
	expect_equal("child", end_of(child), 1);
	MUST(read(ends[0], &sum, sizeof(sum)));
	printf("sum %lx\n", sum);
	expect_equal("grandchild", end_of(-1), 2);
}

static void death_of_parent(void)
{
	int ends[2];
	char byte = 0;
	pid_t child;

	MUST(pipe(ends));
	child = MUST(fork());
	if (child == 0) {
		pid_t grandchild = MUST(fork());

		if (grandchild == 0) {
			MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
			WARM_STEPS();
			MUST(write(ends[1], &byte, 1));
			ride_until(&stop);
		}
		MUST(read(ends[0], &byte, 1));
		AWAIT_RIDES(500);
		_exit(0);
	}
	close(ends[1]);
	expect_equal("child", end_of(child), 0);
	/* End of file once the grandchild is dead. */
	expect_equal("end of file", read(ends[0], &byte, 1), 0);
}

static void children_are_reported(void)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	siginfo_t info = { 0 };
	pid_t child;

	MUST(sigaction(SIGCHLD, &action, NULL));
	WARM_STEPS();
	for (int i = 0; i < 10; i++) {
		child = MUST(fork());
		if (child == 0)
			_exit(i);
		while (number <= i)
			ridden_steps(10, 1);
		MUST(waitid(P_PID, child, &info, WEXITED | WNOWAIT));
		expect_equal("status", info.si_status, i);
		expect_equal("child", end_of(child), i);
	}
	expect_equal("signals", number, 10);
}

static void resource_use_of_children(void)
{
	struct rusage use;
	pid_t child = MUST(fork());
	int status;

	if (child == 0) {
		WARM_STEPS();
		double until = seconds() + 0.1;
		while (seconds() < until)
			ridden_steps(100, 1);
		_exit(0);
	}
	MUST(wait4(child, &status, 0, &use));
	double used = use.ru_utime.tv_sec + use.ru_utime.tv_usec * 1e-6 + use.ru_stime.tv_sec +
		      use.ru_stime.tv_usec * 1e-6;
	printf("child used its time: %s\n", used > 0.05 && used < 20 ? "yes" : "FAILED");
}

static const struct scenario scenarios[] = {
	{ "-work", work },
	{ "-check-reset", check_reset },
	{ "-say-hello", say_hello },
	{ "copies-memory", copies_memory },
	{ "child-rides", child_rides },
	{ "many-forks", many_forks },
	{ "generations", generations },
	{ "fork-while-others-ride", fork_while_others_ride },
	{ "vfork-and-exit", vfork_and_exit },
	{ "vfork-and-execute", vfork_and_execute },
	{ "fork-and-execute", fork_and_execute },
	{ "not-executed", not_executed },
	{ "execute-by-file", execute_by_file },
	{ "execution-resets", execution_resets },
	{ "execute-from-thread", execute_from_thread },
	{ "execute-from-leader", execute_from_leader },
	{ "exit-while-others-ride", exit_while_others_ride },
	{ "exit-from-thread", exit_from_thread },
	{ "leader-ends-first", leader_ends_first },
	{ "killed-by-own-signal", killed_by_own_signal },
	{ "spawned", spawned },
	{ "spawned-with-actions", spawned_with_actions },
	{ "through-the-shell", through_the_shell },
	{ "orphaned", orphaned },
	{ "death-of-parent", death_of_parent },
	{ "children-are-reported", children_are_reported },
	{ "resource-use-of-children", resource_use_of_children },
};
SCENARIO_MAIN(scenarios)

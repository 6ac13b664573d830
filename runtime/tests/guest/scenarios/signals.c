/* Signals at every point of a ride: how they are delivered, queued, masked, and what handlers see. */
#include "scenario.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/time.h>
#include <ucontext.h>

static volatile sig_atomic_t handled;
static volatile int stop;

static void count_signal(int signal)
{
	(void)signal;
	handled++;
}

static void handle(int signal, void (*handler)(int), int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags };

	MUST(sigaction(signal, &action, NULL));
}

static void handle_info(int signal, void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = flags | SA_SIGINFO };

	MUST(sigaction(signal, &action, NULL));
}

static __attribute__((noinline)) void change_mask(int how, int signal)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, signal);
	MUST(sigprocmask(how, &set, NULL));
}

/* What becomes pending in between is handled in a ride: at the end of the call that unblocks. */
#define WARM_MASK(signal)                                                      \
	WARM_UP_ALL(2, ({ change_mask(SIG_BLOCK, signal); change_mask(SIG_UNBLOCK, signal); }))

/* A signal to oneself: it is handled before the next instruction of the program. */
static __attribute__((noinline)) int signal_self(int signal)
{
	int before = handled;

	call3(SYS_tgkill, getpid(), gettid(), signal);
	return handled - before;
}
#define WARM_SIGNAL_SELF() WARM_UP_ALL(4, ({ signal_self(0); call0(SYS_getuid); }))

static void to_self(void)
{
	long late = 0;

	handle(SIGUSR1, count_signal, 0);
	WARM_SIGNAL_SELF();
	for (int i = 0; i < 300; i++) {
		call0(SYS_getuid);
		late += signal_self(SIGUSR1) != 1;
	}
	expect_equal("late", late, 0);
	expect_equal("handled", handled, 300);
}

/* Steps that only come out right if none is lost or repeated. */
static void expect_intact(uint64_t x, long count)
{
	uint64_t again = 1;

	for (long i = 0; i < count; i++)
		again = step(again);
	expect_equal("sequence", x == again, 1);
}

static void step_until_handled(long signals)
{
	uint64_t x = 1;
	long count = 0;

	for (; handled < signals; count += 50)
		x = ridden_steps(50, x);
	expect_intact(x, count);
}

static void under_timer(timer_t timer, long nanoseconds, long signals)
{
	struct itimerspec period = { .it_value.tv_nsec = nanoseconds,
				     .it_interval.tv_nsec = nanoseconds };

	WARM_STEPS();
	MUST(timer_settime(timer, 0, &period, NULL));
	step_until_handled(signals);
}

static timer_t new_timer(clockid_t clock, int signal)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = signal };
	timer_t timer;

	MUST(timer_create(clock, &event, &timer));
	return timer;
}

static void timer_10_khz(void)
{
	handle(SIGRTMIN, count_signal, SA_RESTART);
	under_timer(new_timer(CLOCK_MONOTONIC, SIGRTMIN), 100 * 1000, 500);
}

static void timer_on_stack(void)
{
	static char stack[1 << 16];
	stack_t alternate = { .ss_sp = stack, .ss_size = sizeof(stack) };

	MUST(sigaltstack(&alternate, NULL));
	handle(SIGRTMIN, count_signal, SA_RESTART | SA_ONSTACK);
	under_timer(new_timer(CLOCK_MONOTONIC, SIGRTMIN), 300 * 1000, 200);
}

static void timer_of_cpu_time(void)
{
	handle(SIGRTMIN, count_signal, SA_RESTART);
	under_timer(new_timer(CLOCK_PROCESS_CPUTIME_ID, SIGRTMIN), 4 * 1000 * 1000, 10);
}

/* Handling both must leave time to make calls. */
static void two_timers(void)
{
	long usec = 700 * slowness();
	struct itimerval often = { .it_value.tv_usec = usec, .it_interval.tv_usec = usec };

	handle(SIGALRM, count_signal, SA_RESTART | SA_NODEFER);
	handle(SIGRTMIN, count_signal, SA_RESTART);
	MUST(setitimer(ITIMER_REAL, &often, NULL));
	under_timer(new_timer(CLOCK_REALTIME, SIGRTMIN), 500 * 1000 * slowness(), 400);
}

static void profiling_timer(void)
{
	struct itimerval often = { .it_value.tv_usec = 4000, .it_interval.tv_usec = 4000 };

	handle(SIGPROF, count_signal, SA_RESTART);
	WARM_STEPS();
	MUST(setitimer(ITIMER_PROF, &often, NULL));
	step_until_handled(10);
}

static uintptr_t inside;

static void on_right_stack(int signal)
{
	int here;

	(void)signal;
	inside = (uintptr_t)&here;
}

static void alternate_stack(void)
{
	char *stack = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	stack_t alternate = { .ss_sp = stack, .ss_size = 1 << 16 }, now;
	int on = 0;

	MUST(sigaltstack(&alternate, NULL));
	handle(SIGUSR1, on_right_stack, SA_ONSTACK);
	WARM_SIGNAL_SELF();
	for (int i = 0; i < 100; i++) {
		signal_self(SIGUSR1);
		on += inside > (uintptr_t)stack && inside < (uintptr_t)stack + (1 << 16);
	}
	expect_equal("on the stack", on, 100);
	MUST(sigaltstack(NULL, &now));
	expect_equal("flags", now.ss_flags, 0);
}

static volatile int depth, deepest, to_send;

static void signal_again(int signal)
{
	depth++;
	if (depth > deepest)
		deepest = depth;
	handled++;
	if (to_send-- > 0)
		signal_self(signal);
	depth--;
}

/* A handler that signals itself three times: at once, or when it has returned. */
static void signals_itself(int flags, int expected)
{
	handle(SIGUSR1, signal_again, flags);
	WARM_STEPS();
	WARM_SIGNAL_SELF();
	for (int i = 0; i < 20; i++) {
		ridden_steps(20, 1);
		to_send = 3;
		signal_self(SIGUSR1);
	}
	expect_equal("deepest", deepest, expected);
	expect_equal("handled", handled, 80);
}

static void not_deferred(void) { signals_itself(SA_NODEFER, 4); }
static void deferred(void) { signals_itself(0, 1); }

static char order[64];

static void note_and_raise(int signal)
{
	size_t length = strlen(order);

	order[length] = signal == SIGUSR1 ? '1' : '2';
	if (signal == SIGUSR1)
		signal_self(SIGUSR2);
	order[length + 1 + (signal == SIGUSR1)] = signal == SIGUSR1 ? ')' : '.';
}

static void two_kinds(void)
{
	struct sigaction action = { .sa_handler = note_and_raise };

	MUST(sigaction(SIGUSR2, &action, NULL));
	MUST(sigaction(SIGUSR1, &action, NULL));
	WARM_STEPS();
	WARM_SIGNAL_SELF();
	ridden_steps(20, 1);
	signal_self(SIGUSR1);
	printf("nested: %s\n", order);
	memset(order, 0, sizeof(order));
	sigaddset(&action.sa_mask, SIGUSR2);
	MUST(sigaction(SIGUSR1, &action, NULL));
	ridden_steps(20, 1);
	signal_self(SIGUSR1);
	printf("masked: %s\n", order);
}

static void reset_after_one(void)
{
	struct sigaction now;

	handle(SIGUSR1, count_signal, SA_RESETHAND);
	WARM_STEPS();
	WARM_SIGNAL_SELF();
	ridden_steps(20, 1);
	signal_self(SIGUSR1);
	MUST(sigaction(SIGUSR1, NULL, &now));
	printf("handled %d, default again %d\n", (int)handled, now.sa_handler == SIG_DFL);
	signal_self(SIGUSR1);
	printf("not reached: FAILED\n");
}

static int values[64], received;

static void note_value(int signal, siginfo_t *info, void *context)
{
	(void)context;
	if (received < 64)
		values[received++] = (signal - SIGRTMIN) * 1000 + info->si_value.sival_int;
}

/* Lower numbers first, each in the order of sending. */
static void real_time_queue(void)
{
	handle_info(SIGRTMIN, note_value, SA_RESTART);
	handle_info(SIGRTMIN + 1, note_value, SA_RESTART);
	WARM_STEPS();
	WARM_MASK(SIGRTMIN);
	change_mask(SIG_BLOCK, SIGRTMIN);
	change_mask(SIG_BLOCK, SIGRTMIN + 1);
	for (int i = 0; i < 20; i++) {
		ridden_steps(5, 1);
		MUST(sigqueue(getpid(), SIGRTMIN + i % 2, (union sigval){ .sival_int = i }));
	}
	expect_equal("blocked", received, 0);
	ridden_steps(200, 1);
	change_mask(SIG_UNBLOCK, SIGRTMIN + 1);
	change_mask(SIG_UNBLOCK, SIGRTMIN);
	for (int i = 0; i < received; i++)
		printf("%d ", values[i]);
	printf("\n");
}

/* Several times only what queues: of an ordinary signal, a second one is lost while it is pending. */
static pid_t send_after(int milliseconds, int signal, int times)
{
	pid_t target = getpid(), child = MUST(fork());

	if (child)
		return child;
	for (int i = 0; i < times; i++) {
		usleep(milliseconds * 1000);
		kill(target, signal);
	}
	_exit(0);
}

static siginfo_t last_info;

static void keep_info(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	last_info = *info;
	handled++;
}

static void from_another(void)
{
	pid_t sender;

	handle_info(SIGRTMIN, keep_info, 0);
	WARM_STEPS();
	sender = send_after(20, SIGRTMIN, 10);
	while (handled < 10)
		ridden_steps(10, 1);
	expect_equal("code", last_info.si_code, SI_USER);
	expect_equal("sender", last_info.si_pid, sender);
	expect_equal("sender's end", end_of(sender), 0);
}

static pthread_t target_thread;
static volatile int wrong_thread;

static void count_by_thread(int signal)
{
	(void)signal;
	handled++;
	wrong_thread += !pthread_equal(pthread_self(), target_thread);
}

static void to_a_thread(void)
{
	handle(SIGUSR1, count_by_thread, 0);
	target_thread = start_thread(ride_along, (void *)&stop);
	AWAIT_RIDES(1000);
	for (int i = 1; i <= 50; i++) {
		pthread_kill(target_thread, SIGUSR1);
		while (handled < i)
			usleep(1000);
	}
	stop = 1;
	join_thread(target_thread);
	expect_equal("in the wrong thread", wrong_thread, 0);
}

/* How often it is seen where it must not be, or not where it must. */
static __attribute__((noinline)) long block_and_unblock(int signal)
{
	int before = handled;
	sigset_t pending;
	long late;

	change_mask(SIG_BLOCK, signal);
	ridden_steps(10, 1);
	kill(getpid(), signal);
	ridden_steps(10, 1);
	late = handled != before;
	MUST(sigpending(&pending));
	late += !sigismember(&pending, signal);
	change_mask(SIG_UNBLOCK, signal);
	return late + (handled != before + 1);
}

static void pending_and_unblocked(void)
{
	long late = 0;

	handle(SIGUSR1, count_signal, 0);
	/* With no signal at all it makes the same calls. */
	WARM_UP_ALL(25, block_and_unblock(0));
	for (int i = 1; i <= 100; i++)
		late += block_and_unblock(SIGUSR1);
	expect_equal("early or late", late, 0);
	expect_equal("handled", handled, 100);
}

/* The call itself is not one that rides: it is reached in one. */
static __attribute__((noinline)) int suspend_behind_steps(const sigset_t *mask)
{
	ridden_steps(100, 1);
	return sigsuspend(mask);
}

static void suspended(void)
{
	sigset_t none;
	pid_t sender;

	sigemptyset(&none);
	handle(SIGUSR1, count_signal, 0);
	change_mask(SIG_BLOCK, SIGUSR1);
	/* With the signal pending, so that it is over at once. */
	WARM_UP_ALL(100, ({ kill(getpid(), SIGUSR1); suspend_behind_steps(&none); }));
	handled = 0;
	sender = send_after(10, SIGUSR1, 1);
	expect_equal("result", suspend_behind_steps(&none), -1);
	expect_equal("errno", errno, EINTR);
	expect_equal("handled", handled, 1);
	end_of(sender);
}

static __attribute__((noinline)) int wait_behind_steps(const sigset_t *set, siginfo_t *info)
{
	ridden_steps(50, 1);
	return sigwaitinfo(set, info);
}

static void waited_for(void)
{
	siginfo_t info;
	sigset_t set;
	pid_t sender;

	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	change_mask(SIG_BLOCK, SIGRTMIN);
	WARM_UP_ALL(50, ({ kill(getpid(), SIGRTMIN); wait_behind_steps(&set, &info); }));
	sender = send_after(10, SIGRTMIN, 3);
	for (int i = 0; i < 3; i++) {
		expect_equal("signal", wait_behind_steps(&set, &info), SIGRTMIN);
		expect_equal("sender", info.si_pid, sender);
	}
	end_of(sender);
}

static __attribute__((noinline)) long read_own_signal(int file, struct signalfd_siginfo *info)
{
	call3(SYS_kill, getpid(), SIGUSR1, 0);
	call0(SYS_getuid);
	return call3(SYS_read, file, (long)info, sizeof(*info));
}

static void read_from_file(void)
{
	struct signalfd_siginfo info;
	sigset_t set;
	int file;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	change_mask(SIG_BLOCK, SIGUSR1);
	file = MUST(signalfd(-1, &set, 0));
	WARM_UP_ALL(4, read_own_signal(file, &info));
	for (int i = 0; i < 50; i++) {
		memset(&info, 0, sizeof(info));
		if (read_own_signal(file, &info) != sizeof(info) || info.ssi_signo != SIGUSR1)
			printf("wrong: FAILED\n");
	}
	printf("read 50\n");
}

static const struct scenario scenarios[] = {
	{ "to-self", to_self },
	{ "timer-10-khz", timer_10_khz },
	{ "timer-on-alternate-stack", timer_on_stack },
	{ "timer-of-cpu-time", timer_of_cpu_time },
	{ "two-timers", two_timers },
	{ "profiling-timer", profiling_timer },
	{ "alternate-stack", alternate_stack },
	{ "not-deferred", not_deferred },
	{ "deferred", deferred },
	{ "two-kinds", two_kinds },
	{ "reset-after-one", reset_after_one },
	{ "real-time-queue", real_time_queue },
	{ "from-another", from_another },
	{ "to-a-thread", to_a_thread },
	{ "pending-and-unblocked", pending_and_unblocked },
	{ "suspended", suspended },
	{ "waited-for", waited_for },
	{ "signalfd", read_from_file },
};
SCENARIO_MAIN(scenarios)

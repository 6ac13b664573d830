/*
 * Calls that are reached in a ride and that a signal interrupts: what each
 * returns, whether it is restarted, and what is left of its time.
 */
#include "scenario.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/wait.h>

static volatile sig_atomic_t ticks;
static int wake_file = -1;

/* The second tick ends what was restarted after the first. */
static void on_tick(int signal)
{
	(void)signal;
	ticks++;
	if (ticks == 2 && wake_file >= 0)
		call3(SYS_write, wake_file, (long)"y", 1);
}

static pid_t sleeper;
static volatile sig_atomic_t armed;

static bool is_asleep(void)
{
	char path[64], text[256] = "";
	const char *state;
	int file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", sleeper);
	file = MUST(open(path, O_RDONLY));
	MUST(read(file, text, sizeof(text) - 1));
	close(file);
	state = strrchr(text, ')');
	return state && state[2] == 'S';
}

/* Ticks whenever the armed thread has fallen asleep: never before its call. */
static void *tick_sleeper(void *unused)
{
	for (;;) {
		usleep(10 * 1000);
		if (!armed || !is_asleep())
			continue;
		usleep(10 * 1000);
		if (armed && is_asleep())
			syscall(SYS_tgkill, getpid(), sleeper, SIGALRM);
	}
	return unused;
}

static void tick(int flags)
{
	struct sigaction action = { .sa_handler = on_tick, .sa_flags = flags };

	MUST(sigaction(SIGALRM, &action, NULL));
	if (!sleeper) {
		sleeper = gettid();
		start_thread(tick_sleeper, NULL);
	}
	ticks = 0;
	armed = 1;
}

static void no_more_ticks(void)
{
	armed = 0;
}

static int ends[2];
static char byte = 'x';
/* How long calls with a limit wait: those that are to be interrupted, long. */
static long patience_ms = 10 * 1000;

static struct timespec patience(void)
{
	return (struct timespec){ .tv_sec = patience_ms / 1000,
				  .tv_nsec = patience_ms % 1000 * 1000 * 1000 };
}

/*
 * A call that waits; `at_once` says how to make it return immediately. Another one comes right
 * before it, by the same way both times, so that it is reached in a ride once that is warm.
 */
struct waiting {
	void (*prepare)(void);
	long (*wait)(bool at_once);
	int calls;	/* so many of them must ride when it is warm, if not 2 */
};

static void make_pipe(void)
{
	MUST(pipe(ends));
	wake_file = ends[1];
}

static long wait_read(bool at_once)
{
	if (at_once)
		call3(SYS_write, ends[1], (long)&byte, 1);
	call0(SYS_getuid);
	return call3(SYS_read, ends[0], (long)&byte, 1);
}

static void make_sockets(void)
{
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	wake_file = ends[1];
}

static long wait_receive(bool at_once)
{
	if (at_once)
		call3(SYS_write, ends[1], (long)&byte, 1);
	call0(SYS_getuid);
	return call6(SYS_recvfrom, ends[0], (long)&byte, 1, 0, 0, 0);
}

static long wait_poll(bool at_once)
{
	struct pollfd file = { .fd = ends[0], .events = POLLIN };
	long result;

	if (at_once)
		call3(SYS_write, ends[1], (long)&byte, 1);
	call0(SYS_getuid);
	result = call3(SYS_poll, (long)&file, 1, patience_ms);
	if (at_once)
		call3(SYS_read, ends[0], (long)&byte, 1);
	return result;
}

static long wait_select(bool at_once)
{
	struct timeval time = { .tv_sec = patience_ms / 1000 };
	fd_set set;
	long result;

	FD_ZERO(&set);
	FD_SET(ends[0], &set);
	if (at_once)
		call3(SYS_write, ends[1], (long)&byte, 1);
	call0(SYS_getuid);
	result = call6(SYS_select, ends[0] + 1, (long)&set, 0, 0, (long)&time, 0);
	if (at_once)
		call3(SYS_read, ends[0], (long)&byte, 1);
	return result;
}

static int epoll;

static void make_epoll(void)
{
	struct epoll_event event = { .events = EPOLLIN };

	make_pipe();
	epoll = MUST(epoll_create1(0));
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event));
}

static long wait_epoll(bool at_once)
{
	struct epoll_event event;
	long result;

	if (at_once)
		call3(SYS_write, ends[1], (long)&byte, 1);
	call0(SYS_getuid);
	result = call4(SYS_epoll_wait, epoll, (long)&event, 1, patience_ms);
	if (at_once)
		call3(SYS_read, ends[0], (long)&byte, 1);
	return result;
}

static int word;

static long wait_futex(bool at_once)
{
	struct timespec time = at_once ? (struct timespec){ 0 } : patience();

	call0(SYS_getuid);
	return call4(SYS_futex, (long)&word, FUTEX_WAIT_PRIVATE, 0, (long)&time);
}

static long wait_futex_forever(bool at_once)
{
	if (ticks > 0)
		return 0;
	call0(SYS_getuid);
	return call4(SYS_futex, (long)&word, FUTEX_WAIT_PRIVATE, at_once, 0);
}

static struct timespec left;

static long wait_sleep(bool at_once)
{
	struct timespec time = at_once ? (struct timespec){ .tv_nsec = 1 } : patience();

	left = (struct timespec){ 0 };
	call0(SYS_getuid);
	return call3(SYS_nanosleep, (long)&time, (long)&left, 0);
}

static long wait_pause(bool at_once)
{
	long call = at_once ? SYS_getuid : SYS_pause;

	call0(SYS_getuid);
	return call0(call);
}

static void make_nothing(void)
{
}

static pid_t child;

static void make_child(void)
{
	child = MUST(fork());
	if (child == 0) {
		pause();
		_exit(3);
	}
}

static long wait_child(bool at_once)
{
	int status, how = WNOHANG * at_once;

	call0(SYS_getuid);
	return call4(SYS_wait4, child, (long)&status, how, 0);
}

static void make_small_pipe(void)
{
	if (ends[0])
		close(ends[0]), close(ends[1]);
	MUST(pipe(ends));
	MUST(fcntl(ends[1], F_SETPIPE_SZ, 8192));
}

/* What fits goes in, the rest waits: the result is a short count. */
static long wait_write(bool at_once)
{
	static char much[20000];
	long result, bytes = at_once ? 1 : sizeof(much);

	if (!at_once)
		make_small_pipe();
	call0(SYS_getuid);
	result = call3(SYS_write, ends[1], (long)much, bytes);
	if (!at_once)
		make_small_pipe();
	else
		call3(SYS_read, ends[0], (long)much, 1);
	return result;
}

static int locked, waiting_for_lock;

static void make_locked(void)
{
	char path[] = "/tmp/lock-XXXXXX", link[64];

	locked = MUST(mkstemp(path));
	snprintf(link, sizeof(link), "/proc/self/fd/%d", locked);
	waiting_for_lock = MUST(open(link, O_RDWR));
	unlink(path);
	MUST(flock(locked, LOCK_EX));
}

static long wait_lock(bool at_once)
{
	int how = LOCK_EX | LOCK_NB * at_once;

	call0(SYS_getuid);
	return call3(SYS_flock, waiting_for_lock, how, 0);
}

static int listening;

static void make_listening(void)
{
	struct sockaddr address = { .sa_family = AF_UNIX };

	listening = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(bind(listening, &address, sizeof(address.sa_family)));
	MUST(listen(listening, 1));
}

static long wait_accept(bool at_once)
{
	int file = listening | -at_once;

	call0(SYS_getuid);
	return call4(SYS_accept4, file, 0, 0, 0);
}

static int queue;

static void make_queue(void)
{
	queue = MUST(msgget(IPC_PRIVATE, 0600));
}

static long wait_message(bool at_once)
{
	struct { long type; char text[8]; } message;
	int how = IPC_NOWAIT * at_once;

	/* It does not ride itself, and behind it no ride begins. */
	ridden_steps(5, 1);
	return call6(SYS_msgrcv, queue, (long)&message, 8, 0, how, 0);
}

static void end_queue(void)
{
	msgctl(queue, IPC_RMID, NULL);
}

static const struct waiting reading = { make_pipe, wait_read, 3 };
static const struct waiting receiving = { make_sockets, wait_receive, 3 };
static const struct waiting polling = { make_pipe, wait_poll };
static const struct waiting selecting = { make_pipe, wait_select };
static const struct waiting waiting_for_events = { make_epoll, wait_epoll };
static const struct waiting futex_with_time = { make_nothing, wait_futex };
static const struct waiting futex_forever = { make_nothing, wait_futex_forever };
static const struct waiting sleeping = { make_nothing, wait_sleep };
static const struct waiting pausing = { make_nothing, wait_pause };
static const struct waiting waiting_for_child = { make_child, wait_child };
static const struct waiting writing = { make_small_pipe, wait_write };
static const struct waiting locking = { make_locked, wait_lock };
static const struct waiting accepting = { make_listening, wait_accept };

#define APPROACHES 10

static __attribute__((noinline)) void approach(long (*wait)(bool at_once))
{
	for (int i = 0; i < APPROACHES; i++)
		wait(true);
}
/* The call that follows it rides as well if so many do. */
#define WARM_APPROACH(wait, calls) WARM_UP_ALL((calls) * APPROACHES, approach(wait))

/*
 * Three rounds, because a ride may end for another reason just before the
 * call that matters. What is printed is the same either way.
 */
static void interrupt(const struct waiting *waiting, int flags)
{
	waiting->prepare();
	WARM_APPROACH(waiting->wait, waiting->calls ? waiting->calls : 2);
	for (int round = 0; round < 3; round++) {
		long result;

		ticks = 0;
		approach(waiting->wait);
		tick(flags);
		result = waiting->wait(false);
		no_more_ticks();
		printf("result %ld, %d ticks\n", result, (int)ticks);
	}
}

#define INTERRUPTED(name, waiting)                                             \
	static void name(void) { interrupt(&waiting, 0); }
#define RESTARTED(name, waiting)                                               \
	static void name(void) { interrupt(&waiting, SA_RESTART); }

INTERRUPTED(read_interrupted, reading)
RESTARTED(read_restarted, reading)
INTERRUPTED(receive_interrupted, receiving)
RESTARTED(receive_restarted, receiving)
INTERRUPTED(poll_interrupted, polling)
RESTARTED(poll_not_restarted, polling)
INTERRUPTED(select_interrupted, selecting)
RESTARTED(select_not_restarted, selecting)
INTERRUPTED(epoll_interrupted, waiting_for_events)
RESTARTED(epoll_not_restarted, waiting_for_events)
INTERRUPTED(futex_interrupted, futex_with_time)
INTERRUPTED(futex_forever_interrupted, futex_forever)
INTERRUPTED(pause_interrupted, pausing)
RESTARTED(pause_not_restarted, pausing)
INTERRUPTED(wait_interrupted, waiting_for_child)
INTERRUPTED(write_interrupted, writing)
RESTARTED(write_cut_short, writing)
INTERRUPTED(lock_interrupted, locking)
INTERRUPTED(accept_interrupted, accepting)

static void sleep_interrupted(void)
{
	interrupt(&sleeping, 0);
	printf("time left: %s\n", left.tv_sec < 10 && left.tv_sec * 1000 + left.tv_nsec > 0 ? "some" : "FAILED");
}

static void message_interrupted(void)
{
	make_queue();
	WARM_APPROACH(wait_message, 2);
	approach(wait_message);
	tick(SA_RESTART);
	printf("result %ld\n", wait_message(false));
	no_more_ticks();
	end_queue();
}

/* Stop and continue end a sleep in a restart block: it goes on for the rest. */
static void continue_after_stop(int signal, long (*wait)(bool))
{
	pid_t parent = getpid(), stopper;
	double start;
	long result;

	patience_ms = 400;
	WARM_APPROACH(wait, 2);
	stopper = MUST(fork());
	if (stopper == 0) {
		for (int i = 0; i < 3; i++) {
			usleep(50 * 1000);
			kill(parent, signal);
			usleep(20 * 1000);
			kill(parent, SIGCONT);
		}
		_exit(0);
	}
	approach(wait);
	start = seconds();
	result = wait(false);
	printf("result %ld, slept %s\n", result, seconds() - start < 0.39 ? "too short: FAILED" : "long enough");
	expect_equal("stopper", end_of(stopper), 0);
}

static void sleep_stopped(void) { continue_after_stop(SIGSTOP, wait_sleep); }
static void futex_stopped(void) { continue_after_stop(SIGSTOP, wait_futex); }

static void poll_stopped(void)
{
	make_pipe();
	continue_after_stop(SIGSTOP, wait_poll);
}

/* A signal that nobody handles and that is ignored changes nothing. */
static void ignored(void)
{
	pid_t parent = getpid(), sender;
	long result;

	make_pipe();
	signal(SIGUSR1, SIG_IGN);
	WARM_APPROACH(wait_read, 3);
	sender = MUST(fork());
	if (sender == 0) {
		for (int i = 0; i < 10; i++) {
			usleep(5000);
			kill(parent, SIGUSR1);
			kill(parent, SIGWINCH);
		}
		MUST(write(ends[1], "z", 1));
		_exit(0);
	}
	approach(wait_read);
	result = wait_read(false);
	printf("result %ld, byte %c\n", result, byte);
	expect_equal("sender", end_of(sender), 0);
}

static const struct scenario scenarios[] = {
	{ "read-interrupted", read_interrupted },
	{ "read-restarted", read_restarted },
	{ "receive-interrupted", receive_interrupted },
	{ "receive-restarted", receive_restarted },
	{ "poll-interrupted", poll_interrupted },
	{ "poll-not-restarted", poll_not_restarted },
	{ "select-interrupted", select_interrupted },
	{ "select-not-restarted", select_not_restarted },
	{ "epoll-interrupted", epoll_interrupted },
	{ "epoll-not-restarted", epoll_not_restarted },
	{ "futex-interrupted", futex_interrupted },
	{ "futex-forever-interrupted", futex_forever_interrupted },
	{ "nanosleep-interrupted", sleep_interrupted },
	{ "pause-interrupted", pause_interrupted },
	{ "pause-not-restarted", pause_not_restarted },
	{ "wait-interrupted", wait_interrupted },
	{ "write-interrupted", write_interrupted },
	{ "write-cut-short", write_cut_short },
	{ "flock-interrupted", lock_interrupted },
	{ "accept-interrupted", accept_interrupted },
	{ "message-interrupted", message_interrupted },
	{ "nanosleep-stopped", sleep_stopped },
	{ "futex-stopped", futex_stopped },
	{ "poll-stopped", poll_stopped },
	{ "ignored", ignored },
};
SCENARIO_MAIN(scenarios)

/*
 * Attaches processes whose threads end at that very moment. Whoever is still a
 * member when the last thread is gone will never leave: its session would not
 * end. The argument says how many processes. Run as root with the module
 * loaded and no session.
 */
#include "device.h"

#define THREADS 8
/* As a member that is gone never leaves, this is only a matter of patience. */
#define PATIENCE_MS 2000

static void *end_at_once(void *unused)
{
	call0(SYS_getuid);
	return unused;
}

static __attribute__((noreturn)) void make_threads(void)
{
	pthread_t threads[THREADS];

	for (;;) {
		for (int i = 0; i < THREADS; i++)
			if (pthread_create(&threads[i], NULL, end_at_once, NULL))
				_exit(1);
		for (int i = 0; i < THREADS; i++)
			pthread_join(threads[i], NULL);
		if (getppid() == 1)
			_exit(0);
	}
}

static bool everybody_leaves(int session)
{
	for (int i = 0; i < PATIENCE_MS && stats_of(session).threads_now; i++)
		usleep(1000);
	return stats_of(session).threads_now == 0;
}

int main(int argc, char **argv)
{
	int processes = argc > 1 ? atoi(argv[1]) : 10, attached = 0, left_behind = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 0; i < processes; i++) {
		struct ub_process process = { .pid = MUST(fork()) };
		int session;

		if (!process.pid)
			make_threads();
		session = new_session();
		/* Each time at another point of their lives. */
		usleep(1000 + 37 * i);
		attached += ioctl(session, UB_IOC_ATTACH, &process) == 0;
		kill(process.pid, SIGKILL);
		waitpid(process.pid, NULL, 0);
		left_behind += !everybody_leaves(session);
		close(session);
	}
	check(attached == processes, "exits: attached", "%d of %d", attached, processes);
	check(!left_behind, "exits: nobody is left behind", "in %d of %d", left_behind, processes);
	printf("%d failures\n", failures);
	return failures != 0;
}

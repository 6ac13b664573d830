/*
 * Attaches and detaches processes again while they leave the session that they
 * were detached from, and lets them end. What is left of a thread then would be
 * taken for the next one's: builds of the module for tests tell of it on the
 * console. The argument says how many processes. Run as root with the module
 * loaded and no session.
 */
#include "device.h"

/* Long enough to be on the way out, and much less than the way out takes in such builds. */
#define ON_THE_WAY_US 1000

static volatile bool *over;

static __attribute__((noreturn)) void call_until_over(void)
{
	while (!*over)
		call0(SYS_getuid);
	_exit(0);
}

static bool join_and_leave(int session, pid_t pid)
{
	struct ub_process joins = { .pid = pid }, leaves = { .pid = pid };

	return ioctl(session, UB_IOC_ATTACH, &joins) == 0 &&
	       ioctl(session, UB_IOC_DETACH, &leaves) == 0;
}

int main(int argc, char **argv)
{
	int processes = argc > 1 ? atoi(argv[1]) : 10, twice = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	over = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < processes; i++) {
		int first = new_session(), second = new_session();
		pid_t pid;

		*over = false;
		pid = MUST(fork());
		if (!pid)
			call_until_over();
		usleep(2000);
		if (join_and_leave(first, pid)) {
			usleep(ON_THE_WAY_US);
			twice += join_and_leave(second, pid);
		}
		*over = true;
		waitpid(pid, NULL, 0);
		close(first);
		close(second);
	}
	check(twice == processes, "leaving: attached twice", "%d of %d", twice, processes);
	printf("%d failures\n", failures);
	return failures != 0;
}

/*
 * Reads the code of processes while they leave their session. What tells of changes
 * of its files ends with the last thread, which may be in the middle of that. The
 * argument says how many processes. Run as root with the module loaded.
 */
#include "device.h"

static volatile bool *over;
static volatile bool left;
static int session;
static long was_read, refused;

static __attribute__((noreturn)) void call_until_over(void)
{
	while (!*over)
		call0(SYS_getuid);
	_exit(0);
}

static void *read_until_left(void *unused)
{
	char code[64];

	(void)unused;
	while (!left) {
		struct ub_read_code read = {
			.btc = 1,	/* the first of its session */
			.address = (uintptr_t)call_until_over,
			.buffer = (uintptr_t)code,
			.length = sizeof(code),
		};

		if (ioctl(session, UB_IOC_READ_CODE, &read) == 0)
			was_read++;
		else
			refused += errno == ESRCH;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int processes = argc > 1 ? atoi(argv[1]) : 10, detached = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	over = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < processes; i++) {
		struct ub_process joins = { }, leaves = { };
		pthread_t reader;
		pid_t pid;

		*over = left = false;
		session = new_session();
		pid = MUST(fork());
		if (!pid)
			call_until_over();
		joins.pid = leaves.pid = pid;
		MUST(ioctl(session, UB_IOC_ATTACH, &joins));
		if (pthread_create(&reader, NULL, read_until_left, NULL))
			return 1;
		usleep(50 * 1000);
		detached += ioctl(session, UB_IOC_DETACH, &leaves) == 0;
		usleep(200 * 1000);
		left = true;
		pthread_join(reader, NULL);
		*over = true;
		waitpid(pid, NULL, 0);
		close(session);
	}
	check(detached == processes, "reading: detached", "%d of %d", detached, processes);
	check(was_read > 0, "reading: code was read", "never");
	check(refused > 0, "reading: refused at last", "never");
	printf("%d failures\n", failures);
	return failures != 0;
}

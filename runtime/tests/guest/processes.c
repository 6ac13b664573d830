/* fork, vfork, exec and threads: everything that a session spreads to. */
#include "session.h"

#include <pthread.h>
#include <sys/wait.h>

static uint64_t checksum(long count, uint64_t seed)
{
	for (long i = 0; i < count; i++) {
		seed = step(seed + call0(SYS_getuid));
	}
	return seed;
}

static int exit_status(pid_t child)
{
	int status;

	MUST(waitpid(child, &status, 0));
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/* Many children that end before anybody can have translated anything. */
static void short_lived(void)
{
	long sum = 0;

	WARM_UP_ALL(20, checksum(20, 1));
	for (int i = 0; i < 200; i++) {
		pid_t child = MUST(fork());

		if (child == 0)
			_exit(checksum(50, i) & 0x7f);
		sum = sum * 31 + exit_status(child);
	}
	printf("short-lived: %lx\n", sum);
}

/* A child that outlives its warm-up, beside its parent. */
static void long_lived(void)
{
	pid_t child = MUST(fork());

	WARM_UP_ALL(20, checksum(20, 2));
	if (child == 0)
		_exit(checksum(5000, 3) & 0x7f);
	printf("long-lived: parent %lx", checksum(5000, 4));
	printf(" child %d\n", exit_status(child));
}

/* The child runs in our memory until it executes `path`, or cannot. */
static __attribute__((noinline)) int spawn(const char *path, char **arguments)
{
	pid_t child = vfork();

	if (child == 0) {
		execv(path, arguments);
		_exit(errno);
	}
	return exit_status(child);
}

static void executed(char *self)
{
	char *arguments[] = { self, "exec-child", NULL };

	for (int i = 0; i < 3; i++)
		printf("executed: %d\n", spawn("/proc/self/exe", arguments));
	printf("not executed: %d\n", spawn("/nowhere", arguments));
}

static void *thread(void *seed)
{
	WARM_UP_ALL(20, checksum(20, 5));
	return (void *)checksum(20000, (uint64_t)seed);
}

static void threads(void)
{
	pthread_t ids[4];

	for (long i = 0; i < 4; i++)
		if (pthread_create(&ids[i], NULL, thread, (void *)i))
			die("pthread_create");
	for (long i = 0; i < 4; i++) {
		void *sum;

		pthread_join(ids[i], &sum);
		printf("thread %ld: %lx\n", i, (unsigned long)sum);
	}
	/* exec from a program with threads that ride. */
	for (long i = 0; i < 4; i++)
		if (pthread_create(&ids[i], NULL, thread, (void *)i))
			die("pthread_create");
	usleep(20 * 1000);
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "exec-child")) {
		WARM_UP_ALL(20, checksum(20, 6));
		return checksum(3000, 7) & 0x7f;
	}
	short_lived();
	long_lived();
	executed(argv[0]);
	threads();
	fflush(stdout);
	char *arguments[] = { argv[0], "exec-child", NULL };
	execv("/proc/self/exe", arguments);
	die("execv");
}

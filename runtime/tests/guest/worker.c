/*
 * Long-running riders for tests that pull the rug from under them. Each checks
 * that no iteration was lost and says so at its end.
 */
#include "guest.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/wait.h>

/* Calls until the file exists. True if no iteration was lost or repeated. */
static bool work_until(const char *file)
{
	uint64_t x = 1, again = 1;
	long count = 0;

	while (access(file, F_OK) != 0) {
		for (int i = 0; i < 1000; i++) {
			if (call0(SYS_getuid) != 0)
				die("getuid");
			x = step(x);
			count++;
		}
	}
	for (long i = 0; i < count; i++)
		again = step(again);
	return x == again;
}

static void *work_thread(void *file)
{
	return (void *)(uintptr_t)work_until(file);
}

/* The same in several threads. */
static bool work_in_threads(const char *file, int count)
{
	pthread_t threads[count];
	bool intact = true;
	void *result;

	for (int i = 0; i < count; i++)
		if (pthread_create(&threads[i], NULL, work_thread, (void *)file))
			die("pthread_create");
	for (int i = 0; i < count; i++) {
		pthread_join(threads[i], &result);
		intact &= result != NULL;
	}
	return intact;
}

/* Processes that live for a few calls each, some of them as another program. */
static bool churn(int count)
{
	bool good = true;
	int status;

	for (int i = 0; i < count; i++) {
		pid_t child = MUST(fork());

		if (child == 0) {
			for (int call = 0; call < 20; call++)
				call0(SYS_getuid);
			if (i % 8 == 0)
				execl("/proc/self/exe", "worker", "nothing", (char *)NULL);
			_exit(i % 8 == 0 ? 99 : i % 100);
		}
		MUST(waitpid(child, &status, 0));
		good &= WIFEXITED(status) && WEXITSTATUS(status) == (i % 8 == 0 ? 0 : i % 100);
	}
	return good;
}

/* Writes `count` bytes and reads one: with none to read, it waits for one. */
static __attribute__((noinline)) long exchange(int from, int to, char *byte, long count)
{
	if (call3(SYS_write, to, (long)byte, count) != count)
		die("write");
	return call3(SYS_read, from, (long)byte, 1);
}

/* Falls asleep in a call that it reached in a ride, when `asleep` exists. */
static void sleep_on(const char *fifo, const char *asleep)
{
	int file = MUST(open(fifo, O_RDWR));
	char byte = 'x';

	while (access(asleep, F_OK) != 0)
		for (int i = 0; i < 200; i++)
			if (exchange(file, file, &byte, 1) != 1)
				die("read");
	if (exchange(file, file, &byte, 0) != 1)
		die("read");
	printf("woken by %c\n", byte);
	for (int i = 0; i < 1000; i++)
		if (exchange(file, file, &byte, 1) != 1)
			die("read");
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "until"))
		printf("sequence %s\n", work_until(argv[2]) ? "intact" : "BROKEN");
	else if (argc == 4 && !strcmp(argv[1], "threads"))
		printf("sequences %s\n",
		       work_in_threads(argv[2], atoi(argv[3])) ? "intact" : "BROKEN");
	else if (argc == 3 && !strcmp(argv[1], "churn"))
		printf("children %s\n", churn(atoi(argv[2])) ? "right" : "WRONG");
	else if (argc == 2 && !strcmp(argv[1], "nothing"))
		return 0;
	else if (argc == 4 && !strcmp(argv[1], "sleep"))
		sleep_on(argv[2], argv[3]);
	else
		return 2;
	return 0;
}

/*
 * Long-running riders for tests that pull the rug from under them. Each checks
 * that no iteration was lost and says so at its end.
 */
#include "guest.h"

#include <fcntl.h>

/* Calls until the file exists. */
static void work_until(const char *file)
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
	printf("sequence %s\n", x == again ? "intact" : "BROKEN");
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
		work_until(argv[2]);
	else if (argc == 4 && !strcmp(argv[1], "sleep"))
		sleep_on(argv[2], argv[3]);
	else
		return 2;
	return 0;
}

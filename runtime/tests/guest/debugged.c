/*
 * What debuggers and tracers are attached to: calls in a fixed order, so that
 * one that was not seen shows, until the file exists.
 */
#include "guest.h"

/* Found by these names. */
volatile long rounds, strange;
void one_round(void);

__attribute__((noinline)) void one_round(void)
{
	strange += call0(SYS_getuid) != 0;
	strange += call0(SYS_getgid) != 0;
	rounds++;
}

int main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	while (access(argv[1], F_OK) != 0)
		for (int i = 0; i < 1000; i++)
			one_round();
	printf("strange results: %ld\n", strange);
	return 0;
}

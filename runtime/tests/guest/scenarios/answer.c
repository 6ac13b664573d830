/* A library whose code says which one it is: compiled with -DANSWER=... */
#include "../guest.h"

long answer(long count);

long answer(long count)
{
	long sum = 0;

	for (long i = 0; i < count; i++)
		sum += ANSWER + call0(SYS_getuid);
	return sum;
}

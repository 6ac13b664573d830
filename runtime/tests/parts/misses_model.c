/*
 * The module's misses.c: which addresses are reported that are left for at a
 * known rhythm. Prints nothing if they are those that should be.
 */
#include <stdio.h>
#include <stdlib.h>

#include <linux/types.h>

#include "misses.h"

#define THRESHOLD 4
#define WINDOW 32
#define LONG_TIME 100000

unsigned long jiffies;
static struct ub_misses misses;

static void expect(const char *what, u64 is, u64 should)
{
	if (is == should)
		return;
	printf("%s: %llu instead of %llu\n", what, (unsigned long long)is, (unsigned long long)should);
	exit(1);
}

static u32 miss(u64 key)
{
	return ub_misses_count(&misses, key, THRESHOLD, WINDOW);
}

/* How often a key is reported that is missed so often, so many jiffies apart. */
static u32 reports(u64 key, u32 often, u32 apart)
{
	u32 count = 0, i;

	for (i = 0; i < often; i++) {
		jiffies += apart;
		count += !!miss(key);
	}
	return count;
}

int main(void)
{
	u32 i;

	/* Around the time when what is left of jiffies in a slot begins anew. */
	jiffies = 0xffffffff - LONG_TIME / 2;

	for (i = 1; i < 20; i++)
		expect("often", miss(1), i == 4 || i == 8 || i == 16 ? i : 0);

	/* Four take three times the distance. */
	expect("just often enough", reports(2, 1000, WINDOW / 3), 8);
	expect("not quite", reports(3, 1000, WINDOW / 3 + 1), 0);
	expect("seldom", reports(4, LONG_TIME / WINDOW, WINDOW), 0);

	/* Seldom, then often. */
	expect("seldom at first", reports(5, 10, 2 * WINDOW), 0);
	expect("often at last", reports(5, 8, 1), 2);

	/* Known to be often, a report that was lost is made up for however seldom it is. */
	expect("often", reports(6, 4, 1), 1);
	expect("seldom since", reports(6, 12, 2 * WINDOW), 2);

	/* Translated for a while, then gone: however often that happens, it is no old tale. */
	for (i = 0; i < 20; i++) {
		expect("often again", reports(8, 1000, 0), 8);
		jiffies += 17 * WINDOW;
	}
	/* But without a pause it is reported more and more seldom. */
	reports(9, 1000, 0);
	jiffies += 15 * WINDOW;
	expect("still often", reports(9, 1000, 0), 1);

	/* As often, one among many, each of which has to have a slot. */
	for (i = 0; i < 100 * UB_MISS_SLOTS; i++) {
		jiffies += i % 16 == 0;
		miss(1000 + i);
	}
	expect("after many others", reports(7, 200, 1) > 0, 1);
	return 0;
}

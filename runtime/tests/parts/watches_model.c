/*
 * The module's watches.c against a model of it: what is watched of each address
 * of a small space, in which files are mapped over one another at random. The
 * argument says how many steps. Prints nothing if they agree.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <linux/minmax.h>

#include "watches.h"

#define SPACE 512ull
#define FILES 4

static struct ub_watches watches;
static char files[FILES];		/* their addresses stand for inodes */
static const char *mapped[SPACE];
static bool watched[SPACE];

static __attribute__((noreturn)) void fail(const char *what)
{
	printf("%s, with %u watches\n", what, watches.count);
	exit(1);
}

static u64 below(u64 limit)
{
	return random() % limit;
}

static bool same_area(u64 a, u64 b)
{
	return mapped[a] == mapped[b];
}

static void map_something(void)
{
	u64 start = below(SPACE), end = start + 1 + below(below(8) ? 8 : SPACE / 4);
	const char *file = &files[below(FILES)];
	struct ub_range lost;
	bool was_full = watches.count == UB_WATCHES;

	end = min(end, SPACE);
	ub_watches_cut(&watches, start, end, &lost);
	memset(watched + start, false, end - start);
	if (lost.start < lost.end) {
		if (!was_full)
			fail("something was lost though there was room");
		if (lost.start != end)
			fail("something else was lost than what is behind the hole");
		memset(watched + lost.start, false, lost.end - lost.start);
	}
	for (u64 i = start; i < end; i++)
		mapped[i] = file;
}

static void watch_something(void)
{
	u64 address = below(SPACE), start = address, end = address + 1, told;
	struct ub_watch area = { .range = { address, address + 1 } };
	bool known = watched[address], room = watches.count < UB_WATCHES;

	while (area.range.start > 0 && same_area(area.range.start - 1, address))
		area.range.start--;
	while (area.range.end < SPACE && same_area(area.range.end, address))
		area.range.end++;
	area.inode = (const struct inode *)mapped[address];
	while (start > area.range.start && !watched[start - 1])
		start--;
	while (end < area.range.end && !watched[end])
		end++;
	if (ub_watches_add(&watches, address, &area, &told) != (known || room))
		fail("added or not, wrongly");
	if (!known && !room)
		return;
	if (!known) {
		memset(watched + start, true, end - start);
		if (told != end)
			fail("another end");
	}
	for (u64 i = address; i < told; i++)
		if (!watched[i] || !same_area(i, address))
			fail("an end that is too far away");
}

static void compare(void)
{
	struct ub_range range = { .start = below(SPACE) };
	bool touch = false, cover = true, seen[SPACE] = { false };

	range.end = min(range.start + 1 + below(20), SPACE);
	for (u64 i = range.start; i < range.end; i++) {
		touch |= watched[i];
		cover &= watched[i];
	}
	if (ub_watches_touch(&watches, range.start, range.end) != touch)
		fail("touched or not, wrongly");
	if (ub_watches_cover(&watches, &range) != cover)
		fail("covered or not, wrongly");
	for (unsigned int i = 0; i < watches.count; i++) {
		const struct ub_watch *watch = &watches.table[i];

		if (watch->range.start >= watch->range.end)
			fail("an empty watch");
		for (u64 at = watch->range.start; at < watch->range.end; at++) {
			if (seen[at] || !watched[at])
				fail("watched twice, or no longer");
			if ((const char *)watch->inode != mapped[at])
				fail("watched as a part of another file");
			seen[at] = true;
		}
	}
}

/* Going from range to range of a file meets all that is watched of it, in order. */
static void walk(void)
{
	const char *file = &files[below(FILES)];
	struct ub_range range = { .end = below(4) ? 0 : below(SPACE) };
	u64 from = range.end, at = from;

	while (ub_watches_of_file(&watches, (const struct inode *)file, range.end, &range)) {
		for (; at < range.start; at++)
			if (watched[at] && mapped[at] == file)
				fail("a range of the file was passed over");
		if (range.start < at && at != from)
			fail("not in order");
		for (at = max(from, range.start); at < range.end; at++)
			if (!watched[at] || mapped[at] != file)
				fail("not a range of the file");
	}
	for (; at < SPACE; at++)
		if (watched[at] && mapped[at] == file)
			fail("the last range of the file was passed over");
}

int main(int argc, char **argv)
{
	long steps = argc > 1 ? atol(argv[1]) : 1000;
	bool was_full = false;

	for (u64 i = 0; i < SPACE; i++)
		mapped[i] = files;
	for (long i = 0; i < steps; i++) {
		if (below(5))
			watch_something();
		else
			map_something();
		compare();
		walk();
		was_full |= watches.count == UB_WATCHES;
	}
	if (!was_full)
		fail("the table was never full");
	return 0;
}

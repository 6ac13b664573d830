// SPDX-License-Identifier: GPL-2.0
#include <linux/minmax.h>

#include "watches.h"

/* Half-open interval arithmetic; all ends are user addresses. */
static bool overlaps(u64 start, u64 end, const struct ub_range *range)
{
	return start < range->end && range->start < end;
}

bool ub_watches_touch(const struct ub_watches *watches, u64 start, u64 end)
{
	unsigned int i;

	for (i = 0; i < watches->count; i++)
		if (overlaps(start, end, &watches->table[i].range))
			return true;
	return false;
}

static const struct ub_watch *find(const struct ub_watches *watches, u64 address)
{
	unsigned int i;

	for (i = 0; i < watches->count; i++)
		if (overlaps(address, address + 1, &watches->table[i].range))
			return &watches->table[i];
	return NULL;
}

bool ub_watches_cover(const struct ub_watches *watches, const struct ub_range *range)
{
	const struct ub_watch *watch;
	u64 at = range->start;

	/* No watch is empty, so each turn needs another one. */
	while (at < range->end) {
		watch = find(watches, at);
		if (!watch)
			return false;
		at = watch->range.end;
	}
	return true;
}

bool ub_watches_of_file(const struct ub_watches *watches, const struct inode *inode, u64 address,
			struct ub_range *range)
{
	const struct ub_watch *first = NULL, *watch;

	for (watch = watches->table; watch < watches->table + watches->count; watch++)
		if (watch->inode == inode && watch->range.end > address &&
		    (!first || watch->range.start < first->range.start))
			first = watch;
	if (first)
		*range = first->range;
	return first;
}

bool ub_watches_add(struct ub_watches *watches, u64 address, const struct ub_watch *area, u64 *end)
{
	const struct ub_watch *known = find(watches, address);
	struct ub_watch added = *area;
	unsigned int i;

	if (known) {
		*end = known->range.end;
		return true;
	}
	if (watches->count == UB_WATCHES)
		return false;
	/* Mappings grow and are joined: then there are watches in the area already. */
	for (i = 0; i < watches->count; i++) {
		const struct ub_range *other = &watches->table[i].range;

		if (other->end <= address)
			added.range.start = max(added.range.start, other->end);
		else
			added.range.end = min(added.range.end, other->start);
	}
	watches->table[watches->count++] = added;
	*end = added.range.end;
	return true;
}

void ub_watches_cut(struct ub_watches *watches, u64 start, u64 end, struct ub_range *lost)
{
	unsigned int i = 0;

	*lost = (struct ub_range){};
	while (i < watches->count) {
		struct ub_watch *watch = &watches->table[i], behind = *watch;

		if (!overlaps(start, end, &watch->range)) {
			i++;
			continue;
		}
		watch->range.end = min(watch->range.end, start);
		behind.range.start = max(behind.range.start, end);
		if (watch->range.start >= watch->range.end)
			*watch = watches->table[--watches->count];
		else
			i++;
		if (behind.range.start >= behind.range.end)
			continue;
		/* Where this loop gets to it once more, which changes nothing. */
		if (watches->count < UB_WATCHES)
			watches->table[watches->count++] = behind;
		else
			*lost = behind.range;
	}
}

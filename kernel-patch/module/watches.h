/* SPDX-License-Identifier: GPL-2.0 */
/* Which code of an address space is watched: a table of ranges that do not overlap. */
#ifndef UB_WATCHES_H
#define UB_WATCHES_H

#include <linux/types.h>

#include "uapi/ub.h"

#define UB_WATCHES 64

struct inode;

/* Code that may have been translated: a change in it must not be missed. */
struct ub_watch {
	struct ub_range range;
	const struct inode *inode;	/* of the mapped file; only compared */
};

struct ub_watches {
	unsigned int count;
	struct ub_watch table[UB_WATCHES];
};

/* True if something in [start, end) is watched. */
bool ub_watches_touch(const struct ub_watches *watches, u64 start, u64 end);
/* True if all of the range is watched. By several, where mappings are adjacent. */
bool ub_watches_cover(const struct ub_watches *watches, const struct ub_range *range);
/*
 * The first range of the file that ends behind address; false if there is none. Who
 * goes on at its end meets all that is watched, though others change the table.
 */
bool ub_watches_of_file(const struct ub_watches *watches, const struct inode *inode, u64 address,
			struct ub_range *range);
/*
 * Watches the code at address, which lies in area, and as much around it as the
 * area has and nobody watches yet. *end is where that, or what was there
 * before, ends. False if there is no room.
 */
bool ub_watches_add(struct ub_watches *watches, u64 address, const struct ub_watch *area, u64 *end);
/*
 * Ends the watch of [start, end), which is no longer mapped: it would fill the
 * table, and take what is mapped there next for a part of its file. *lost gets
 * what is not watched any more for want of room, mostly nothing.
 */
void ub_watches_cut(struct ub_watches *watches, u64 start, u64 end, struct ub_range *lost);

#endif

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How often a fragment is left for an address, or by a guard. Fixed size, no
 * locks; when a neighbourhood is full, new keys wear down the rarest in it.
 */
#ifndef UB_MISSES_H
#define UB_MISSES_H

#include <linux/types.h>

#define UB_MISS_SLOTS 2048

struct ub_miss_slot {
	u64 key;
	u32 count;
	u32 since;	/* jiffies: the start of its window, or the last one behind the threshold */
};

struct ub_misses {
	struct ub_miss_slot slots[UB_MISS_SLOTS];
};

/*
 * Counts one. Returns the count when it reaches threshold, the first time within
 * a window of so many jiffies: what is rare is not worth a report. Likewise each
 * time it reaches threshold times a power of two (a report may have been lost, or
 * the translation may have failed for a reason that has gone), unless none comes for
 * some windows: then there was a fragment meanwhile, and if that is gone, its
 * address is reported as soon as the first time. Else 0: a value of this moment, as
 * another thread may start the slot over at any time.
 */
u32 ub_misses_count(struct ub_misses *misses, u64 key, u32 threshold, u32 window);

#endif

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Counters by user address: how often a gap starts there, or how often a
 * ride ends there for want of a fragment. Fixed size, no locks; when a
 * neighbourhood is full, new addresses wear down the rarest in it.
 */
#ifndef UB_GAPS_H
#define UB_GAPS_H

#include <linux/types.h>

#define UB_GAP_SLOTS 2048

struct ub_gap_slot {
	u64 address;
	u32 count;
	u32 unused;
	u64 cycles;		/* sum over count */
};

struct ub_gaps {
	struct ub_gap_slot slots[UB_GAP_SLOTS];
};

/*
 * Counts one passage. Returns the count each time it reaches threshold or
 * threshold times a power of two (a report may have been lost, or the
 * translation may have failed for a reason that has gone), else 0. *mean is
 * the mean of cycles. Both are values of this moment: another thread may
 * start the slot over at any time.
 */
u32 ub_gaps_count(struct ub_gaps *gaps, u64 address, u64 cycles, u32 threshold, u64 *mean);
/* Starts over at this address: its fragment is gone. */
void ub_gaps_forget(struct ub_gaps *gaps, u64 address);

#endif

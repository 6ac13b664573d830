// SPDX-License-Identifier: GPL-2.0
#include <linux/atomic.h>
#include <linux/hash.h>
#include <linux/log2.h>

#include "gaps.h"

#define PROBES 8

static struct ub_gap_slot *find(struct ub_gaps *gaps, u64 address, bool claim)
{
	u32 start = hash_64(address, ilog2(UB_GAP_SLOTS));
	struct ub_gap_slot *slot;
	u64 seen;
	int i;

	for (i = 0; i < PROBES; i++) {
		slot = &gaps->slots[(start + i) % UB_GAP_SLOTS];
		seen = READ_ONCE(slot->address);
		if (seen == address)
			return slot;
		if (seen)
			continue;
		if (!claim)
			return NULL;
		seen = cmpxchg64(&slot->address, 0, address);
		if (!seen || seen == address)
			return slot;
	}
	return NULL;
}

u32 ub_gaps_count(struct ub_gaps *gaps, u64 address, u64 cycles, u32 threshold, u64 *mean)
{
	struct ub_gap_slot *slot = find(gaps, address, true);
	u32 count;
	u64 sum;

	if (!slot)
		return 0;
	/* Threads may lose each other's increments: these are heuristics. */
	count = READ_ONCE(slot->count) + 1;
	sum = READ_ONCE(slot->cycles) + cycles;
	WRITE_ONCE(slot->count, count);
	WRITE_ONCE(slot->cycles, sum);
	/* A count that wrapped to zero is not a report. */
	if (!count || count < threshold || count % threshold || !is_power_of_2(count / threshold))
		return 0;
	*mean = sum / count;
	return count;
}

void ub_gaps_forget(struct ub_gaps *gaps, u64 address)
{
	struct ub_gap_slot *slot = find(gaps, address, false);

	if (slot) {
		WRITE_ONCE(slot->count, 0);
		WRITE_ONCE(slot->cycles, 0);
	}
}

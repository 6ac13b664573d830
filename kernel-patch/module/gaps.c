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

const struct ub_gap_slot *ub_gaps_count(struct ub_gaps *gaps, u64 address, u64 cycles,
					u32 threshold)
{
	struct ub_gap_slot *slot = find(gaps, address, true);
	u32 count;

	if (!slot)
		return NULL;
	/* Threads may lose each other's increments: these are heuristics. */
	count = READ_ONCE(slot->count) + 1;
	WRITE_ONCE(slot->count, count);
	WRITE_ONCE(slot->cycles, READ_ONCE(slot->cycles) + cycles);
	if (count < threshold || count % threshold || !is_power_of_2(count / threshold))
		return NULL;
	return slot;
}

void ub_gaps_forget(struct ub_gaps *gaps, u64 address)
{
	struct ub_gap_slot *slot = find(gaps, address, false);

	if (slot) {
		WRITE_ONCE(slot->count, 0);
		WRITE_ONCE(slot->cycles, 0);
	}
}

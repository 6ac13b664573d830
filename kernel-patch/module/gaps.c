// SPDX-License-Identifier: GPL-2.0
#include <linux/atomic.h>
#include <linux/hash.h>
#include <linux/log2.h>
#include <linux/math64.h>

#include "gaps.h"

#define PROBES 8

/* The slot of the address, or NULL. */
static struct ub_gap_slot *find(struct ub_gaps *gaps, u64 address)
{
	u32 start = hash_64(address, ilog2(UB_GAP_SLOTS));
	struct ub_gap_slot *slot;
	int i;

	for (i = 0; i < PROBES; i++) {
		slot = &gaps->slots[(start + i) % UB_GAP_SLOTS];
		if (READ_ONCE(slot->address) == address)
			return slot;
	}
	return NULL;
}

/*
 * A slot for an address that has none: an empty one, or that of the address
 * with the fewest passages, once as many have come by for others as it had.
 */
static struct ub_gap_slot *claim(struct ub_gaps *gaps, u64 address)
{
	u32 start = hash_64(address, ilog2(UB_GAP_SLOTS));
	struct ub_gap_slot *slot, *fewest = NULL;
	u32 count;
	u64 seen;
	int i;

	for (i = 0; i < PROBES; i++) {
		slot = &gaps->slots[(start + i) % UB_GAP_SLOTS];
		seen = cmpxchg64(&slot->address, 0, address);
		if (!seen || seen == address)
			return slot;
		if (!fewest || READ_ONCE(slot->count) < READ_ONCE(fewest->count))
			fewest = slot;
	}
	count = READ_ONCE(fewest->count);
	if (count > 1) {
		WRITE_ONCE(fewest->count, count - 1);
		WRITE_ONCE(fewest->cycles, div_u64(READ_ONCE(fewest->cycles), count) * (count - 1));
		return NULL;
	}
	seen = READ_ONCE(fewest->address);
	if (cmpxchg64(&fewest->address, seen, address) != seen)
		return NULL;
	WRITE_ONCE(fewest->count, 0);
	WRITE_ONCE(fewest->cycles, 0);
	return fewest;
}

u32 ub_gaps_count(struct ub_gaps *gaps, u64 address, u64 cycles, u32 threshold, u64 *mean)
{
	struct ub_gap_slot *slot = find(gaps, address) ?: claim(gaps, address);
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
	struct ub_gap_slot *slot = find(gaps, address);

	if (slot) {
		WRITE_ONCE(slot->count, 0);
		WRITE_ONCE(slot->cycles, 0);
	}
}

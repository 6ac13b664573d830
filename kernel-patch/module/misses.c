// SPDX-License-Identifier: GPL-2.0
#include <linux/atomic.h>
#include <linux/hash.h>
#include <linux/jiffies.h>
#include <linux/log2.h>

#include "misses.h"

#define PROBES 8
/* In windows: after so long without a miss nothing is left of what was counted. */
#define PAUSE 16

/*
 * A slot for the key: its own, an empty one, or the rarest one's. Each time
 * somebody asks for the rarest its count is halved, so what is not seen any
 * more goes soon and what is often seen stays.
 */
static struct ub_miss_slot *claim(struct ub_misses *misses, u64 key)
{
	u32 start = hash_64(key, ilog2(UB_MISS_SLOTS));
	struct ub_miss_slot *slot, *rarest = NULL;
	u32 count;
	u64 seen;
	int i;

	for (i = 0; i < PROBES; i++) {
		slot = &misses->slots[(start + i) % UB_MISS_SLOTS];
		seen = cmpxchg64(&slot->key, 0, key);
		if (!seen || seen == key)
			return slot;
		if (!rarest || READ_ONCE(slot->count) < READ_ONCE(rarest->count))
			rarest = slot;
	}
	count = READ_ONCE(rarest->count);
	if (count > 1) {
		WRITE_ONCE(rarest->count, count / 2);
		return NULL;
	}
	seen = READ_ONCE(rarest->key);
	if (cmpxchg64(&rarest->key, seen, key) != seen)
		return NULL;
	WRITE_ONCE(rarest->count, 0);
	return rarest;
}

/* The slot of the key, or NULL. */
static struct ub_miss_slot *find(struct ub_misses *misses, u64 key)
{
	u32 start = hash_64(key, ilog2(UB_MISS_SLOTS));
	struct ub_miss_slot *slot;
	int i;

	for (i = 0; i < PROBES; i++) {
		slot = &misses->slots[(start + i) % UB_MISS_SLOTS];
		if (READ_ONCE(slot->key) == key)
			return slot;
	}
	return NULL;
}

u32 ub_misses_count(struct ub_misses *misses, u64 key, u32 threshold, u32 window)
{
	struct ub_miss_slot *slot = find(misses, key) ?: claim(misses, key);
	u32 now = jiffies, count, age;

	if (!slot)
		return 0;
	/* Threads may lose each other's increments: these are heuristics. */
	count = READ_ONCE(slot->count) + 1;
	age = now - READ_ONCE(slot->since);
	if (age > (count > threshold ? (u64)PAUSE * window : window))
		count = 1;
	if (count == 1 || count > threshold)
		WRITE_ONCE(slot->since, now);
	WRITE_ONCE(slot->count, count);
	/* A count that wrapped to zero is not a report. */
	if (!count || count < threshold || count % threshold || !is_power_of_2(count / threshold))
		return 0;
	return count;
}

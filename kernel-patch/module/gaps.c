// SPDX-License-Identifier: GPL-2.0
#include <linux/atomic.h>
#include <linux/hash.h>
#include <linux/jiffies.h>
#include <linux/log2.h>
#include <linux/math64.h>
#include <linux/minmax.h>
#include <linux/string.h>
#include <asm/tsc.h>

#include "address_space.h"
#include "gaps.h"
#include "session.h"

#define PROBES 8
/* Address of a slot that is being taken over; no code lies there. */
#define TAKING 1

static struct ub_gap_record *probe(struct ub_gaps *gaps, u64 address, int i)
{
	return &gaps->slots[(hash_64(address, ilog2(UB_GAP_SLOTS)) + i) % UB_GAP_SLOTS];
}

static struct ub_gap_record *find(struct ub_gaps *gaps, u64 address)
{
	struct ub_gap_record *gap;
	int i;

	for (i = 0; i < PROBES; i++) {
		gap = probe(gaps, address, i);
		if (smp_load_acquire(&gap->address) == address)
			return gap;
	}
	return NULL;
}

static bool is_held(const struct ub_gap_record *gap)
{
	return time_before64(get_jiffies_64(), READ_ONCE(gap->held_until));
}

/* How much it would be missed: nothing if it was not seen for a window. */
static u32 weight(const struct ub_gaps *gaps, const struct ub_gap_record *gap)
{
	if (is_held(gap))
		return U32_MAX;
	return READ_ONCE(gaps->window) - READ_ONCE(gap->window) > 1 ? 0 : READ_ONCE(gap->seen);
}

/* With gap->address TAKING, so that nobody else does. */
static void take(struct ub_gaps *gaps, struct ub_gap_record *gap, u64 address)
{
	memset_after(gap, 0, address);
	gap->window = READ_ONCE(gaps->window);
	gap->next_call = UB_NO_CALL;
	smp_store_release(&gap->address, address);
}

/*
 * A slot for an address that has none: an empty one, or that of the rarest
 * gap. Each time somebody asks for that one its count is halved, so what is not
 * seen any more goes soon and what is often seen stays.
 */
static struct ub_gap_record *claim(struct ub_gaps *gaps, u64 address)
{
	struct ub_gap_record *gap, *rarest = NULL;
	u32 least = U32_MAX, seen;
	u64 owner;
	int i;

	for (i = 0; i < PROBES; i++) {
		gap = probe(gaps, address, i);
		if (!cmpxchg64(&gap->address, 0, TAKING)) {
			take(gaps, gap, address);
			return gap;
		}
		seen = weight(gaps, gap);
		if (seen < least) {
			least = seen;
			rarest = gap;
		}
	}
	if (!rarest)
		return NULL;
	if (least > 1) {
		WRITE_ONCE(rarest->seen, least / 2);
		return NULL;
	}
	owner = READ_ONCE(rarest->address);
	if (owner == TAKING || cmpxchg64(&rarest->address, owner, TAKING) != owner)
		return NULL;
	take(gaps, rarest, address);
	return rarest;
}

struct ub_gap_record *ub_gaps_get(struct ub_gaps *gaps, u64 address)
{
	return find(gaps, address) ?: claim(gaps, address);
}

static void push(struct ub_gap_samples *samples, u32 cycles)
{
	u64 count = READ_ONCE(samples->count);

	WRITE_ONCE(samples->cycles[count % UB_GAP_SAMPLES], cycles);
	WRITE_ONCE(samples->count, count + 1);
}

/* Mean of the latest samples, in cycles; 0: there are none. */
static u64 mean_of(const struct ub_gap_samples *samples)
{
	u32 kept = min_t(u64, READ_ONCE(samples->count), UB_GAP_SAMPLES), i;
	u64 sum = 0;

	for (i = 0; i < kept; i++)
		sum += READ_ONCE(samples->cycles[i]);
	return kept ? div_u64(sum, kept) : 0;
}

/* So many samples to others are enough to be taken for where it leads now. */
#define MOST_VOTES 64u

/* The majority vote of Boyer and Moore, of the latest. */
void ub_gap_led_to(struct ub_gap_record *gap, u32 call)
{
	u32 votes = READ_ONCE(gap->next_votes);

	if (READ_ONCE(gap->next_call) == call) {
		votes = min(votes + 1, MOST_VOTES);
	} else if (votes) {
		votes--;
	} else {
		WRITE_ONCE(gap->next_call, call);
		votes = 1;
	}
	WRITE_ONCE(gap->next_votes, votes);
}

/* Counts a sample in the window of all gaps, and the gap's in its own. */
static void count_in_window(struct ub_session *session, struct ub_gaps *gaps, struct ub_gap_record *gap)
{
	u32 left = READ_ONCE(gaps->window_left);
	u32 window = READ_ONCE(gaps->window);

	if (!left) {
		left = session->config.hot_window;
		WRITE_ONCE(gaps->window, ++window);
	}
	WRITE_ONCE(gaps->window_left, left - 1);
	if (READ_ONCE(gap->window) != window) {
		WRITE_ONCE(gap->window, window);
		WRITE_ONCE(gap->seen, 0);
		WRITE_ONCE(gap->near, 0);
		WRITE_ONCE(gap->far, 0);
	}
	WRITE_ONCE(gap->seen, READ_ONCE(gap->seen) + 1);
}

/*
 * Each time the count reaches the threshold times a power of two: a report may
 * have been lost, or the translation may have failed for a reason that has gone.
 */
static bool reaches(u32 *counter, u32 threshold)
{
	u32 count = READ_ONCE(*counter) + 1;

	WRITE_ONCE(*counter, count);
	return count >= threshold && !(count % threshold) && is_power_of_2(count / threshold);
}

bool ub_gap_add_cold(struct ub_session *session, struct ub_gaps *gaps, struct ub_gap_record *gap,
		     u32 cycles, u64 *mean)
{
	bool hot = false;

	count_in_window(session, gaps, gap);
	push(&gap->native, cycles);
	WRITE_ONCE(gap->is_long, cycles > session->gap_max_cycles);
	if (cycles > session->gap_max_cycles || is_held(gap))
		return false;
	hot = reaches(&gap->far, session->config.hot_count);
	if (cycles <= session->gap_short_cycles)
		hot |= reaches(&gap->near, session->config.hot_count);
	if (hot) {
		/* What the supervisor said the first time is worth more. */
		if (!READ_ONCE(gap->is_reported))
			WRITE_ONCE(gap->reason, UB_GAP_REASON_REPORTED);
		WRITE_ONCE(gap->is_reported, true);
		*mean = mean_of(&gap->native);
	}
	return hot;
}

void ub_gap_add_on_purpose(struct ub_session *session, struct ub_gaps *gaps, struct ub_gap_record *gap,
			   u32 cycles)
{
	count_in_window(session, gaps, gap);
	push(&gap->native, cycles);
	WRITE_ONCE(gap->on_purpose, READ_ONCE(gap->on_purpose) + 1);
}

void ub_gap_add_ride(struct ub_session *session, struct ub_gaps *gaps, struct ub_gap_record *gap,
		     u32 cycles, bool left)
{
	count_in_window(session, gaps, gap);
	push(&gap->ride, cycles);
	if (left)
		WRITE_ONCE(gap->left, READ_ONCE(gap->left) + 1);
}

void ub_gaps_translated(struct ub_gaps *gaps, u64 address)
{
	struct ub_gap_record *gap = find(gaps, address);

	if (!gap)
		return;
	WRITE_ONCE(gap->ride.count, 0);
	WRITE_ONCE(gap->left, 0);
	WRITE_ONCE(gap->reason, UB_GAP_REASON_MEASURING);
}

void ub_gaps_forget(struct ub_gaps *gaps, u64 address)
{
	struct ub_gap_record *gap = find(gaps, address);

	if (!gap)
		return;
	WRITE_ONCE(gap->near, 0);
	WRITE_ONCE(gap->far, 0);
	WRITE_ONCE(gap->is_reported, false);
	WRITE_ONCE(gap->held_until, 0);
}

bool ub_gaps_judge(struct ub_gaps *gaps, const struct ub_verdict *verdict)
{
	struct ub_gap_record *gap = ub_gaps_get(gaps, verdict->address);

	if (!gap)
		return false;
	WRITE_ONCE(gap->reason, verdict->reason);
	WRITE_ONCE(gap->saved_ps, verdict->saved_ps);
	WRITE_ONCE(gap->saved_error_ps, verdict->saved_error_ps);
	if (verdict->hold_ns) {
		WRITE_ONCE(gap->retirements, READ_ONCE(gap->retirements) + 1);
		WRITE_ONCE(gap->held_until,
			   get_jiffies_64() + nsecs_to_jiffies64(verdict->hold_ns) + 1);
	}
	return true;
}

static u64 to_ns(u64 cycles)
{
	return mul_u64_u32_div(cycles, 1000000, tsc_khz);
}

static void copy_latest(u32 *to, const struct ub_gap_samples *samples)
{
	u64 count = READ_ONCE(samples->count);
	u32 i;

	for (i = 0; i < UB_GAP_SAMPLES && i < count; i++)
		to[i] = READ_ONCE(samples->cycles[(count - 1 - i) % UB_GAP_SAMPLES]);
}

static bool has_fragment(struct ub_space *space, u64 address)
{
	bool found;

	preempt_disable();
	found = ub_space_find(space, address) != NULL;
	preempt_enable();
	return found;
}

static void describe(struct ub_space *space, const struct ub_gap_record *gap, u64 address,
		     struct ub_gap_info *info)
{
	const struct ub_session_config *config = &space->session->config;
	u64 until = READ_ONCE(gap->held_until), now = get_jiffies_64();

	*info = (struct ub_gap_info){
		.btc = space->id,
		.address = address,
		.native_sampled = READ_ONCE(gap->native.count),
		.ride_sampled = READ_ONCE(gap->ride.count),
		.left_sampled = READ_ONCE(gap->left),
		.native_on_purpose = READ_ONCE(gap->on_purpose),
		.native_ns = to_ns(mean_of(&gap->native)),
		.ride_ns = to_ns(mean_of(&gap->ride)),
		.saved_ps = READ_ONCE(gap->saved_ps),
		.saved_error_ps = READ_ONCE(gap->saved_error_ps),
		.reason = READ_ONCE(gap->reason),
		.retirements = READ_ONCE(gap->retirements),
		.next_call = READ_ONCE(gap->next_call),
	};
	info->ridden = READ_ONCE(gap->rode);
	info->passages = READ_ONCE(gap->stayed) + info->ridden;
	copy_latest(info->native_cycles, &gap->native);
	copy_latest(info->ride_cycles, &gap->ride);
	if (has_fragment(space, address)) {
		info->state = UB_GAP_STATE_TRANSLATED;
		if (config->native_interval == UB_NATIVE_NEVER)
			info->reason = UB_GAP_REASON_UNMEASURED;
	} else if (time_before64(now, until)) {
		info->state = UB_GAP_STATE_RETIRED;
		info->held_ns = jiffies64_to_nsecs(until - now);
	} else if (READ_ONCE(gap->is_reported)) {
		info->state = UB_GAP_STATE_HOT;
		/* Of a fragment that is gone, noted while it went. */
		if (info->reason == UB_GAP_REASON_MEASURING)
			info->reason = UB_GAP_REASON_REPORTED;
	} else {
		info->state = UB_GAP_STATE_COLD;
		info->reason = READ_ONCE(gap->is_long) ? UB_GAP_REASON_LONG : UB_GAP_REASON_RARE;
	}
}

u32 ub_gaps_read(struct ub_space *space, struct ub_gap_info *info, u32 capacity)
{
	u32 i, count = 0;

	for (i = 0; i < UB_GAP_SLOTS; i++) {
		const struct ub_gap_record *gap = &space->gaps.slots[i];
		u64 address = smp_load_acquire(&gap->address);

		if (!address || address == TAKING)
			continue;
		if (count < capacity)
			describe(space, gap, address, &info[count]);
		count++;
	}
	return count;
}

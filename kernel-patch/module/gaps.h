/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What is known about the gaps of one address space, by resume address: how
 * often they are short, how long they take natively and in rides, and what was
 * decided about them. Fixed size, no locks. Only sampled passages get here.
 */
#ifndef UB_GAPS_H
#define UB_GAPS_H

#include <linux/types.h>

#include "uapi/ub.h"

#define UB_GAP_SLOTS 256

struct ub_session;
struct ub_space;

struct ub_gap_samples {
	u64 count;			/* so far; the latest is before count % UB_GAP_SAMPLES */
	u32 cycles[UB_GAP_SAMPLES];
};

/*
 * Threads may lose each other's increments, and a slot may be taken over
 * while another thread counts in it: these are heuristics. A fragment runs, or
 * not, correctly whatever is in here.
 */
struct ub_gap_record {
	u64 address;			/* 0: free */
	u32 window;			/* that the next three are of */
	u32 seen;			/* samples, of any kind */
	u32 near;			/* native ones up to gap_short_ns */
	u32 far;			/* native ones up to gap_max_ns */
	bool is_long;			/* the last native sample was beyond that */
	bool is_reported;
	u32 reason;			/* enum ub_gap_reason, of the last verdict */
	u32 retirements;
	u32 next_call;			/* that more than half of the latest samples led to, if any */
	u32 next_votes;			/* for it, those for others taken off */
	u64 held_until;			/* in jiffies; no report before */
	u64 left;
	u64 rode;			/* passages that samples of rides stand for, of all fragments */
	u64 stayed;			/* the same of native samples */
	u64 on_purpose;
	s64 saved_ps;
	u64 saved_error_ps;
	struct ub_gap_samples native;
	struct ub_gap_samples ride;
};

struct ub_gaps {
	u32 window;			/* counts windows */
	u32 window_left;		/* samples until the next begins */
	struct ub_gap_record slots[UB_GAP_SLOTS];
};

/* The record of the address, made if there is room; or NULL. */
struct ub_gap_record *ub_gaps_get(struct ub_gaps *gaps, u64 address);
/* The gap was sampled, and this call came behind it. */
void ub_gap_led_to(struct ub_gap_record *gap, u32 call);
/*
 * Adds a native sample of a gap without fragment. True if the gap is (still)
 * hot and is to be reported; *mean is then the mean of the latest samples.
 */
bool ub_gap_add_cold(struct ub_session *session, struct ub_gaps *gaps, struct ub_gap_record *gap,
		     u32 cycles, u64 *mean);
/* Adds a native sample of a gap that has a fragment. */
void ub_gap_add_on_purpose(struct ub_session *session, struct ub_gaps *gaps, struct ub_gap_record *gap,
			   u32 cycles);
/* Adds a sample of a ride; left: it did not get to the next call. */
void ub_gap_add_ride(struct ub_session *session, struct ub_gaps *gaps, struct ub_gap_record *gap,
		     u32 cycles, bool left);
/* A fragment was installed at this address: its rides are others than before. */
void ub_gaps_translated(struct ub_gaps *gaps, u64 address);
/* The fragment at this address is gone: the gap has to become hot anew. */
void ub_gaps_forget(struct ub_gaps *gaps, u64 address);
/* Notes what was decided; a hold begins now. False if there was no room for it. */
bool ub_gaps_judge(struct ub_gaps *gaps, const struct ub_verdict *verdict);
/* Fills at most capacity records, returns how many there are. */
u32 ub_gaps_read(struct ub_space *space, struct ub_gap_info *info, u32 capacity);

#endif

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Sampled passages of gaps. A thread counts down to its next sample: that is
 * all that the others cost. A sample is timed from the end of one system call
 * to the start of the next, and then counted in the address space's gaps.
 */
#ifndef UB_MEASURE_H
#define UB_MEASURE_H

#include <linux/minmax.h>

#include "gap_timer.h"
#include "rider.h"

/* Samples without a ride, at least, before a thread rests. */
#define UB_REST_AFTER 4096u

/*
 * The sample that is due, at the start of the gap at address. True if the
 * passage shall go native on purpose.
 */
bool ub_measure_begin(struct ub_rider *rider, u64 address);
/* The gap goes on in user mode; is_cold: because there is no fragment. */
void ub_measure_native(struct ub_rider *rider, bool is_cold);
/* The next call, nr, began then. rode: a ride had begun; left: and it had ended. */
void ub_measure_end(struct ub_rider *rider, unsigned int nr, u64 then, bool rode, bool left);

/* Grows with each ride and with each call made in one. */
static inline u64 ub_measure_ridden(const struct ub_rider *rider)
{
	return rider->counters.rides + rider->counters.ridden;
}

/*
 * Nothing to ride into was found for so long that the thread is looked at now
 * and then only; the calls in between go by without asking.
 */
static inline bool ub_measure_is_resting(const struct ub_rider *rider)
{
	return rider->idle >= max(rider->session->config.hot_window, UB_REST_AFTER) &&
	       ub_measure_ridden(rider) == rider->ridden_seen;
}

/* At the start of every gap; see ub_measure_begin(). */
static inline bool ub_measure(struct ub_rider *rider, u64 address)
{
	return unlikely(--rider->until_sample < 0) && ub_measure_begin(rider, address);
}

#endif

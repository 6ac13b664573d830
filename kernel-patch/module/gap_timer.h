/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How long a thread takes from the end of one system call to the start of
 * the next: of sampled passages, and of all for sessions with
 * UB_SESSION_TIME_GAPS. What is timed includes the way to user mode and back,
 * or what a ride does in its place, from the return of the call's function to
 * the entry of the next one's.
 */
#ifndef UB_GAP_TIMER_H
#define UB_GAP_TIMER_H

#include <linux/math64.h>
#include <linux/sched.h>
#include <linux/types.h>
#include <asm/tsc.h>

#include "session.h"

struct ub_gap_timer {
	u64 start;		/* cycle counter; 0: no gap is being timed */
	u64 waited;		/* run_delay at the start, in ns */
};

/* Time that the thread has waited for a CPU so far, in nanoseconds. */
static inline u64 ub_gap_waited(void)
{
#ifdef CONFIG_SCHED_INFO
	return current->sched_info.run_delay;
#else
	return 0;
#endif
}

static inline void ub_gap_timer_start(struct ub_gap_timer *timer)
{
	timer->waited = ub_gap_waited();
	timer->start = rdtsc();
}

/*
 * Cycles from the start to now, a reading of the cycle counter. A thread that is preempted
 * stays runnable, so the time it did not run is the time it waited.
 */
static inline u64 ub_gap_timer_read(const struct ub_gap_timer *timer, u64 now)
{
	u64 cycles = now - timer->start;
	u64 waited = ub_gap_waited() - timer->waited;

	if (likely(!waited))
		return cycles;
	waited = mul_u64_u32_div(waited, tsc_khz, 1000000);
	return cycles - min(waited, cycles);
}

/* The next call started then; the gap was of this kind. */
static inline void ub_gap_timer_stop(struct ub_gap_timer *timer, struct ub_counters *counters,
				     enum ub_gap kind, u64 then)
{
	if (!timer->start)
		return;
	counters->gaps[kind]++;
	counters->gap_cycles[kind] += ub_gap_timer_read(timer, then);
	timer->start = 0;
}

#endif

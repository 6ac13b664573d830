// SPDX-License-Identifier: GPL-2.0
#include <linux/math64.h>
#include <linux/pid.h>
#include <linux/sched.h>
#include <asm/tsc.h>

#include "address_space.h"
#include "gate/gate.h"
#include "measure.h"

/* Time over which a thread's rate of system calls is taken. */
#define RATE_MS 20
/* So long without a sample, once: what the thread did before is taken to go on ... */
#define PAUSE_MS 100
/* ... until so many more calls tell: it may be that they became rare. */
#define PAUSE_INTERVAL_MAX 64u
/*
 * In which a thread's samples fill a window, if it makes so many calls: what changes is
 * noticed within it.
 */
#define WINDOW_S 2
/* A resting thread's, at least; they cost about a microsecond each. */
#define REST_SAMPLES_PER_S 1000u
/* What these intervals grow to at most: a thread that got slower must come here, too. */
#define INTERVAL_MAX 16384u
/*
 * Passages in a row that go native on purpose, and how many of them are timed: the
 * last ones. Those before bring the program's own code and the way to user mode back
 * into caches and branch predictors, as they are in a program that never rides.
 */
#define NATIVE_ROW 8u
#define NATIVE_ROW_TIMED 4u

/* Marsaglia's xorshift; what depends on it is only which passage is sampled. */
static u32 random_below(struct ub_rider *rider, u32 limit)
{
	u32 x = rider->random;

	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	rider->random = x;
	return ((u64)x * limit) >> 32;
}

/*
 * Whether so few of the calls were native that none of their gaps can be hot; what goes
 * native only to compare has a fragment and is not one of them.
 */
static bool rides_nearly_all(const struct ub_session_config *config, u64 calls, u64 settled)
{
	u64 native = calls - min(settled, calls);

	return config->native_interval != UB_NATIVE_NEVER &&
	       native * config->hot_window < calls * min(config->hot_count, config->hot_window);
}

/* Whether the thread makes system calls often enough to be looked at. */
static bool is_busy(struct ub_rider *rider)
{
	const struct ub_session_config *config = &rider->session->config;
	u64 now = rdtsc(), elapsed = now - rider->rate_start, calls;
	u64 ridden = rider->counters.ridden, made = rider->counters.entered + ridden;
	u64 settled = ridden + rider->counters.stops[UB_STOP_MEASURED] +
		      rider->counters.refused[UB_STOP_MEASURED];

	if (elapsed < (u64)tsc_khz * RATE_MS)
		return rider->busy;
	rider->paused = elapsed >= (u64)tsc_khz * PAUSE_MS && !rider->paused;
	if (!rider->paused) {
		calls = made - rider->rate_calls;
		rider->rate = min_t(u64, div64_u64(calls * 1000, div_u64(elapsed, tsc_khz)),
				    U32_MAX);
		rider->busy = rider->rate >= config->min_rate;
		rider->rides_nearly_all = rides_nearly_all(config, calls,
							   settled - rider->rate_settled);
	}
	rider->rate_start = now;
	rider->rate_calls = made;
	rider->rate_settled = settled;
	return rider->busy;
}

/* How many calls there shall be for a sample from now on. */
static u32 next_interval(struct ub_rider *rider)
{
	const struct ub_session_config *config = &rider->session->config;
	u32 samples = config->hot_window / WINDOW_S + 1;
	u32 interval = config->sample_interval, most = interval;

	/* There is nothing to find, only to compare: a row, which begins with a sample. */
	if (rider->rides_nearly_all)
		most = max(most, min(config->native_interval, INTERVAL_MAX));
	/* Of threads that are not busy nothing is counted. */
	if (rider->busy)
		interval = clamp(rider->rate / samples, 1u, most);
	if (ub_measure_is_resting(rider)) {
		samples = max(samples, REST_SAMPLES_PER_S);
		interval = max(interval, min(rider->rate / samples, INTERVAL_MAX));
	}
	return rider->paused ? min(interval, PAUSE_INTERVAL_MAX) : interval;
}

static void count_idle(struct ub_rider *rider)
{
	u64 ridden = ub_measure_ridden(rider);

	if (ridden != rider->ridden_seen)
		rider->idle = 0;
	else if (rider->idle < U32_MAX)
		rider->idle++;
	rider->ridden_seen = ridden;
}

static bool has_fragment(struct ub_space *space, u64 address)
{
	bool found;

	preempt_disable();
	found = ub_space_find(space, address) != NULL;
	preempt_enable();
	return found;
}

/* Whether a row begins with this sample: one passage of native_interval is in one. */
static bool is_start_of_row(struct ub_rider *rider)
{
	const struct ub_session_config *config = &rider->session->config;

	return config->native_interval != UB_NATIVE_NEVER && !random_below(rider, NATIVE_ROW) &&
	       random_below(rider, config->native_interval) < rider->gap_weight;
}

/* The next passage of a row, or the first; see ub_measure_begin(). */
static bool go_native(struct ub_rider *rider, u64 address)
{
	struct ub_space *space = rider->space;

	if (--rider->native_row)
		rider->until_sample = 0;
	/* exec in another thread, or exec in this one just now. */
	if (!space || space->mm != current->mm || !has_fragment(space, address))
		return false;
	if (rider->native_row >= NATIVE_ROW_TIMED)
		return true;
	rider->gap = ub_gaps_get(&space->gaps, address);
	rider->counters.sampled += rider->gap != NULL;
	rider->gap_address = address;
	rider->gap_kind = UB_SAMPLE_ON_PURPOSE;
	rider->gap_weight = 1;
	return true;
}

bool ub_measure_begin(struct ub_rider *rider, u64 address)
{
	struct ub_space *space = rider->space;
	bool busy, translated;

	if (rider->native_row) {
		rider->until_sample = random_below(rider, 2 * rider->interval - 1);
		return go_native(rider, address);
	}
	busy = is_busy(rider);
	rider->gap_weight = rider->interval;
	count_idle(rider);
	rider->interval = next_interval(rider);
	/* With this mean; at random, or a program's own rhythm would hide gaps. */
	rider->until_sample = random_below(rider, 2 * rider->interval - 1);
	/* exec in another thread, or exec in this one just now. */
	if (!space || space->mm != current->mm)
		return false;
	translated = has_fragment(space, address);
	if (!translated && !busy)
		return false;
	rider->gap = ub_gaps_get(&space->gaps, address);
	if (!rider->gap)
		return false;
	if (translated && is_start_of_row(rider)) {
		rider->gap = NULL;
		rider->native_row = NATIVE_ROW;
		return go_native(rider, address);
	}
	rider->counters.sampled++;
	rider->gap_address = address;
	rider->gap_kind = UB_SAMPLE_RIDE;
	ub_gap_timer_start(&rider->gap_timer);
	return false;
}

void ub_measure_native(struct ub_rider *rider, bool is_cold)
{
	if (rider->gap_kind != UB_SAMPLE_ON_PURPOSE) {
		if (!is_cold) {
			/* Neither what a ride costs nor what none costs. */
			rider->gap = NULL;
			return;
		}
		rider->gap_kind = UB_SAMPLE_COLD;
	}
	/* Without the look for a fragment. */
	ub_gap_timer_start(&rider->gap_timer);
}

static void report(struct ub_rider *rider, u64 mean)
{
	struct ub_session *session = rider->session;
	struct ub_report report = {
		.kind = UB_REPORT_HOT_GAP,
		.pid = task_tgid_nr_ns(current, session->pid_namespace),
		.btc = rider->space->id,
		.address = rider->gap_address,
		.count = READ_ONCE(rider->gap->far),
		.gap_ns = mul_u64_u32_div(mean, 1000000, tsc_khz),
	};

	ub_session_report(session, &report);
}

void ub_measure_end(struct ub_rider *rider, unsigned int nr, u64 then, bool rode, bool left)
{
	struct ub_gaps *gaps = &rider->space->gaps;
	struct ub_gap_record *gap = rider->gap;
	u64 passed = ub_gap_timer_read(&rider->gap_timer, then), mean;
	u32 cycles;

	/*
	 * Outside of the timer a ride goes through the gate and as far as here, which takes
	 * about as much again. So does the way out of both, which native samples contain and
	 * programs without rides do not.
	 */
	if (rode)
		passed += 4 * ub_gate_cycles();
	cycles = min_t(u64, passed, U32_MAX);

	/* Somebody else's by now, if the thread slept in the gap. */
	if (READ_ONCE(gap->address) == rider->gap_address) {
		u64 *passages = rode ? &gap->rode : &gap->stayed;

		ub_gap_led_to(gap, nr);
		WRITE_ONCE(*passages, READ_ONCE(*passages) + rider->gap_weight);
		if (rode)
			ub_gap_add_ride(rider->session, gaps, gap, cycles, left);
		else if (rider->gap_kind == UB_SAMPLE_ON_PURPOSE)
			ub_gap_add_on_purpose(rider->session, gaps, gap, cycles);
		else if (ub_gap_add_cold(rider->session, gaps, gap, cycles, &mean))
			report(rider, mean);
	}
	rider->gap = NULL;
}

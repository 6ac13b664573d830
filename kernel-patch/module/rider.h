/* SPDX-License-Identifier: GPL-2.0 */
/* A rider: one enrolled thread. */
#ifndef UB_RIDER_H
#define UB_RIDER_H

#include <linux/hashtable.h>
#include <linux/list.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>

#include "gap_timer.h"
#include "ride/run_fragment.h"
#include "session.h"

struct ub_gap_record;
struct ub_space;

/* Why a passage is timed. */
enum ub_sample {
	UB_SAMPLE_RIDE,			/* there may be a fragment */
	UB_SAMPLE_COLD,			/* there is none */
	UB_SAMPLE_ON_PURPOSE,		/* native although there is one */
};

#define UB_RIDER_BITS 12

struct ub_rider {
	struct hlist_node in_table;	/* by task */
	struct list_head in_session;
	struct task_struct *task;	/* not counted: the record goes before the task */
	struct ub_session *session;
	bool time_gaps;			/* UB_SESSION_TIME_GAPS */
	bool leaving;			/* detached: set once, under table and session lock */
	bool has_predecessor;		/* a record of an earlier session is still in the table */

	/* Below: used by the thread itself only (counters are also read). */
	struct ub_space *space;		/* NULL until first needed, and after exec */
	bool riding;			/* at least one fragment since user mode */
	bool rode;			/* ... since the last system call */
	u64 worked;			/* cycle counter when work was last done in this gap, or 0 */
	struct ub_run run;
	struct ub_gap_timer timer;	/* of sessions that time gaps */

	/* Sampling: measure.h. */
	s32 until_sample;		/* gaps that go by before the next one to sample */
	u32 random;			/* never 0 */
	bool busy;			/* makes min_rate calls a second */
	bool rides_nearly_all;		/* too few native calls for any gap to be hot */
	bool paused;			/* before the last look at the rate */
	u32 rate;			/* calls a second, when last looked at */
	u32 interval;			/* calls for one sample, in the mean */
	u32 idle;			/* samples since the last ride */
	u64 ridden_seen;		/* ub_measure_ridden() at the last sample */
	u64 rate_start;			/* cycle counter */
	u64 rate_calls;			/* made by that moment */
	u64 rate_settled;		/* of these, ridden or native only to compare */
	struct ub_gap_record *gap;		/* being timed, in space; or NULL */
	u64 gap_address;
	u32 gap_weight;			/* passages that it stands for */
	u32 native_row;			/* passages left that go native on purpose */
	enum ub_sample gap_kind;
	struct ub_gap_timer gap_timer;

	/* Calls for which the hook was told not to ask. */
	u32 skipping;
	u32 not_skipped;		/* of these; changed by others, too */

	struct ub_counters counters;
	struct ub_counters collected;	/* of these, in the session's; session->lock */
	struct rcu_head rcu;
};

/* Enrols the calling thread, the only one of its process. */
int ub_rider_enroll(struct ub_session *session);
/* Enrols what is not yet enrolled of a running process, and counts it; see uapi/ub.h. */
int ub_rider_attach(struct ub_session *session, u32 pid, u32 *threads);
/* Takes a process out of its session, whichever that is. */
int ub_rider_detach(u32 pid, u32 *threads);
/* The calling thread is to leave its session: detached, or the session has ended. */
static inline bool ub_rider_is_leaving(const struct ub_rider *rider)
{
	return READ_ONCE(rider->leaving) || READ_ONCE(rider->session->ended);
}

/*
 * The thread's next calls go by without asking anybody. They are counted when it
 * is here again, or when it ends.
 */
void ub_rider_skip(struct ub_rider *rider, u16 calls);

/* All records by task; changed under a lock in rider.c. */
extern struct hlist_head ub_riders[1 << UB_RIDER_BITS];

/* The calling thread's record or NULL. Inline: on the way of every call. */
static inline struct ub_rider *ub_rider_current(void)
{
	struct ub_rider *rider, *found = NULL;

	/*
	 * The record of the running thread is removed by that thread alone,
	 * or when it is exiting and out of here, or after nobody can be in
	 * here, so it outlives this section. The newest is in front. The others
	 * on the chain are kept by preemption off, which RCU waits for
	 * and which costs less here than rcu_read_lock().
	 */
	preempt_disable();
	hash_for_each_possible_rcu_notrace(ub_riders, rider, in_table, (unsigned long)current) {
		if (rider->task == current) {
			found = rider;
			break;
		}
	}
	preempt_enable();
	return found;
}

/* Takes the calling thread out of its session. */
void ub_rider_leave(struct ub_rider *rider);
/*
 * The calling thread's record at the entry of a call, NULL if it is in no
 * session (any more). Records of earlier sessions go.
 */
struct ub_rider *ub_rider_enter(void);
/* The thread's address space, created or switched as needed; may be NULL. */
struct ub_space *ub_rider_space(struct ub_rider *rider);

/* Follows fork and exit through their tracepoints. */
int ub_rider_init(void);
/* Unregisters these and drops every record. The gate is detached by then. */
void ub_rider_exit(void);

#endif

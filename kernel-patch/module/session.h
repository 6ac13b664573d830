/* SPDX-License-Identifier: GPL-2.0 */
/* A session: one supervised process tree and its statistics. */
#ifndef UB_SESSION_H
#define UB_SESSION_H

#include <linux/kfifo.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/xarray.h>

#include "uapi/ub.h"

#define UB_REPORT_QUEUE 1024

/* What a thread counts without locks and a session adds up. Made of u64 only. */
struct ub_counters {
	u64 entered;		/* system calls made from user mode */
	u64 ridden;		/* and in a ride */
	u64 rides;
	u64 fragments_run;
	u64 stops[UB_STOP_MAX];
	u64 refused[UB_STOP_MAX];
	u64 gaps[UB_GAP_MAX];
	u64 gap_cycles[UB_GAP_MAX];
	u64 sampled;
};

struct ub_rider;

struct ub_session {
	struct rcu_head rcu;		/* near the start: kvfree_rcu() */
	struct kref ref;
	struct ub_session_config config;
	u64 gap_short_cycles;
	unsigned long miss_window;	/* in jiffies */
	u64 gap_max_cycles;
	struct pid_namespace *pid_namespace;
	/* Of its own: by its address a memory's notifiers are told apart. */
	struct mmu_notifier_ops notifier_ops;
	/* Set once, read without a lock before every fragment. */
	bool ended;

	/* Serialises installs and retirements asked for by the supervisor. */
	struct mutex install_lock;

	struct xarray spaces;		/* by id; has its own lock */
	struct mutex counting;		/* one walk through the riders at a time */

	spinlock_t lock;		/* everything from here to reports */
	struct list_head riders;
	struct list_head uncounted;	/* the riders that a walk has still to visit */
	struct list_head installed;	/* fragments, the next to be evicted in front */
	struct ub_counters counted;	/* of all threads, as far as it was collected */
	u64 threads;
	u64 threads_now;
	u64 address_spaces;
	u64 fragments;
	u64 fragments_installed;
	u64 fragments_retired;
	u64 fragments_evicted;
	u64 installs_stale;
	u64 arena_bytes;
	u64 reports_queued;
	u64 reports_dropped;
	DECLARE_KFIFO(reports, struct ub_report, UB_REPORT_QUEUE);
	wait_queue_head_t readers;
	struct list_head all;		/* under a lock in session.c */
};

/*
 * A new session, or an ERR_PTR. The caller owns the reference. Fills in
 * config what it leaves to the module.
 */
struct ub_session *ub_session_create(struct ub_session_config *config);
void ub_session_get(struct ub_session *session);
void ub_session_put(struct ub_session *session);
/* Its threads go on natively, its reader sees the end. Idempotent. */
void ub_session_end(struct ub_session *session);
void ub_session_end_all(void);
unsigned int ub_session_count(void);
/* Queues a report for the supervisor; drops and counts it when full. */
void ub_session_report(struct ub_session *session, const struct ub_report *report);
/* True when there is nothing more to come. Takes no lock. */
bool ub_session_finished(struct ub_session *session);
/* Adds to the session's counters what the thread counted since the last time. */
void ub_session_collect(struct ub_session *session, struct ub_rider *rider);
/* Sleeps. */
void ub_session_stats(struct ub_session *session, struct ub_stats *stats);

#endif

// SPDX-License-Identifier: GPL-2.0
#include <linux/pid_namespace.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>

#include "rider.h"
#include "session.h"

#define DEFAULT_HOT_COUNT 64
#define DEFAULT_GAP_MAX_NS (1000 * 1000)
#define DEFAULT_MISS_COUNT 4
#define DEFAULT_MAX_FRAGMENTS 4096
/* Three quarters of what all sessions share. */
#define DEFAULT_MAX_ARENA_BYTES (6u << 20)
/* A retirement looks at all of them with interrupts off. */
#define LIMIT_MAX_FRAGMENTS 16384

static LIST_HEAD(sessions);
static DEFINE_MUTEX(sessions_lock);

struct ub_session *ub_session_create(const struct ub_session_config *config)
{
	struct ub_session *session;

	if (config->abi_version != UB_ABI_VERSION)
		return ERR_PTR(-EPROTO);
	if (config->flags & ~UB_SESSION_TIME_GAPS || config->reserved || config->max_fragments > LIMIT_MAX_FRAGMENTS)
		return ERR_PTR(-EINVAL);
	session = kvzalloc(sizeof(*session), GFP_KERNEL_ACCOUNT);
	if (!session)
		return ERR_PTR(-ENOMEM);
	kref_init(&session->ref);
	session->config = *config;
	session->config.hot_count = config->hot_count ?: DEFAULT_HOT_COUNT;
	session->config.gap_max_ns = config->gap_max_ns ?: DEFAULT_GAP_MAX_NS;
	session->config.miss_count = config->miss_count ?: DEFAULT_MISS_COUNT;
	session->config.max_fragments = config->max_fragments ?: DEFAULT_MAX_FRAGMENTS;
	session->config.max_arena_bytes = config->max_arena_bytes ?: DEFAULT_MAX_ARENA_BYTES;
	session->pid_namespace = get_pid_ns(task_active_pid_ns(current));
	mutex_init(&session->install_lock);
	spin_lock_init(&session->lock);
	INIT_LIST_HEAD(&session->riders);
	INIT_LIST_HEAD(&session->spaces);
	INIT_KFIFO(session->reports);
	init_waitqueue_head(&session->readers);
	mutex_lock(&sessions_lock);
	list_add(&session->all, &sessions);
	mutex_unlock(&sessions_lock);
	return session;
}

void ub_session_get(struct ub_session *session)
{
	kref_get(&session->ref);
}

static void session_free(struct kref *ref)
{
	struct ub_session *session = container_of(ref, struct ub_session, ref);

	put_pid_ns(session->pid_namespace);
	/* The last reference may go with preemption off, where vfree() may not. */
	kvfree_rcu(session, rcu);
}

void ub_session_put(struct ub_session *session)
{
	kref_put(&session->ref, session_free);
}

void ub_session_end(struct ub_session *session)
{
	mutex_lock(&sessions_lock);
	if (!session->ended) {
		WRITE_ONCE(session->ended, true);
		list_del_init(&session->all);
	}
	mutex_unlock(&sessions_lock);
	wake_up_all(&session->readers);
}

void ub_session_end_all(void)
{
	struct ub_session *session;

	for (;;) {
		mutex_lock(&sessions_lock);
		session = list_first_entry_or_null(&sessions, struct ub_session, all);
		if (session)
			ub_session_get(session);
		mutex_unlock(&sessions_lock);
		if (!session)
			return;
		ub_session_end(session);
		ub_session_put(session);
	}
}

unsigned int ub_session_count(void)
{
	struct ub_session *session;
	unsigned int count = 0;

	mutex_lock(&sessions_lock);
	list_for_each_entry(session, &sessions, all)
		count++;
	mutex_unlock(&sessions_lock);
	return count;
}

void ub_session_report(struct ub_session *session, const struct ub_report *report)
{
	unsigned long flags;

	spin_lock_irqsave(&session->lock, flags);
	if (kfifo_put(&session->reports, *report))
		session->reports_queued++;
	else
		session->reports_dropped++;
	spin_unlock_irqrestore(&session->lock, flags);
	wake_up_interruptible(&session->readers);
}

bool ub_session_finished(struct ub_session *session)
{
	return READ_ONCE(session->ended) ||
	       (READ_ONCE(session->threads) && !READ_ONCE(session->threads_now));
}

void ub_counters_add(struct ub_counters *into, const struct ub_counters *from)
{
	int i;

	into->syscalls += from->syscalls;
	into->ridden += from->ridden;
	into->rides += from->rides;
	into->fragments_run += from->fragments_run;
	for (i = 0; i < UB_STOP_MAX; i++) {
		into->stops[i] += from->stops[i];
		into->refused[i] += from->refused[i];
	}
	for (i = 0; i < UB_GAP_MAX; i++) {
		into->gaps[i] += from->gaps[i];
		into->gap_cycles[i] += from->gap_cycles[i];
	}
}

void ub_session_stats(struct ub_session *session, struct ub_stats *stats)
{
	struct ub_counters counters;
	struct ub_rider *rider;
	unsigned long flags;

	memset(stats, 0, sizeof(*stats));
	spin_lock_irqsave(&session->lock, flags);
	counters = session->past;
	list_for_each_entry(rider, &session->riders, in_session)
		ub_counters_add(&counters, &rider->counters);
	stats->syscalls = counters.syscalls;
	stats->ridden = counters.ridden;
	stats->rides = counters.rides;
	stats->fragments_run = counters.fragments_run;
	memcpy(stats->stops, counters.stops, sizeof(stats->stops));
	memcpy(stats->refused, counters.refused, sizeof(stats->refused));
	memcpy(stats->gaps, counters.gaps, sizeof(stats->gaps));
	memcpy(stats->gap_cycles, counters.gap_cycles, sizeof(stats->gap_cycles));
	stats->threads = session->threads;
	stats->threads_now = session->threads_now;
	stats->address_spaces = session->address_spaces;
	stats->fragments = session->fragments;
	stats->fragments_installed = session->fragments_installed;
	stats->fragments_retired = session->fragments_retired;
	stats->installs_stale = session->installs_stale;
	stats->arena_bytes = session->arena_bytes;
	stats->reports = session->reports_queued;
	stats->reports_dropped = session->reports_dropped;
	spin_unlock_irqrestore(&session->lock, flags);
}

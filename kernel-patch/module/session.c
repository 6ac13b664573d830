// SPDX-License-Identifier: GPL-2.0
#include <linux/math64.h>
#include <linux/moduleparam.h>
#include <linux/pid_namespace.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <asm/tsc.h>

#include "address_space.h"
#include "rider.h"
#include "session.h"

/*
 * What sessions get that do not say otherwise. The numbers for finding hot gaps
 * are those of the userspace-bypass paper (OSDI'23): a tenth of the calls looked
 * at, of threads that make 50,000 a second, next call within 4 us (about 1000
 * instructions), 900 of 15,000. A gap of eight times that length cannot pay:
 * what translated code costs more is more than two switches.
 */
static unsigned int sample_interval = 10;
module_param(sample_interval, uint, 0644);
MODULE_PARM_DESC(sample_interval, "passages of gaps for one that is looked at; fewer where hot_window would take over 2 s, more where nearly all ride");
static unsigned int min_rate = 50000;
module_param(min_rate, uint, 0644);
MODULE_PARM_DESC(min_rate, "system calls a second below which a thread is left alone");
static unsigned int hot_count = 900;
module_param(hot_count, uint, 0644);
MODULE_PARM_DESC(hot_count, "samples of a gap that make it hot, among hot_window of all gaps");
static unsigned int hot_window = 15000;
module_param(hot_window, uint, 0644);
MODULE_PARM_DESC(hot_window, "samples among which a gap must be found hot_count times");
static unsigned long gap_short_ns = 4 * 1000;
module_param(gap_short_ns, ulong, 0644);
MODULE_PARM_DESC(gap_short_ns, "longest native time of gaps that are tried first");
static unsigned long gap_max_ns = 32 * 1000;
module_param(gap_max_ns, ulong, 0644);
MODULE_PARM_DESC(gap_max_ns, "longest native time of gaps that are tried at all");
static unsigned int native_interval = 128;
module_param(native_interval, uint, 0644);
MODULE_PARM_DESC(native_interval,
		 "passages of a translated gap for one that goes native, to compare; at least 100");
static unsigned int miss_count = 4;
module_param(miss_count, uint, 0644);
MODULE_PARM_DESC(miss_count, "times that a fragment is left for an address before it is reported");

/*
 * Some thirty times a second: translating it takes about as long as a thousand
 * exits, so what is left for less often would not pay within half a minute.
 */
static unsigned int miss_window_ms = 125;
module_param(miss_window_ms, uint, 0644);
MODULE_PARM_DESC(miss_window_ms, "milliseconds within which it must be left so often, the first time");

#define DEFAULT_MAX_FRAGMENTS 4096
/* Three quarters of what all sessions share. */
#define DEFAULT_MAX_ARENA_BYTES (6u << 20)
/* At most one passage in so many is spent on measuring. */
#define LIMIT_NATIVE_INTERVAL 100
/* Twice it must fit in 32 bits. */
#define LIMIT_SAMPLE_INTERVAL (1u << 30)
/* A retirement looks at all of them with interrupts off. */
#define LIMIT_MAX_FRAGMENTS 16384

static LIST_HEAD(sessions);
static DEFINE_MUTEX(sessions_lock);

static u64 to_cycles(u64 ns)
{
	return mul_u64_u32_div(min_t(u64, ns, NSEC_PER_SEC * 1000), tsc_khz, 1000000);
}

/* Never 0, whatever the administrator wrote to the parameter. */
static u32 or_default(u32 value, u32 parameter)
{
	return value ?: max(parameter, 1u);
}

static int fill_in(struct ub_session_config *config)
{
	if (config->abi_version != UB_ABI_VERSION)
		return -EPROTO;
	if (config->flags & ~UB_SESSION_TIME_GAPS ||
	    config->max_fragments > LIMIT_MAX_FRAGMENTS)
		return -EINVAL;
	config->sample_interval = or_default(config->sample_interval, READ_ONCE(sample_interval));
	config->min_rate = or_default(config->min_rate, READ_ONCE(min_rate));
	config->hot_count = or_default(config->hot_count, READ_ONCE(hot_count));
	config->hot_window = or_default(config->hot_window, READ_ONCE(hot_window));
	config->gap_short_ns = config->gap_short_ns ?: READ_ONCE(gap_short_ns);
	config->gap_max_ns = config->gap_max_ns ?: READ_ONCE(gap_max_ns);
	config->native_interval = or_default(config->native_interval, READ_ONCE(native_interval));
	config->miss_count = or_default(config->miss_count, READ_ONCE(miss_count));
	config->miss_window_ms = or_default(config->miss_window_ms, READ_ONCE(miss_window_ms));
	config->max_fragments = config->max_fragments ?: DEFAULT_MAX_FRAGMENTS;
	config->max_arena_bytes = config->max_arena_bytes ?: DEFAULT_MAX_ARENA_BYTES;
	if (config->native_interval < LIMIT_NATIVE_INTERVAL ||
	    config->sample_interval > LIMIT_SAMPLE_INTERVAL)
		return -EINVAL;
	return 0;
}

struct ub_session *ub_session_create(struct ub_session_config *config)
{
	struct ub_session *session;
	int err = fill_in(config);

	if (err)
		return ERR_PTR(err);
	session = kvzalloc(sizeof(*session), GFP_KERNEL_ACCOUNT);
	if (!session)
		return ERR_PTR(-ENOMEM);
	kref_init(&session->ref);
	session->config = *config;
	session->gap_short_cycles = to_cycles(config->gap_short_ns);
	session->gap_max_cycles = to_cycles(config->gap_max_ns);
	session->miss_window = msecs_to_jiffies(config->miss_window_ms);
	session->pid_namespace = get_pid_ns(task_active_pid_ns(current));
	mutex_init(&session->install_lock);
	xa_init(&session->spaces);
	mutex_init(&session->counting);
	spin_lock_init(&session->lock);
	INIT_LIST_HEAD(&session->riders);
	INIT_LIST_HEAD(&session->uncounted);
	INIT_LIST_HEAD(&session->installed);
	session->notifier_ops = ub_space_notifier_ops;
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
		/* Threads that rest do not ride; they leave at their next sample. */
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

/*
 * With session->lock held. By differences, so that a thread's calls are counted
 * once, whether it ends before, during or after a walk, and the sums never go back.
 */
void ub_session_collect(struct ub_session *session, struct ub_rider *rider)
{
	u64 *counted = (u64 *)&session->counted;
	u64 *collected = (u64 *)&rider->collected;
	const u64 *counters = (const u64 *)&rider->counters;
	size_t i;

	BUILD_BUG_ON(sizeof(struct ub_counters) % sizeof(u64));
	for (i = 0; i < sizeof(struct ub_counters) / sizeof(u64); i++) {
		/* The thread goes on counting. */
		u64 now = READ_ONCE(counters[i]);

		counted[i] += now - collected[i];
		collected[i] = now;
	}
}

/* There may be thousands of threads: the lock, with interrupts off, is held for one at a time. */
static void collect_all(struct ub_session *session)
{
	struct ub_rider *rider;

	mutex_lock(&session->counting);
	spin_lock_irq(&session->lock);
	list_splice_init(&session->riders, &session->uncounted);
	/* Who becomes a member or ends from here on takes care of itself. */
	while ((rider = list_first_entry_or_null(&session->uncounted, struct ub_rider,
						 in_session))) {
		ub_session_collect(session, rider);
		list_move(&rider->in_session, &session->riders);
		spin_unlock_irq(&session->lock);
		cond_resched();
		spin_lock_irq(&session->lock);
	}
	spin_unlock_irq(&session->lock);
	mutex_unlock(&session->counting);
}

void ub_session_stats(struct ub_session *session, struct ub_stats *stats)
{
	const struct ub_counters *counted = &session->counted;

	memset(stats, 0, sizeof(*stats));
	collect_all(session);
	spin_lock_irq(&session->lock);
	stats->syscalls = counted->entered + counted->ridden;
	stats->ridden = counted->ridden;
	stats->rides = counted->rides;
	stats->fragments_run = counted->fragments_run;
	stats->sampled = counted->sampled;
	memcpy(stats->stops, counted->stops, sizeof(stats->stops));
	memcpy(stats->refused, counted->refused, sizeof(stats->refused));
	memcpy(stats->gaps, counted->gaps, sizeof(stats->gaps));
	memcpy(stats->gap_cycles, counted->gap_cycles, sizeof(stats->gap_cycles));
	stats->threads = session->threads;
	stats->threads_now = session->threads_now;
	stats->address_spaces = session->address_spaces;
	stats->fragments = session->fragments;
	stats->fragments_installed = session->fragments_installed;
	stats->fragments_retired = session->fragments_retired;
	stats->fragments_evicted = session->fragments_evicted;
	stats->installs_stale = session->installs_stale;
	stats->arena_bytes = session->arena_bytes;
	stats->reports = session->reports_queued;
	stats->reports_dropped = session->reports_dropped;
	spin_unlock_irq(&session->lock);
}

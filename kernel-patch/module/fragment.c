// SPDX-License-Identifier: GPL-2.0
#include <linux/limits.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "address_space.h"
#include "arena.h"
#include "fixup.h"
#include "fragment.h"
#include "mitigations.h"
#include "protection.h"
#include "session.h"

/*
 * Indirect branches have several targets, and the supervisor is to learn them
 * from the misses first: what it predicts in the fragment is cheaper than a
 * link. Later the link is changed now and then only, as that costs more than
 * a look-up.
 */
#define LINK_AFTER 64
#define LINK_PATIENCE 8
/*
 * A direct branch is linked sooner: it leads nowhere else. That it was taken
 * more than now and then is for the supervisor, who is told of links.
 */
#define LINK_AFTER_DIRECT 4
/*
 * So often the supervisor is told that an exit was linked, and later each time
 * that the number is a power of two: an indirect branch with ever new targets
 * is linked for ever, and would drown what else is reported.
 */
#define LINKS_TOLD 16

/* A queue of our own, so that it can be drained at unload. */
static struct workqueue_struct *free_queue;
static atomic_t live = ATOMIC_INIT(0);

static void release(struct ub_fragment *fragment)
{
	if (fragment->code)
		ub_arena_free(fragment->code, fragment->code_length);
	ub_session_put(fragment->session);
	kvfree(fragment->exits);
	kvfree(fragment->links);
	kvfree(fragment->fixups);
	kvfree(fragment->sources);
	kfree(fragment);
}

void ub_fragment_free(struct ub_fragment *fragment)
{
	fragment->retired.next = NULL;
	ub_fixups_remove(&fragment->retired);
	release(fragment);
}

static LLIST_HEAD(retired);

/* All that were retired so far, with one grace period and one new table. */
static void free_retired(struct work_struct *work)
{
	struct llist_node *batch = llist_del_all(&retired);
	struct ub_fragment *fragment, *next;

	if (!batch)
		return;
	if (!UB_LEFT_OUT(GRACE_PERIOD))
		synchronize_rcu();
	/* Fixups stay until here: a fault in code under way must find them. */
	ub_fixups_remove(batch);
	llist_for_each_entry_safe(fragment, next, batch, retired) {
		release(fragment);
		atomic_dec(&live);
	}
}

static DECLARE_WORK(free_work, free_retired);

static void unlink(struct ub_link *link)
{
	if (!link->next)
		return;
	WRITE_ONCE(link->next, NULL);
	hlist_del(&link->in_next);
}

/* Who goes there looks it up again. With space->lock held. */
static void unlink_incoming(struct ub_fragment *fragment)
{
	struct ub_link *link;
	struct hlist_node *next;

	hlist_for_each_entry_safe(link, next, &fragment->links_here, in_next)
		unlink(link);
}

/* Nobody goes to or from a retired fragment by a link. With space->lock held. */
static void unlink_all(struct ub_fragment *fragment)
{
	u32 i;

	unlink_incoming(fragment);
	for (i = 0; i < fragment->exit_count; i++)
		unlink(&fragment->links[i]);
}

static bool is_often_missed(struct ub_link *link)
{
	u32 misses = ++link->misses;

	if (link->is_indirect)
		return misses > LINK_AFTER && misses % LINK_PATIENCE == 0;
	return misses >= LINK_AFTER_DIRECT;
}

/* The link was made once more. With space->lock held. */
static bool is_news(struct ub_link *link)
{
	if (link->made < U16_MAX)
		link->made++;
	return link->made <= LINKS_TOLD || is_power_of_2(link->made);
}

bool ub_fragment_link(struct ub_space *space, struct ub_fragment *from, u32 exit_id,
		      struct ub_fragment *next)
{
	struct ub_link *link = &from->links[exit_id];
	unsigned long flags;
	bool tell = false;

	/* run_fragment.S does not keep rdx over entry_ibpb(), beside which links save nothing. */
	if (ub_actions & UB_ACT_IBPB)
		return false;
	/* It is there already, and was not taken for another reason. */
	if (READ_ONCE(link->next) == next)
		return false;
	if (!is_often_missed(link) || !spin_trylock_irqsave(&space->lock, flags))
		return false;
	/*
	 * Either may have been retired since it was found. What is retired is
	 * not in the table, and must not be linked again: that would outlast
	 * its grace period.
	 */
	if (!hlist_unhashed(&from->in_bucket) && !hlist_unhashed(&next->in_bucket)) {
		unlink(link);
		hlist_add_head(&link->in_next, &next->links_here);
		/* Complete since it was published: it was found in the table. */
		WRITE_ONCE(link->next, next);
		tell = is_news(link);
	}
	spin_unlock_irqrestore(&space->lock, flags);
	return tell;
}

static void retire(struct ub_space *space, struct ub_fragment *fragment)
{
	struct ub_session *session = fragment->session;
	unsigned long flags;

	/* _init: that it is unhashed tells ub_fragment_link(). */
	hlist_del_init_rcu(&fragment->in_bucket);
	if (!UB_LEFT_OUT(LINKS_CUT))
		unlink_all(fragment);
	list_del(&fragment->in_space);
	WRITE_ONCE(space->retired_at, get_state_synchronize_rcu());
	ub_gaps_forget(&space->gaps, fragment->entry);

	spin_lock_irqsave(&session->lock, flags);
	list_del(&fragment->in_session);
	session->fragments--;
	session->fragments_retired++;
	session->arena_bytes -= fragment->code_length;
	spin_unlock_irqrestore(&session->lock, flags);

	llist_add(&fragment->retired, &retired);
	queue_work(free_queue, &free_work);
}

bool ub_fragment_retire_entry(struct ub_space *space, u64 entry)
{
	struct ub_fragment *fragment;

	hlist_for_each_entry(fragment, ub_space_bucket(space, entry), in_bucket) {
		if (fragment->entry == entry) {
			retire(space, fragment);
			return true;
		}
	}
	return false;
}

void ub_fragment_publish(struct ub_space *space, struct ub_fragment *fragment)
{
	struct ub_session *session = fragment->session;
	unsigned long flags;

	ub_fragment_retire_entry(space, fragment->entry);
	fragment->space = space;
	spin_lock_irqsave(&session->lock, flags);
	list_add_tail(&fragment->in_session, &session->installed);
	session->fragments++;
	session->fragments_installed++;
	session->arena_bytes += fragment->code_length;
	spin_unlock_irqrestore(&session->lock, flags);
	atomic_inc(&live);
	list_add(&fragment->in_space, &space->fragments);
	hlist_add_head_rcu(&fragment->in_bucket, ub_space_bucket(space, fragment->entry));
	/* Threads that rest find it by their samples, which they go on making. */
	ub_gaps_translated(&space->gaps, fragment->entry);
}

static bool made_from(const struct ub_fragment *fragment, u64 start, u64 end)
{
	u32 i;

	for (i = 0; i < fragment->source_count; i++)
		if (fragment->sources[i].start < end && start < fragment->sources[i].end)
			return true;
	return false;
}

void ub_fragments_retire_range(struct ub_space *space, u64 start, u64 end)
{
	struct ub_report report = {
		.kind = UB_REPORT_RETIRED, .btc = space->id, .address = start, .from = end,
	};
	struct ub_fragment *fragment, *next;

	list_for_each_entry_safe(fragment, next, &space->fragments, in_space) {
		if (made_from(fragment, start, end)) {
			retire(space, fragment);
			report.count++;
		}
	}
	if (report.count)
		ub_session_report(space->session, &report);
}

void ub_fragments_retire_all(struct ub_space *space)
{
	struct ub_fragment *fragment, *next;
	unsigned long flags;

	spin_lock_irqsave(&space->lock, flags);
	list_for_each_entry_safe(fragment, next, &space->fragments, in_space)
		retire(space, fragment);
	spin_unlock_irqrestore(&space->lock, flags);
}

/* Evicts the fragment, or, if it was run since the last time, gives it another chance. */
static bool evict_or_spare(struct ub_space *space, struct ub_fragment *fragment, bool spare)
{
	struct ub_session *session = space->session;
	struct ub_report report = {
		.kind = UB_REPORT_EVICTED, .btc = space->id, .address = fragment->entry,
	};
	bool evicted = false;
	unsigned long flags;

	spin_lock_irqsave(&space->lock, flags);
	if (hlist_unhashed(&fragment->in_bucket)) {
		/* Retired by somebody else meanwhile. */
	} else if (spare && READ_ONCE(fragment->used)) {
		WRITE_ONCE(fragment->used, false);
		/* A link would hide that it is run. */
		unlink_incoming(fragment);
	} else {
		retire(space, fragment);
		evicted = true;
	}
	spin_unlock_irqrestore(&space->lock, flags);
	if (evicted) {
		spin_lock_irqsave(&session->lock, flags);
		session->fragments_evicted++;
		spin_unlock_irqrestore(&session->lock, flags);
		ub_session_report(session, &report);
	}
	return evicted;
}

bool ub_fragment_evict(struct ub_session *session)
{
	/* Once around, everybody was spared at most; then the first one goes. */
	u64 chances = READ_ONCE(session->fragments) + 1;
	struct ub_fragment *fragment;
	struct ub_space *space;
	unsigned long flags;
	bool evicted = false;

	do {
		rcu_read_lock();
		spin_lock_irqsave(&session->lock, flags);
		fragment = list_first_entry_or_null(&session->installed, struct ub_fragment,
						    in_session);
		if (fragment) {
			list_move_tail(&fragment->in_session, &session->installed);
			/* It is not released before all its fragments are off this list. */
			space = fragment->space;
			kref_get(&space->ref);
		}
		spin_unlock_irqrestore(&session->lock, flags);
		/* Until the end of this section it is not freed, should it be retired. */
		if (fragment)
			evicted = evict_or_spare(space, fragment, chances);
		rcu_read_unlock();
		if (fragment)
			ub_space_unpin(space);
		if (chances)
			chances--;
		cond_resched();
	} while (fragment && !evicted);
	return evicted;
}

void ub_fragments_drain(void)
{
	flush_work(&free_work);
}

unsigned int ub_fragment_count(void)
{
	return atomic_read(&live);
}

int ub_fragment_init(void)
{
	free_queue = alloc_workqueue("ub_free", 0, 1);
	return free_queue ? 0 : -ENOMEM;
}

void ub_fragment_exit(void)
{
	destroy_workqueue(free_queue);
}

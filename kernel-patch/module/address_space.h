/* SPDX-License-Identifier: GPL-2.0 */
/*
 * One address space and its binary translation cache (BTC): all fragments
 * translated from it, shared by its threads, kept true by an mmu notifier.
 */
#ifndef UB_ADDRESS_SPACE_H
#define UB_ADDRESS_SPACE_H

#include <linux/hash.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mmu_notifier.h>
#include <linux/rculist.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

#include "code_files.h"
#include "fragment.h"
#include "gaps.h"
#include "misses.h"
#include "session.h"
#include "watches.h"

#define UB_SPACE_BUCKET_BITS 10

struct inode;

struct ub_space {
	struct mmu_notifier notifier;
	struct kref ref;
	struct mm_struct *mm;		/* pinned (mmgrab), so never reused */
	struct ub_session *session;	/* counted; NULL until somebody has it */
	u64 id;
	bool gone;			/* the process let go of the mm */
	struct ub_code_files files;	/* that code is mapped from */
	struct work_struct end_work;

	/*
	 * Guards the fragments and what says whether code that was read a
	 * while ago is still the code: taken by the notifier, never held
	 * while sleeping.
	 */
	spinlock_t lock;
	u64 sequence;			/* +1 for every change of watched code */
	unsigned long retired_at;	/* of the last fragment, see get_state_synchronize_rcu() */
	struct ub_watches watches;
	struct list_head fragments;
	struct hlist_head buckets[1 << UB_SPACE_BUCKET_BITS];

	struct ub_gaps gaps;		/* by resume address */
	struct ub_misses misses;	/* by address a fragment was left for, and branch */
};

static inline struct hlist_head *ub_space_bucket(struct ub_space *space, u64 entry)
{
	return &space->buckets[hash_64(entry, UB_SPACE_BUCKET_BITS)];
}

/* Call with preemption off; the result is good until it is on again. */
static inline struct ub_fragment *ub_space_find(struct ub_space *space, u64 entry)
{
	struct ub_fragment *fragment;

	hlist_for_each_entry_rcu_notrace(fragment, ub_space_bucket(space, entry), in_bucket)
		if (fragment->entry == entry)
			return fragment;
	return NULL;
}

/* Every session has its own copy, so that each has its own record of a memory. */
extern const struct mmu_notifier_ops ub_space_notifier_ops;

/* The calling thread's address space in this session, or NULL. Sleeps. */
struct ub_space *ub_space_of_current(struct ub_session *session);
/* Ends a thread's use of it. May be called with preemption off. */
void ub_space_put(struct ub_space *space);

/* For ioctls: finds by id and pins the memory; ub_space_unpin() after use. */
struct ub_space *ub_space_pin(struct ub_session *session, u64 id);
/* Likewise the first one with a greater id. */
struct ub_space *ub_space_pin_next(struct ub_session *session, u64 id);
void ub_space_unpin(struct ub_space *space);

/*
 * Reads code that cannot change unseen, starting at address; *copied may be
 * shorter than the buffer. From now on a change there raises the sequence
 * number, of which *sequence gets the value before the read. -EFAULT:
 * nothing there. -EACCES: not such code. -ENOSPC: too many mappings.
 */
int ub_space_read_code(struct ub_space *space, u64 address, void *buffer, u32 length,
		       u32 *copied, u64 *sequence);

/* True if some of its code is watched. */
bool ub_space_watches_file(struct ub_space *space, const struct inode *inode);
/* The file's content changed: what was made from it goes. Sleeps. */
void ub_space_file_changed(struct ub_space *space, const struct inode *inode);

int ub_space_init(void);
void ub_space_exit(void);

#endif

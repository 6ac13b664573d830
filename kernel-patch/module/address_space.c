// SPDX-License-Identifier: GPL-2.0
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/fsnotify_backend.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/static_call.h>

#include "address_space.h"
#include "compat/compat.h"
#include "fragment.h"
#include "protection.h"

typedef int access_remote_vm_fn(struct mm_struct *, unsigned long, void *, int, unsigned int);
DEFINE_STATIC_CALL_NULL(ub_access_remote_vm, *(access_remote_vm_fn *)NULL);

/* The module must outlive them all; its exit waits for this to be zero. */
static atomic_t live = ATOMIC_INIT(0);

static struct workqueue_struct *end_queue;

static void space_release(struct kref *ref)
{
	struct ub_space *space = container_of(ref, struct ub_space, ref);

	mmdrop(space->mm);
	if (space->session)
		ub_session_put(space->session);
	kvfree(space);
	atomic_dec(&live);
}

void ub_space_unpin(struct ub_space *space)
{
	kref_put(&space->ref, space_release);
}

/* The end of a space, where sleeping is possible. */
static void space_end(struct work_struct *work)
{
	struct ub_space *space = container_of(work, struct ub_space, end_work);

	ub_code_files_end(&space->files);
	ub_space_unpin(space);
}

static struct mmu_notifier *space_alloc(struct mm_struct *mm)
{
	struct ub_space *space = kvzalloc(sizeof(*space), GFP_KERNEL_ACCOUNT);
	int err;

	if (!space)
		return ERR_PTR(-ENOMEM);
	err = ub_code_files_init(&space->files);
	if (err) {
		kvfree(space);
		return ERR_PTR(err);
	}
	INIT_WORK(&space->end_work, space_end);
	kref_init(&space->ref);
	spin_lock_init(&space->lock);
	INIT_LIST_HEAD(&space->fragments);
	space->retired_at = get_completed_synchronize_rcu();
	mmgrab(mm);
	space->mm = mm;
	atomic_inc(&live);
	return &space->notifier;
}

/* The last thread is gone and so is every notifier call under way. */
static void space_free(struct mmu_notifier *notifier)
{
	struct ub_space *space = container_of(notifier, struct ub_space, notifier);
	struct ub_session *session = space->session;
	unsigned long flags;

	if (session) {
		struct ub_report report = { .kind = UB_REPORT_BTC_GONE, .btc = space->id };

		xa_erase(&session->spaces, space->id);
		/* From here on nothing is published to it any more. */
		spin_lock_irqsave(&space->lock, flags);
		space->gone = true;
		spin_unlock_irqrestore(&space->lock, flags);
		ub_fragments_retire_all(space);
		ub_session_report(session, &report);
	}
	queue_work(end_queue, &space->end_work);
}

/* True if something that is watched changes. */
static bool code_changes(struct ub_space *space, const struct mmu_notifier_range *range)
{
	if (UB_LEFT_OUT(INVALIDATION) ||
	    !ub_watches_touch(&space->watches, range->start, range->end))
		return false;
	space->sequence++;
	ub_fragments_retire_range(space, range->start, range->end);
	return true;
}

/*
 * Another thread may be inside a retired fragment, with preemption off; it need not be
 * us who retired it. When the notifier returns the code may change, so it must be out.
 * Expedited, because we hold up mmap_lock, and because it makes a rider that loops see
 * need-resched at its next poll. In a context that must not block the whole
 * address space is going away, and its threads with it.
 */
static void wait_for_riders(struct ub_space *space, bool may_block)
{
	if (may_block && !UB_LEFT_OUT(WAIT_FOR_RIDERS))
		cond_synchronize_rcu_expedited(READ_ONCE(space->retired_at));
}

static int space_invalidate_start(struct mmu_notifier *notifier,
				  const struct mmu_notifier_range *range)
{
	struct ub_space *space = container_of(notifier, struct ub_space, notifier);
	unsigned long flags;
	bool changes;

	spin_lock_irqsave(&space->lock, flags);
	changes = code_changes(space, range);
	spin_unlock_irqrestore(&space->lock, flags);
	if (changes)
		wait_for_riders(space, mmu_notifier_range_blockable(range));
	return 0;
}

/* Nobody would notice changes of what is not watched. */
static void unwatch(struct ub_space *space, const struct mmu_notifier_range *range)
{
	struct ub_range lost;

	ub_watches_cut(&space->watches, range->start, range->end, &lost);
	ub_fragments_retire_range(space, lost.start, lost.end);
}

static void space_invalidate_end(struct mmu_notifier *notifier,
				 const struct mmu_notifier_range *range)
{
	struct ub_space *space = container_of(notifier, struct ub_space, notifier);
	unsigned long flags;
	bool changes;

	/*
	 * Code that was read, or even installed, since the start may be from
	 * before or after the change: hence once more.
	 */
	spin_lock_irqsave(&space->lock, flags);
	changes = code_changes(space, range);
	if (changes && range->event == MMU_NOTIFY_UNMAP)
		unwatch(space, range);
	spin_unlock_irqrestore(&space->lock, flags);
	if (changes)
		wait_for_riders(space, mmu_notifier_range_blockable(range));
}

bool ub_space_watches_file(struct ub_space *space, const struct inode *inode)
{
	struct ub_range range;
	unsigned long flags;
	bool watches;

	spin_lock_irqsave(&space->lock, flags);
	watches = ub_watches_of_file(&space->watches, inode, 0, &range);
	spin_unlock_irqrestore(&space->lock, flags);
	return watches;
}

void ub_space_file_changed(struct ub_space *space, const struct inode *inode)
{
	struct ub_range range = {};
	unsigned long flags;

	/*
	 * One range after the other, so that interrupts wait for one look at the
	 * fragments at most. What is watched or installed meanwhile was read behind the
	 * change, or is refused, since the file is open for writing.
	 */
	spin_lock_irqsave(&space->lock, flags);
	space->sequence++;
	while (ub_watches_of_file(&space->watches, inode, range.end, &range)) {
		ub_fragments_retire_range(space, range.start, range.end);
		spin_unlock_irqrestore(&space->lock, flags);
		spin_lock_irqsave(&space->lock, flags);
	}
	spin_unlock_irqrestore(&space->lock, flags);
	if (range.end)
		wait_for_riders(space, true);
}

static void space_mm_gone(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	struct ub_space *space = container_of(notifier, struct ub_space, notifier);

	WRITE_ONCE(space->gone, true);
}

const struct mmu_notifier_ops ub_space_notifier_ops = {
	.invalidate_range_start = space_invalidate_start,
	.invalidate_range_end = space_invalidate_end,
	.release = space_mm_gone,
	.alloc_notifier = space_alloc,
	.free_notifier = space_free,
};

struct ub_space *ub_space_of_current(struct ub_session *session)
{
	struct mmu_notifier *notifier = mmu_notifier_get(&session->notifier_ops, current->mm);
	struct ub_space *space;
	unsigned long flags;

	if (IS_ERR(notifier))
		return NULL;
	space = container_of(notifier, struct ub_space, notifier);
	if (!cmpxchg(&space->session, NULL, session)) {
		/* Kept by the caller's record until then, as are the ops. */
		ub_session_get(session);
		spin_lock_irqsave(&session->lock, flags);
		space->id = ++session->address_spaces;
		spin_unlock_irqrestore(&session->lock, flags);
		/* Without memory for it, nobody finds it, and its process stays native. */
		xa_store(&session->spaces, space->id, space, GFP_KERNEL_ACCOUNT);
	}
	return space;
}

void ub_space_put(struct ub_space *space)
{
	mmu_notifier_put(&space->notifier);
}

struct ub_space *ub_space_pin(struct ub_session *session, u64 id)
{
	struct ub_space *space;

	xa_lock(&session->spaces);
	space = xa_load(&session->spaces, id);
	if (space && READ_ONCE(space->gone))
		space = NULL;
	/* Taken out before its first reference is dropped. */
	if (space)
		kref_get(&space->ref);
	xa_unlock(&session->spaces);
	return space;
}

struct ub_space *ub_space_pin_next(struct ub_session *session, u64 id)
{
	unsigned long index = id;
	struct ub_space *space;

	xa_lock(&session->spaces);
	space = xa_find_after(&session->spaces, &index, ULONG_MAX, XA_PRESENT);
	if (space)
		kref_get(&space->ref);
	xa_unlock(&session->spaces);
	return space;
}

/*
 * Code that nobody can change without the notifier being told. VM_MAYSHARE may
 * be written through another mapping (VM_SHARED is clear where only others
 * can). An anon_vma means that there may be private copies of pages, which a
 * debugger can write without any notification; it is prepared before the
 * notification of the first copy, so a mapping without one still has that to
 * come.
 */
static bool is_steady_code(const struct vm_area_struct *area)
{
	return (area->vm_flags & VM_EXEC) && !(area->vm_flags & (VM_WRITE | VM_MAYSHARE)) &&
	       !area->anon_vma;
}

/*
 * Makes sure that the code at *range's start is watched and cuts *range to
 * what is. Call with the mmap lock held. *file is the mapped file, counted, or
 * NULL.
 */
static int watch(struct ub_space *space, struct ub_range *range, u64 *sequence,
		 struct file **file)
{
	struct vm_area_struct *area = find_vma(space->mm, range->start);
	struct ub_watch whole;
	unsigned long flags;
	bool watched;
	u64 end;

	if (!area || range->start < area->vm_start)
		return -EFAULT;
	if (!is_steady_code(area))
		return -EACCES;
	whole.range.start = area->vm_start;
	whole.range.end = area->vm_end;
	whole.inode = area->vm_file ? file_inode(area->vm_file) : NULL;

	spin_lock_irqsave(&space->lock, flags);
	watched = ub_watches_add(&space->watches, range->start, &whole, &end);
	*sequence = space->sequence;
	spin_unlock_irqrestore(&space->lock, flags);
	if (!watched)
		return -ENOSPC;
	range->end = min3(range->end, (u64)area->vm_end, end);
	if (area->vm_file)
		*file = get_file(area->vm_file);
	return 0;
}

/*
 * Where no page is mapped yet, nobody is told that an area became writable, nor of the
 * first store. After that it has an anon_vma, for good.
 */
static int still_steady(struct mm_struct *mm, u64 address, u64 end)
{
	struct vm_area_struct *area;
	int err;

	mmap_read_lock(mm);
	area = vma_lookup(mm, address);
	err = area && end <= area->vm_end && is_steady_code(area) ? 0 : -EACCES;
	mmap_read_unlock(mm);
	return err;
}

int ub_space_read_code(struct ub_space *space, u64 address, void *buffer, u32 length,
		       u32 *copied, u64 *sequence)
{
	struct ub_range range = { .start = address, .end = address + length };
	struct mm_struct *mm = space->mm;
	struct file *file = NULL;
	int err, got;

	if (address >= TASK_SIZE_MAX)
		return -EFAULT;
	if (!mmget_not_zero(mm))
		return -ESRCH;
	mmap_read_lock(mm);
	err = watch(space, &range, sequence, &file);
	mmap_read_unlock(mm);
	if (file) {
		err = ub_code_files_watch(space, file);
		fput(file);
	}
	if (!err) {
		got = static_call(ub_access_remote_vm)(mm, address, buffer,
						       range.end - range.start, 0);
		*copied = max(got, 0);
		err = got <= 0 ? -EFAULT : still_steady(mm, address, address + got);
	}
	mmput(mm);
	return err;
}

int ub_space_init(void)
{
	unsigned long address = ub_symbol("access_remote_vm");

	if (!address)
		return -EOPNOTSUPP;
	static_call_update(ub_access_remote_vm, (access_remote_vm_fn *)address);
	/* Each waits for a grace period of the files' marks, and keeps its space until then. */
	end_queue = alloc_workqueue("ub_end", 0, 0);
	return end_queue ? 0 : -ENOMEM;
}

void ub_space_exit(void)
{
	/*
	 * mmu_notifier_synchronize() waits for a grace period, not for the
	 * callbacks that free; the count does. The last callback may still be
	 * on its last instructions: it runs with softirqs off, so RCU knows.
	 */
	while (atomic_read(&live))
		msleep(1);
	/* Likewise who frees a file's mark, which keeps its space. */
	fsnotify_wait_marks_destroyed();
	mmu_notifier_synchronize();
	synchronize_rcu();
	destroy_workqueue(end_queue);
}

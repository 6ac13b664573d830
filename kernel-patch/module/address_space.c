// SPDX-License-Identifier: GPL-2.0
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/static_call.h>

#include "address_space.h"
#include "compat/compat.h"
#include "fragment.h"

typedef int access_remote_vm_fn(struct mm_struct *, unsigned long, void *, int, unsigned int);
DEFINE_STATIC_CALL_NULL(ub_access_remote_vm, *(access_remote_vm_fn *)NULL);

static void space_release(struct kref *ref)
{
	struct ub_space *space = container_of(ref, struct ub_space, ref);

	mmdrop(space->mm);
	if (space->session)
		ub_session_put(space->session);
	kvfree(space);
}

void ub_space_unpin(struct ub_space *space)
{
	kref_put(&space->ref, space_release);
}

static struct mmu_notifier *space_alloc(struct mm_struct *mm)
{
	struct ub_space *space = kvzalloc(sizeof(*space), GFP_KERNEL_ACCOUNT);

	if (!space)
		return ERR_PTR(-ENOMEM);
	kref_init(&space->ref);
	spin_lock_init(&space->lock);
	INIT_LIST_HEAD(&space->fragments);
	INIT_LIST_HEAD(&space->in_session);
	mmgrab(mm);
	space->mm = mm;
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

		spin_lock_irqsave(&session->lock, flags);
		list_del_init(&space->in_session);
		spin_unlock_irqrestore(&session->lock, flags);
		ub_fragments_retire_all(space);
		ub_session_report(session, &report);
	}
	ub_space_unpin(space);
}

/* Half-open interval arithmetic; all ends are user addresses. */
static bool overlaps(u64 start, u64 end, const struct ub_range *range)
{
	return start < range->end && range->start < end;
}

static bool is_watched(struct ub_space *space, u64 start, u64 end)
{
	unsigned int i;

	for (i = 0; i < space->watched_count; i++)
		if (overlaps(start, end, &space->watched[i]))
			return true;
	return false;
}

static int space_invalidate_start(struct mmu_notifier *notifier,
				  const struct mmu_notifier_range *range)
{
	struct ub_space *space = container_of(notifier, struct ub_space, notifier);
	bool retired = false;
	unsigned long flags;

	spin_lock_irqsave(&space->lock, flags);
	if (is_watched(space, range->start, range->end)) {
		space->sequence++;
		space->changing++;
		retired = ub_fragments_retire_range(space, range->start, range->end);
	}
	spin_unlock_irqrestore(&space->lock, flags);
	/*
	 * Another thread may be inside a retired fragment, with preemption
	 * off. Once we return the code may change, so it must be out. In a context that
	 * must not block the whole address space is going away and its
	 * threads with it.
	 */
	if (retired && mmu_notifier_range_blockable(range))
		synchronize_rcu();
	return 0;
}

static void space_invalidate_end(struct mmu_notifier *notifier,
				 const struct mmu_notifier_range *range)
{
	struct ub_space *space = container_of(notifier, struct ub_space, notifier);
	unsigned long flags;

	spin_lock_irqsave(&space->lock, flags);
	/*
	 * A range may have become watched between start and end, so the count
	 * can be off for a while. Hence the sequence moves here too, and what
	 * was installed meanwhile goes.
	 */
	if (is_watched(space, range->start, range->end)) {
		space->sequence++;
		if (space->changing)
			space->changing--;
		ub_fragments_retire_range(space, range->start, range->end);
	}
	spin_unlock_irqrestore(&space->lock, flags);
}

static void space_mm_gone(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	struct ub_space *space = container_of(notifier, struct ub_space, notifier);

	WRITE_ONCE(space->gone, true);
}

static const struct mmu_notifier_ops notifier_ops = {
	.invalidate_range_start = space_invalidate_start,
	.invalidate_range_end = space_invalidate_end,
	.release = space_mm_gone,
	.alloc_notifier = space_alloc,
	.free_notifier = space_free,
};

struct ub_space *ub_space_of_current(struct ub_session *session)
{
	struct mmu_notifier *notifier = mmu_notifier_get(&notifier_ops, current->mm);
	struct ub_space *space;
	unsigned long flags;

	if (IS_ERR(notifier))
		return NULL;
	space = container_of(notifier, struct ub_space, notifier);
	spin_lock_irqsave(&session->lock, flags);
	if (!space->session) {
		ub_session_get(session);
		space->session = session;
		space->id = ++session->address_spaces;
		list_add(&space->in_session, &session->spaces);
	}
	spin_unlock_irqrestore(&session->lock, flags);
	if (space->session != session) {
		/* CLONE_VM across sessions: the first one has it. */
		mmu_notifier_put(notifier);
		return NULL;
	}
	return space;
}

void ub_space_put(struct ub_space *space)
{
	mmu_notifier_put(&space->notifier);
}

struct ub_space *ub_space_pin(struct ub_session *session, u64 id)
{
	struct ub_space *space, *found = NULL;
	unsigned long flags;

	spin_lock_irqsave(&session->lock, flags);
	list_for_each_entry(space, &session->spaces, in_session) {
		if (space->id == id && !READ_ONCE(space->gone)) {
			kref_get(&space->ref);
			found = space;
			break;
		}
	}
	spin_unlock_irqrestore(&session->lock, flags);
	return found;
}

/* Call with the mmap lock held. */
static int watch(struct ub_space *space, u64 address, u64 *end, u64 *sequence)
{
	struct vm_area_struct *area = find_vma(space->mm, address);
	struct ub_range range;
	unsigned long flags;
	int err = 0;

	if (!area || address < area->vm_start)
		return -EFAULT;
	/* Shared code may be written through another mapping, unseen. */
	if (!(area->vm_flags & VM_EXEC) || (area->vm_flags & (VM_WRITE | VM_SHARED)))
		return -EACCES;
	range.start = area->vm_start;
	range.end = area->vm_end;

	spin_lock_irqsave(&space->lock, flags);
	if (space->changing) {
		err = -EAGAIN;
	} else if (!is_watched(space, address, address + 1)) {
		if (space->watched_count == UB_SPACE_WATCHED)
			err = -ENOSPC;
		else
			space->watched[space->watched_count++] = range;
	}
	*sequence = space->sequence;
	spin_unlock_irqrestore(&space->lock, flags);
	*end = range.end;
	return err;
}

int ub_space_read_code(struct ub_space *space, u64 address, void *buffer, u32 length,
		       u32 *copied, u64 *sequence)
{
	struct mm_struct *mm = space->mm;
	u64 end;
	int err, got;

	if (address >= TASK_SIZE_MAX)
		return -EFAULT;
	if (!mmget_not_zero(mm))
		return -ESRCH;
	mmap_read_lock(mm);
	err = watch(space, address, &end, sequence);
	mmap_read_unlock(mm);
	if (!err) {
		length = min_t(u64, length, end - address);
		got = static_call(ub_access_remote_vm)(mm, address, buffer, length, 0);
		*copied = max(got, 0);
		if (got <= 0)
			err = -EFAULT;
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
	return 0;
}

void ub_space_exit(void)
{
	mmu_notifier_synchronize();
}

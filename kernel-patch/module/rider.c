// SPDX-License-Identifier: GPL-2.0
#include <linux/pid.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/tracepoint.h>

#include "address_space.h"
#include "compat/compat.h"
#include "compat/mark.h"
#include "protection.h"
#include "rider.h"

struct hlist_head ub_riders[1 << UB_RIDER_BITS];
static DEFINE_SPINLOCK(table_lock);
static struct tracepoint *fork_tracepoint;
static struct tracepoint *exit_tracepoint;

/* With table_lock held. */
static struct ub_rider *find_staying(const struct task_struct *task, bool *has_leaving)
{
	struct ub_rider *rider;

	hash_for_each_possible(ub_riders, rider, in_table, (unsigned long)task) {
		if (rider->task != task)
			continue;
		if (!ub_rider_is_leaving(rider))
			return rider;
		*has_leaving = true;
	}
	return NULL;
}

/*
 * Makes the thread a member and marks it. 0; -EALREADY or -EBUSY if it is one
 * of this or another session already; -ENOMEM.
 */
static int rider_add(struct ub_session *session, struct task_struct *task, gfp_t gfp)
{
	struct ub_rider *rider = kzalloc(sizeof(*rider), gfp), *present;
	unsigned long flags;
	int err = 0;

	if (!rider)
		return -ENOMEM;
	rider->task = task;
	rider->session = session;
	rider->time_gaps = session->config.flags & UB_SESSION_TIME_GAPS;
	rider->random = get_random_u32() | 1;
	rider->rate_start = rdtsc();
	rider->interval = session->config.sample_interval;
	/* No need to wait for the first figure where every rate will do. */
	rider->busy = session->config.min_rate <= 1;

	spin_lock_irqsave(&table_lock, flags);
	present = find_staying(task, &rider->has_predecessor);
	if (present) {
		err = present->session == session ? -EALREADY : -EBUSY;
	} else {
		ub_session_get(session);
		spin_lock(&session->lock);
		list_add(&rider->in_session, &session->riders);
		session->threads++;
		session->threads_now++;
		spin_unlock(&session->lock);
		hash_add_rcu(ub_riders, &rider->in_table, (unsigned long)task);
		/* The parent's, or of an earlier session. */
		WRITE_ONCE(*ub_calls_to_skip(task), 0);
		/* The record before the mark: who sees this one looks for that one. */
		ub_set_mark(task);
	}
	spin_unlock_irqrestore(&table_lock, flags);
	if (err)
		kfree(rider);
	return err;
}

void ub_rider_skip(struct ub_rider *rider, u16 calls)
{
	rider->skipping = calls;
	WRITE_ONCE(*ub_calls_to_skip(current), calls);
}

/*
 * Its next call is looked at again, whatever it was told. It may miss that, as it
 * counts without a lock: then it is here a few calls later. With its session's
 * lock held.
 */
static void wake(struct ub_rider *rider)
{
	u16 *skip = ub_calls_to_skip(rider->task);
	u16 left = READ_ONCE(*skip);

	if (left) {
		WRITE_ONCE(*skip, 0);
		WRITE_ONCE(rider->not_skipped, READ_ONCE(rider->not_skipped) + left);
	}
}

/* Counts the calls that the thread made without being looked at. */
static void count_skipped(struct ub_rider *rider)
{
	u32 not_skipped = xchg(&rider->not_skipped, 0) + READ_ONCE(*ub_calls_to_skip(current));
	u32 calls = rider->skipping - min(not_skipped, rider->skipping);

	rider->skipping = 0;
	WRITE_ONCE(*ub_calls_to_skip(current), 0);
	rider->counters.entered += calls;
	rider->counters.refused[UB_STOP_NO_FRAGMENT] += calls;
}

/* The thread itself and whoever attaches it while it exits may both want to. */
static void rider_remove(struct ub_rider *rider)
{
	struct ub_session *session = rider->session;
	unsigned long flags;
	bool mine;

	spin_lock_irqsave(&table_lock, flags);
	mine = !hlist_unhashed(&rider->in_table);
	hash_del_rcu(&rider->in_table);
	spin_unlock_irqrestore(&table_lock, flags);
	if (!mine)
		return;

	if (rider->space)
		ub_space_put(rider->space);

	spin_lock_irqsave(&session->lock, flags);
	list_del(&rider->in_session);
	ub_session_collect(session, rider);
	session->threads_now -= !rider->leaving;
	spin_unlock_irqrestore(&session->lock, flags);
	wake_up_all(&session->readers);
	ub_session_put(session);
	kfree_rcu(rider, rcu);
}

int ub_rider_enroll(struct ub_session *session)
{
	int err;

	if (READ_ONCE(session->ended))
		return -ESHUTDOWN;
	/* The other threads would not be enrolled: refuse rather than surprise. */
	if (!thread_group_empty(current))
		return -EBUSY;
	err = rider_add(session, current, GFP_KERNEL);
	return err == -EBUSY ? -EALREADY : err;
}

/* Never in user mode, so there is nothing to bypass. */
static bool is_worker(const struct task_struct *task)
{
	return task->flags & (PF_KTHREAD | PF_IO_WORKER);
}

/* One thread of a running process. With the RCU read lock held. */
static int attach_thread(struct ub_session *session, struct task_struct *task, u32 *threads)
{
	struct ub_rider *rider;
	unsigned long flags;
	bool unused;
	int err;

	if (is_worker(task) || (READ_ONCE(task->flags) & PF_EXITING))
		return 0;
	UB_RACE_WINDOW(500);
	err = rider_add(session, task, GFP_ATOMIC | __GFP_NOWARN);
	if (err == -EALREADY)
		return 0;
	if (err)
		return err;
	/*
	 * on_exit() looks for the mark after PF_EXITING was set, we look for
	 * PF_EXITING after the mark was set: one of us sees the other's. If
	 * both do, rider_remove() lets one of them have it.
	 */
	smp_mb();
	if ((READ_ONCE(task->flags) & PF_EXITING) && !UB_LEFT_OUT(ATTACH_EXIT_CHECK)) {
		spin_lock_irqsave(&table_lock, flags);
		rider = find_staying(task, &unused);
		spin_unlock_irqrestore(&table_lock, flags);
		if (rider && rider->session == session)
			rider_remove(rider);
		return 0;
	}
	++*threads;
	return 0;
}

/* A process other than the caller's, counted, or an ERR_PTR. */
static struct task_struct *find_process(u32 nr)
{
	struct pid *pid = find_get_pid(nr);
	struct task_struct *task = get_pid_task(pid, PIDTYPE_TGID);

	put_pid(pid);
	if (!task)
		return ERR_PTR(-ESRCH);
	/* A supervisor that rides would wait for itself. */
	if (is_worker(task) || same_thread_group(task, current)) {
		put_task_struct(task);
		return ERR_PTR(-EINVAL);
	}
	return task;
}

static bool in_other_session(struct ub_session *session, struct task_struct *process)
{
	struct ub_rider *rider;
	struct task_struct *task;
	unsigned long flags;
	bool found = false, unused;

	rcu_read_lock();
	for_each_thread(process, task) {
		spin_lock_irqsave(&table_lock, flags);
		rider = find_staying(task, &unused);
		found |= rider && rider->session != session;
		spin_unlock_irqrestore(&table_lock, flags);
	}
	rcu_read_unlock();
	return found;
}

/* Threads of the process that are members of the session, or of any if NULL. */
static u32 detach_threads(struct task_struct *process, const struct ub_session *session)
{
	struct ub_session *left = NULL;
	struct task_struct *task;
	struct ub_rider *rider;
	unsigned long flags;
	u32 threads = 0;
	bool unused;

	rcu_read_lock();
	for_each_thread(process, task) {
		spin_lock_irqsave(&table_lock, flags);
		rider = find_staying(task, &unused);
		if (rider && (!session || rider->session == session)) {
			if (!left) {
				left = rider->session;
				ub_session_get(left);
			}
			spin_lock(&rider->session->lock);
			WRITE_ONCE(rider->leaving, true);
			wake(rider);
			rider->session->threads_now--;
			spin_unlock(&rider->session->lock);
			/* Seen by the poll of a loop that has no other reason to end. */
			set_tsk_thread_flag(task, TIF_NOTIFY_RESUME);
			threads++;
		}
		spin_unlock_irqrestore(&table_lock, flags);
	}
	rcu_read_unlock();
	if (left) {
		wake_up_all(&left->readers);
		ub_session_put(left);
	}
	return threads;
}

int ub_rider_attach(struct ub_session *session, u32 pid, u32 *threads)
{
	struct task_struct *process = find_process(pid), *task;
	u32 before;
	int err = 0;

	if (IS_ERR(process))
		return PTR_ERR(process);
	if (in_other_session(session, process))
		err = -EBUSY;
	/*
	 * Until a pass finds nobody new. A thread that a member makes is
	 * enrolled by on_fork(). One that was made by a thread before it became
	 * a member is in the list by then, so the next pass finds it.
	 */
	do {
		before = *threads;
		rcu_read_lock();
		for_each_thread(process, task) {
			if (READ_ONCE(session->ended))
				err = -ESHUTDOWN;
			if (!err)
				err = attach_thread(session, task, threads);
		}
		rcu_read_unlock();
		cond_resched();
	} while (!err && *threads != before);
	/*
	 * All or none: a program whose threads differ would be hard to understand. Two
	 * sessions may be at it at once.
	 */
	if (err && *threads)
		detach_threads(process, session);
	put_task_struct(process);
	return err;
}

int ub_rider_detach(u32 pid, u32 *threads)
{
	struct task_struct *process = find_process(pid);

	if (IS_ERR(process))
		return PTR_ERR(process);
	*threads = detach_threads(process, NULL);
	put_task_struct(process);
	return *threads ? 0 : -ESRCH;
}

/*
 * No member any more, unless somebody made it one again just now. Should it have
 * been taken out since, its record is still there: the mark, by which on_exit()
 * knows that there is one, must not go before the record does.
 */
static void unmark(struct task_struct *task)
{
	unsigned long flags;
	bool has_leaving = false;

	spin_lock_irqsave(&table_lock, flags);
	if (!find_staying(task, &has_leaving) && (!has_leaving || UB_LEFT_OUT(MARK_OF_LEAVING)))
		ub_clear_mark(task);
	spin_unlock_irqrestore(&table_lock, flags);
}

void ub_rider_leave(struct ub_rider *rider)
{
	rider_remove(rider);
	/* Attached once more meanwhile, and detached. */
	UB_RACE_WINDOW(10000);
	unmark(current);
}

/* It is not in use: the thread is at the entry of a call. */
static void drop_predecessors(struct ub_rider *rider)
{
	struct ub_rider *other, *found;

	rider->has_predecessor = false;
	do {
		found = NULL;
		preempt_disable();
		hash_for_each_possible_rcu_notrace(ub_riders, other, in_table,
						   (unsigned long)current)
			if (other->task == current && other != rider)
				found = other;
		preempt_enable();
		if (found)
			rider_remove(found);
	} while (found);
}

struct ub_rider *ub_rider_enter(void)
{
	struct ub_rider *rider = ub_rider_current();

	if (unlikely(!rider)) {
		/* A mark from an earlier life of this module. */
		unmark(current);
		return NULL;
	}
	if (rider->skipping)
		count_skipped(rider);
	if (unlikely(rider->has_predecessor))
		drop_predecessors(rider);
	if (unlikely(ub_rider_is_leaving(rider))) {
		ub_rider_leave(rider);
		return NULL;
	}
	return rider;
}

struct ub_space *ub_rider_space(struct ub_rider *rider)
{
	if (likely(rider->space && rider->space->mm == current->mm))
		return rider->space;
	/* exec replaced the address space, or this is the first call. */
	if (rider->space)
		ub_space_put(rider->space);
	rider->space = NULL;
	rider->gap = NULL;
	if (current->mm)
		rider->space = ub_space_of_current(rider->session);
	return rider->space;
}

/*
 * Runs in the parent, before the child is woken and after it can be found in
 * its process; preemption is off. The child has the mark if its parent had it
 * when the copy was made, which may be longer ago than an attach.
 */
static void on_fork(void *unused, struct task_struct *parent, struct task_struct *child)
{
	struct ub_rider *rider;

	if (!ub_has_mark(child) && !ub_has_mark(current))
		return;
	rider = ub_rider_current();
	if (!rider || ub_rider_is_leaving(rider) ||
	    rider_add(rider->session, child, GFP_ATOMIC | __GFP_NOWARN) == -ENOMEM)
		unmark(child);
}

/* Runs in the thread that ends; preemption is off. */
static void on_exit(void *unused, struct task_struct *task)
{
	struct ub_rider *rider;

	if (!ub_has_mark(task)) {
		/* It would outlive the task, and be taken for one of the next task there. */
		UB_EXPECT(!ub_rider_current());
		return;
	}
	while ((rider = ub_rider_current())) {
		count_skipped(rider);
		rider_remove(rider);
	}
	ub_clear_mark(current);
}

static void find_tracepoint(struct tracepoint *tracepoint, void *unused)
{
	if (!strcmp(tracepoint->name, "sched_process_fork"))
		fork_tracepoint = tracepoint;
	else if (!strcmp(tracepoint->name, "sched_process_exit"))
		exit_tracepoint = tracepoint;
}

int ub_rider_init(void)
{
	int err;

	for_each_kernel_tracepoint(find_tracepoint, NULL);
	if (!fork_tracepoint || !exit_tracepoint)
		return -EOPNOTSUPP;
	err = tracepoint_probe_register(exit_tracepoint, on_exit, NULL);
	if (err)
		return err;
	err = tracepoint_probe_register(fork_tracepoint, on_fork, NULL);
	if (err)
		tracepoint_probe_unregister(exit_tracepoint, on_exit, NULL);
	return err;
}

void ub_rider_exit(void)
{
	struct ub_rider *rider;
	struct hlist_node *next;
	int bucket;

	tracepoint_probe_unregister(fork_tracepoint, on_fork, NULL);
	/*
	 * From here on a thread may end without telling. Its record must not
	 * be dereferenced any more, only freed: marks that stay behind are
	 * cleared by the gate when their thread makes its next call.
	 */
	tracepoint_probe_unregister(exit_tracepoint, on_exit, NULL);
	tracepoint_synchronize_unregister();
	hash_for_each_safe(ub_riders, bucket, next, rider, in_table)
		rider_remove(rider);
}

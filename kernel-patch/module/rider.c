// SPDX-License-Identifier: GPL-2.0
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/tracepoint.h>

#include "address_space.h"
#include "compat/compat.h"
#include "rider.h"

struct hlist_head ub_riders[1 << UB_RIDER_BITS];
static DEFINE_SPINLOCK(table_lock);
static struct tracepoint *fork_tracepoint;
static struct tracepoint *exit_tracepoint;

static struct ub_rider *rider_add(struct ub_session *session, struct task_struct *task,
				  gfp_t gfp)
{
	struct ub_rider *rider = kzalloc(sizeof(*rider), gfp);
	unsigned long flags;

	if (!rider)
		return NULL;
	rider->task = task;
	rider->session = session;
	rider->time_gaps = session->config.flags & UB_SESSION_TIME_GAPS;
	rider->random = get_random_u32() | 1;
	rider->rate_start = rdtsc();
	/* No need to wait for the first figure where every rate will do. */
	rider->busy = session->config.min_rate <= 1;
	ub_session_get(session);

	spin_lock_irqsave(&session->lock, flags);
	list_add(&rider->in_session, &session->riders);
	session->threads++;
	session->threads_now++;
	spin_unlock_irqrestore(&session->lock, flags);

	spin_lock_irqsave(&table_lock, flags);
	hash_add_rcu(ub_riders, &rider->in_table, (unsigned long)task);
	spin_unlock_irqrestore(&table_lock, flags);
	return rider;
}

static void rider_remove(struct ub_rider *rider)
{
	struct ub_session *session = rider->session;
	unsigned long flags;

	spin_lock_irqsave(&table_lock, flags);
	hash_del_rcu(&rider->in_table);
	spin_unlock_irqrestore(&table_lock, flags);

	if (rider->space)
		ub_space_put(rider->space);

	spin_lock_irqsave(&session->lock, flags);
	list_del(&rider->in_session);
	ub_counters_add(&session->past, &rider->counters);
	session->threads_now--;
	spin_unlock_irqrestore(&session->lock, flags);
	wake_up_all(&session->readers);
	ub_session_put(session);
	kfree_rcu(rider, rcu);
}

int ub_rider_enroll(struct ub_session *session)
{
	if (READ_ONCE(session->ended))
		return -ESHUTDOWN;
	/* The other threads would not be enrolled: refuse rather than surprise. */
	if (!thread_group_empty(current))
		return -EBUSY;
	if (ub_rider_current())
		return -EALREADY;
	if (!rider_add(session, current, GFP_KERNEL))
		return -ENOMEM;
	set_thread_flag(UB_TIF_ENROLLED);
	return 0;
}

void ub_rider_leave(struct ub_rider *rider)
{
	clear_thread_flag(UB_TIF_ENROLLED);
	rider_remove(rider);
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

/* Runs in the parent before the child is woken; preemption is off. */
static void on_fork(void *unused, struct task_struct *parent, struct task_struct *child)
{
	struct ub_rider *rider;

	if (!test_tsk_thread_flag(child, UB_TIF_ENROLLED))
		return;
	rider = ub_rider_current();
	if (!rider || READ_ONCE(rider->session->ended) ||
	    !rider_add(rider->session, child, GFP_ATOMIC | __GFP_NOWARN))
		clear_tsk_thread_flag(child, UB_TIF_ENROLLED);
}

/* Runs in the thread that ends. */
static void on_exit(void *unused, struct task_struct *task)
{
	struct ub_rider *rider;

	if (!test_tsk_thread_flag(task, UB_TIF_ENROLLED))
		return;
	rider = ub_rider_current();
	if (rider)
		ub_rider_leave(rider);
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

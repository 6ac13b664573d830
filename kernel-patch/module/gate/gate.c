// SPDX-License-Identifier: GPL-2.0
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/nospec.h>
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/static_call.h>
#include <linux/syscalls.h>
#include <linux/workqueue.h>
#include <asm/ptrace.h>
#include <asm/unistd.h>

#include "compat/compat.h"
#include "compat/mark.h"
#include "gate/filter.h"
#include "gate/gate.h"

/*
 * x64_sys_call(), or its body behind the ftrace site. A static call, because
 * there is no ENDBR where that starts.
 */
DEFINE_STATIC_CALL_NULL(ub_body, *(long (*)(const struct pt_regs *, unsigned int))NULL);

/* attached->after, without an indirect branch; nobody's between two users. */
static int after_nothing(void *thread, struct pt_regs *regs)
{
	return -1;
}

DEFINE_STATIC_CALL(ub_after, after_nothing);

static const struct ub_gate_ops *attached;
/*
 * Counts attachments. What enter() returned is good for the one that returned
 * it: a thread may sleep in a call while its module is replaced by another.
 */
static unsigned long attachment;
static DEFINE_MUTEX(attach_lock);

/*
 * Threads inside ops and threads inside the loop. Each count is the sum over
 * all CPUs; a thread may leave on another CPU than it entered on. Once no new
 * entries can happen, a sum of zero is final.
 */
static DEFINE_PER_CPU(long, inside_ops);
static DEFINE_PER_CPU(long, inside_loop);

static long sum(long __percpu *counter)
{
	long total = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		total += READ_ONCE(*per_cpu_ptr(counter, cpu));
	return total;
}

static const struct ub_gate_ops *ops_get(void)
{
	const struct ub_gate_ops *ops;

	/*
	 * Preemption off makes this a reader for the synchronize_rcu() in
	 * detach: whoever read the pointer before it was cleared has been
	 * counted by the time that returns.
	 */
	preempt_disable();
	ops = smp_load_acquire(&attached);
	if (ops)
		this_cpu_inc(inside_ops);
	preempt_enable();
	return ops;
}

static void ops_put(void)
{
	this_cpu_dec(inside_ops);
}

struct ub_gate_pass ub_gate_enter(struct pt_regs *regs, unsigned int nr)
{
	const struct ub_gate_ops *ops = ops_get();
	struct ub_gate_pass pass = {};

	/* The hook counted it below 0. */
	WRITE_ONCE(*ub_calls_to_skip(current), 0);
	if (!ops) {
		/* A mark that outlived its module. */
		ub_clear_mark(current);
		return pass;
	}
	pass.attachment = READ_ONCE(attachment);
	pass.thread = ops->enter(regs, nr);
	/* Before ops_put(): detach must see a thread in one count or the other. */
	if (pass.thread)
		this_cpu_inc(inside_loop);
	ops_put();
	return pass;
}

static __always_inline int after(struct pt_regs *regs, const struct ub_gate_pass *pass)
{
	int next = -1;

	if (!ops_get())
		return -1;
	/* It cannot change before ops_put(): detach waits for that. */
	if (likely(READ_ONCE(attachment) == pass->attachment))
		next = static_call(ub_after)(pass->thread, regs);
	ops_put();
	return next;
}

long ub_gate_loop(struct pt_regs *regs, unsigned int nr, unsigned long attachment, void *thread)
{
	const struct ub_gate_pass pass = { thread, attachment };
	int next = nr;
	bool replaced = false;

	/* Counted in by ub_gate_enter(). */
	do {
		/* As do_syscall_x64() does: the number is the user's. */
		nr = array_index_nospec((unsigned int)next, NR_syscalls);
		regs->ax = static_call(ub_body)(regs, nr);
		/* A call that a tracer put in ops' place: what follows is not theirs. */
		next = replaced ? -1 : after(regs, &pass);
		if (next >= 0 && unlikely(ub_filter_wanted())) {
			int judged = ub_filter_call(regs);

			replaced = judged != next;
			next = judged;
			if (unlikely(next >= NR_syscalls)) {
				regs->ax = -ENOSYS;
				break;
			}
		}
	} while (next >= 0);
	this_cpu_dec(inside_loop);
	/* do_syscall_x64() stores it to regs->ax once more. */
	return regs->ax;
}

void ub_gate_set_body(unsigned long address)
{
	static_call_update(ub_body, (long (*)(const struct pt_regs *, unsigned int))address);
}

/*
 * Sleepers keep this module, not ub.ko. While there are any after a detach,
 * the module holds a reference to itself, so that rmmod says "in use".
 */
static void unpin_when_empty(struct work_struct *work);
static DECLARE_DELAYED_WORK(unpin_work, unpin_when_empty);
static bool pinned;

static void unpin_when_empty(struct work_struct *work)
{
	mutex_lock(&attach_lock);
	if (pinned && !sum(&inside_loop)) {
		pinned = false;
		module_put(THIS_MODULE);
	}
	if (pinned)
		schedule_delayed_work(&unpin_work, HZ);
	mutex_unlock(&attach_lock);
}

int ub_gate_attach(const struct ub_gate_ops *ops)
{
	int err = -EBUSY;

	mutex_lock(&attach_lock);
	if (!attached) {
		/* Before the hook: a marked thread that meets no ops loses its mark. */
		static_call_update(ub_after, ops->after);
		WRITE_ONCE(attachment, attachment + 1);
		/* The new count before anyone can find the new ops. */
		smp_store_release(&attached, ops);
		err = ub_hook_attach();
		if (err) {
			WRITE_ONCE(attached, NULL);
			static_call_update(ub_after, after_nothing);
		}
	}
	mutex_unlock(&attach_lock);
	return err;
}
EXPORT_SYMBOL_GPL(ub_gate_attach);

void ub_gate_detach(void)
{
	mutex_lock(&attach_lock);
	ub_hook_detach();
	WRITE_ONCE(attached, NULL);
	synchronize_rcu();
	while (sum(&inside_ops))
		msleep(1);
	static_call_update(ub_after, after_nothing);
	if (sum(&inside_loop) && !pinned) {
		pinned = true;
		__module_get(THIS_MODULE);
		schedule_delayed_work(&unpin_work, HZ);
		pr_info("ub_gate: kept while %ld threads sleep in system calls\n",
			sum(&inside_loop));
	}
	mutex_unlock(&attach_lock);
}
EXPORT_SYMBOL_GPL(ub_gate_detach);

/* A thread ended in the loop, by its filter's verdict. */
static void leave_loop(void)
{
	this_cpu_dec(inside_loop);
}

static int __init gate_init(void)
{
	int err = ub_hook_init();

	if (err)
		return err;
	err = ub_filter_init(leave_loop);
	if (err)
		ub_hook_exit();
	return err;
}

static void __exit gate_exit(void)
{
	cancel_delayed_work_sync(&unpin_work);
	/*
	 * A thread may have been preempted on the trampoline or on the last
	 * instructions of the loop, behind the counters.
	 */
	synchronize_rcu_tasks();
	ub_filter_exit();
	ub_hook_exit();
}

module_init(gate_init);
module_exit(gate_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Userspace Bypass: system-call gate");

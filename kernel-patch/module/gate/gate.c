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
#include <asm/tsc.h>
#include <asm/unistd.h>

#include "compat/compat.h"
#include "compat/mark.h"
#include "gate/filter.h"
#include "gate/gate.h"
#include "protection.h"

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

static const struct ub_gate_ops *attached;	/* changed with nobody inside ops */
/*
 * Number of the present attachment. What enter() returned is good for the one that
 * returned it: a thread may sleep in a call while its module is replaced by another.
 */
static unsigned long attachment;
static unsigned long attachments;	/* so far; with attach_lock */
/* Numbers of none: before one and behind it, and of threads that have nothing to do with it. */
#define NO_ATTACHMENT 0ul
#define NEVER_ATTACHED ULONG_MAX
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

/*
 * Into the ops of this attachment, or of any, until ops_put(). NO_ATTACHMENT: there
 * are none. Preemption off makes this a reader for the synchronize_rcu() in detach:
 * whoever read the number before it was cleared is counted by the time that returns.
 */
static unsigned long ops_get_any(void)
{
	unsigned long number;

	preempt_disable();
	number = smp_load_acquire(&attachment);
	if (number != NO_ATTACHMENT)
		this_cpu_inc(inside_ops);
	preempt_enable();
	return number;
}

static __always_inline bool ops_get(unsigned long number)
{
	bool same;

	preempt_disable();
	same = smp_load_acquire(&attachment) == number;
	if (likely(same))
		this_cpu_inc(inside_ops);
	preempt_enable();
	return same;
}

static void ops_put(void)
{
	this_cpu_dec(inside_ops);
}

struct ub_gate_pass ub_gate_enter(struct pt_regs *regs, unsigned int nr)
{
	u64 entered = rdtsc();
	struct ub_gate_pass pass = { .attachment = ops_get_any() };

	/* The hook counted it below 0. */
	WRITE_ONCE(*ub_calls_to_skip(current), 0);
	if (pass.attachment == NO_ATTACHMENT) {
		/* A mark that outlived its module. */
		ub_clear_mark(current);
		return pass;
	}
	pass.thread = attached->enter(regs, nr, entered);
	/* Before ops_put(): detach must see a thread in one count or the other. */
	if (pass.thread)
		this_cpu_inc(inside_loop);
	ops_put();
	return pass;
}

static __always_inline int after(struct pt_regs *regs, const struct ub_gate_pass *pass)
{
	int next;

	/* A call that a tracer put in ops' place, too: what follows is not theirs. */
	if (!ops_get(pass->attachment))
		return -1;
	next = static_call(ub_after)(pass->thread, regs);
	ops_put();
	return next;
}

long ub_gate_loop(struct pt_regs *regs, unsigned int nr, unsigned long attachment, void *thread)
{
	struct ub_gate_pass pass = { thread, attachment };
	int next = nr;

	/* Counted in by ub_gate_enter(). */
	do {
		/* As do_syscall_x64() does: the number is the user's. */
		nr = array_index_nospec((unsigned int)next, NR_syscalls);
		regs->ax = static_call(ub_body)(regs, nr);
		next = after(regs, &pass);
		if (next >= 0 && unlikely(ub_filter_wanted())) {
			int judged = ub_filter_call(regs);

			if (judged != next)
				pass.attachment = NEVER_ATTACHED;
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

#define TIMINGS 64
static u32 gate_cycles;

u32 ub_gate_cycles(void)
{
	return gate_cycles;
}
EXPORT_SYMBOL_GPL(ub_gate_cycles);

/*
 * As the loop does between two calls, with nobody to ask yet. The least of several, as
 * interrupts only make it longer.
 */
static u32 time_loop(void)
{
	const struct ub_gate_pass pass = { .attachment = attachment };
	u64 begin, middle, end;
	u32 least = U32_MAX;
	int i;

	for (i = 0; i < TIMINGS; i++) {
		begin = rdtsc();
		/* From here to there is what reading the counter takes. */
		middle = rdtsc();
		after(NULL, &pass);
		(void)ub_filter_wanted();
		end = rdtsc();
		least = min_t(u64, least, max_t(s64, end - middle - (middle - begin), 0));
	}
	return least;
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
		attached = ops;
		/* The new ops before anyone can find the new number. */
		smp_store_release(&attachment, ++attachments);
		gate_cycles = time_loop();
		static_call_update(ub_after, ops->after);
		err = ub_hook_attach();
		if (err) {
			WRITE_ONCE(attachment, NO_ATTACHMENT);
			attached = NULL;
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
	WRITE_ONCE(attachment, NO_ATTACHMENT);
	synchronize_rcu();
	while (sum(&inside_ops) && !UB_LEFT_OUT(WAIT_FOR_LEAVERS))
		msleep(1);
	attached = NULL;
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

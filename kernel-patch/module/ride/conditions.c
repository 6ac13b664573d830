// SPDX-License-Identifier: GPL-2.0
/* Work that the way back to user mode would do, done in a ride. */
#include <linux/rseq.h>
#include <linux/sched.h>
#include <linux/static_call.h>
#include <linux/task_work.h>

#include "compat/compat.h"
#include "ride/conditions.h"

typedef void rseq_resume_fn(struct ksignal *, struct pt_regs *);
DEFINE_STATIC_CALL_NULL(ub_rseq_resume, *(rseq_resume_fn *)NULL);

/*
 * What resume_user_mode_work() does for TIF_NOTIFY_RESUME, if restartable
 * sequences are all there is to it: they must learn of a preemption or
 * migration before the next user instruction. Anything else: out.
 */
static int notify_resume(struct pt_regs *regs)
{
	clear_thread_flag(TIF_NOTIFY_RESUME);
	/* Pairs with task_work_add(): flag first, then look for the work. */
	smp_mb__after_atomic();
	if (task_work_pending(current) || current->memcg_nr_pages_over_high ||
#ifdef CONFIG_KEYS_REQUEST_CACHE
	    current->cached_requested_key ||
#endif
	    ub_throttled()) {
		set_thread_flag(TIF_NOTIFY_RESUME);
		return UB_STOP_POLL;
	}
	if (current->rseq && !UB_LEFT_OUT(RSEQ))
		static_call(ub_rseq_resume)(NULL, regs);
	return UB_GO;
}

int ub_do_pending_work(struct pt_regs *regs)
{
	unsigned long work;
	int result;

	/*
	 * As exit_to_user_mode_loop() does, until nothing is left: a context
	 * switch leaves work for restartable sequences.
	 */
	while ((work = read_thread_flags() & UB_WORK_MASK)) {
		if (work & ~(_TIF_NEED_RESCHED | _TIF_NOTIFY_RESUME))
			return work & REFUSED_FLAGS ? UB_STOP_CONDITION : UB_STOP_POLL;
		if (work & _TIF_NEED_RESCHED)
			schedule();
		if (work & _TIF_NOTIFY_RESUME) {
			result = notify_resume(regs);
			if (result != UB_GO)
				return result;
		}
	}
	return UB_GO;
}

int ub_conditions_init(void)
{
	unsigned long resume = ub_symbol("__rseq_handle_notify_resume");

	if (!resume)
		return -EOPNOTSUPP;
	static_call_update(ub_rseq_resume, (rseq_resume_fn *)resume);
	return 0;
}

// SPDX-License-Identifier: GPL-2.0
/*
 * The run conditions. What user mode would have noticed must end the ride
 * before the next user instruction; each check names what would go wrong.
 */
#include <linux/mm.h>
#include <linux/rseq.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/static_call.h>
#include <linux/task_work.h>
#include <asm/debugreg.h>
#include <asm/fsgsbase.h>
#include <asm/nospec-branch.h>
#include <asm/processor-flags.h>
#include <asm/segment.h>

#include "address_space.h"
#include "compat/compat.h"
#include "mitigations.h"
#include "ride/conditions.h"
#include "rider.h"

/* An access fs:[disp32] stays in the user half or its hole above this base. */
#define FS_BASE_MIN (1ul << 31)

/*
 * Threads with these flags run differently in ways that fragments do not
 * reproduce: rdtsc forbidden, stepping, an uprobe being stepped over, MSRs of
 * a KVM guest that are put right on the way to user mode only.
 */
#define REFUSED_FLAGS (_TIF_NOTSC | _TIF_SINGLESTEP | _TIF_BLOCKSTEP | _TIF_FORCED_TF | \
		       _TIF_UPROBE | _TIF_USER_RETURN_NOTIFY)
/*
 * TF: every instruction traps. DF: fragments assume it clear. AC: ring 0 does
 * not check alignment. NT, RF, VM: nobody rides with those.
 */
#define REFUSED_EFLAGS (X86_EFLAGS_TF | X86_EFLAGS_DF | X86_EFLAGS_AC | X86_EFLAGS_NT | \
			X86_EFLAGS_RF | X86_EFLAGS_VM)

typedef void rseq_resume_fn(struct ksignal *, struct pt_regs *);
DEFINE_STATIC_CALL_NULL(ub_rseq_resume, *(rseq_resume_fn *)NULL);

int ub_may_ride(struct ub_rider *rider, struct pt_regs *regs)
{
	unsigned long fs_base;

	if (READ_ONCE(rider->session->ended))
		return UB_STOP_SESSION_END;
	if (!ub_no_syscall_work())
		return UB_STOP_SYSCALL_WORK;
	/* exec in another thread, or a space that belongs to another session. */
	if (!rider->space || rider->space->mm != current->mm || READ_ONCE(rider->space->gone))
		return UB_STOP_CONDITION;
	if (ub_refusals || (read_thread_flags() & REFUSED_FLAGS) || ub_has_shadow_stack())
		return UB_STOP_CONDITION;
	if (regs->cs != __USER_CS || regs->ss != __USER_DS || (regs->flags & REFUSED_EFLAGS))
		return UB_STOP_CONDITION;
	/* The stack is accessed without masks, relative to this. */
	if (regs->sp >= TASK_SIZE_MAX)
		return UB_STOP_CONDITION;
	/* FSGSBASE lets the program move it without telling anyone. */
	fs_base = rdfsbase();
	if (fs_base < FS_BASE_MIN || fs_base >= TASK_SIZE_MAX)
		return UB_STOP_CONDITION;
	/* The kernel would flush branch predictions before user mode. */
	if (boot_cpu_has(X86_FEATURE_IBPB_EXIT_TO_USER) && this_cpu_read(x86_ibpb_exit_to_user))
		return UB_STOP_CONDITION;
	/* That membarrier aborts restartable sequences in whatever runs. */
	if (atomic_read(&current->mm->membarrier_state) & MEMBARRIER_STATE_PRIVATE_EXPEDITED_RSEQ)
		return UB_STOP_CONDITION;
	/* A data breakpoint hit in ring 0 would not be the user's. */
	if (hw_breakpoint_active())
		return UB_STOP_CONDITION;
	return UB_GO;
}

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
	if (current->rseq)
		static_call(ub_rseq_resume)(NULL, regs);
	return UB_GO;
}

int ub_do_pending_work(struct pt_regs *regs)
{
	unsigned long work = read_thread_flags() & UB_WORK_MASK;

	/* As exit_to_user_mode_loop() does, in its order. */
	if (work & _TIF_NEED_RESCHED)
		schedule();
	if (work & ~(_TIF_NEED_RESCHED | _TIF_NOTIFY_RESUME))
		return UB_STOP_POLL;
	if (work & _TIF_NOTIFY_RESUME)
		return notify_resume(regs);
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

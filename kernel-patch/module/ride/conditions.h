/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The run conditions. What user mode would have noticed must end the ride
 * before the next user instruction; each check names what would go wrong.
 * Inline, because they are checked before every fragment.
 */
#ifndef UB_CONDITIONS_H
#define UB_CONDITIONS_H

#include <linux/entry-common.h>
#include <linux/interrupt.h>
#include <linux/nospec.h>
#include <linux/sched/mm.h>
#include <linux/seccomp.h>
#include <linux/thread_info.h>
#include <linux/types.h>
#include <asm/cpufeature.h>
#include <asm/debugreg.h>
#include <asm/fpu/api.h>
#include <asm/fsgsbase.h>
#include <asm/nospec-branch.h>
#include <asm/processor-flags.h>
#include <asm/segment.h>

#include "address_space.h"
#include "compat/compat.h"
#include "compat/mark.h"
#include "mitigations.h"
#include "protection.h"
#include "rider.h"

/* An access fs:[disp32] stays in the user half or its hole above this base. */
#define FS_BASE_MIN (1ul << 31)
#define FS_BASE_SPAN (TASK_SIZE_MAX - FS_BASE_MIN)

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

/* A run condition holds. Otherwise conditions return an enum ub_stop. */
#define UB_GO (-1)

/*
 * Who must restart a call has a signal pending in all cases known, so a build
 * without the check for the one has to be without that for the other.
 */
#define UB_IGNORE_SIGNALS (UB_LEFT_OUT(SIGNAL_CHECK) || UB_LEFT_OUT(RESTART_CHECK))
/*
 * The flags with which a thread does not go (back) to user code: work first, or
 * not in a ride. A system call may set any of them (an ioctl runs a KVM guest).
 */
#define UB_WORK_MASK                                                           \
	(((u32)EXIT_TO_USER_MODE_WORK | REFUSED_FLAGS) &                       \
	 ~(UB_IGNORE_SIGNALS ? _TIF_SIGPENDING | _TIF_NOTIFY_SIGNAL : 0))

/*
 * Does the work that the way back to user mode would do, as far as a ride can
 * do it exactly so. Sleeps. UB_GO or an enum ub_stop.
 */
int ub_do_pending_work(struct pt_regs *regs);

/* Set while the user's vector registers are in memory. */
#define UB_VECTORS_MASK (UB_LEFT_OUT(VECTOR_RELOAD) ? 0u : (u32)_TIF_NEED_FPU_LOAD)

/*
 * The last look, between fpregs_lock() and fpregs_unlock(): true if nothing is
 * pending and the fragment may be entered, with the user's vector registers in
 * place. Nobody takes them away there: interrupts may not use them, see
 * irq_fpu_usable().
 */
static inline bool ub_nothing_pending(void)
{
	if (likely(!(read_thread_flags() & (UB_WORK_MASK | UB_VECTORS_MASK))))
		return !local_softirq_pending();
	if (read_thread_flags() & UB_WORK_MASK || local_softirq_pending())
		return false;
	switch_fpu_return();
	return true;
}

/*
 * Whether a system call may be made in a ride right now: nothing to be done at
 * its entry or exit, or only a seccomp filter to be asked, which the gate does.
 * No ptrace, audit, tracepoints or user dispatch. The mode is read again by the
 * filter: strict mode, where any other call is the thread's end, is not ridden.
 */
static inline bool ub_calls_may_ride(void)
{
	unsigned long work = ub_syscall_work();

	if (likely(!work) || UB_LEFT_OUT(SYSCALL_WORK_CHECK))
		return true;
	return work == SYSCALL_WORK_SECCOMP && !current->ptrace &&
	       READ_ONCE(current->seccomp.mode) == SECCOMP_MODE_FILTER;
}

/*
 * Conditions at the start of a ride and after work was done on the way. What
 * is checked here changes only by system calls of the thread itself that are not
 * made in a ride.
 */
static inline int ub_may_start(struct ub_rider *rider)
{
	/* Only exec changes it, which no ride makes; while a thread has it, it does not go. */
	if (!rider->space || rider->space->mm != current->mm || READ_ONCE(rider->space->gone))
		return UB_STOP_CONDITION;
	return ub_has_shadow_stack() ? UB_STOP_CONDITION : UB_GO;
}

/*
 * Registers that no fragment changes. But a filter of the thread's may hand a call of
 * the ride to a tracer that came after ub_calls_may_ride() had looked, and who may be
 * gone again when the call is over.
 */
static inline bool ub_registers_can_ride(const struct pt_regs *regs)
{
	if (UB_LEFT_OUT(REGISTER_CHECK))
		return true;
	/* FSGSBASE lets the program move it without telling anyone. */
	return rdfsbase() - FS_BASE_MIN < FS_BASE_SPAN && regs->cs == __USER_CS &&
	       regs->ss == __USER_DS && !(regs->flags & REFUSED_EFLAGS);
}

/*
 * That comparison may be mispredicted, and fragments add to the base without a mask:
 * with a base that is none of a user there is no fragment, as data.
 */
static inline struct ub_fragment *ub_confined(struct ub_fragment *fragment)
{
	unsigned long mask = array_index_mask_nospec(rdfsbase() - FS_BASE_MIN, FS_BASE_SPAN);

	if (UB_LEFT_OUT(REGISTER_CHECK))
		return fragment;
	return (struct ub_fragment *)((unsigned long)fragment & mask);
}

/*
 * Conditions before every fragment. With preemption off: some are the CPU's. There
 * is an address space: without one a thread is not let into the gate.
 */
static inline int ub_may_go_on(struct ub_rider *rider, struct pt_regs *regs)
{
	if (ub_rider_is_leaving(rider))
		return UB_STOP_SESSION_END;
	if (!ub_calls_may_ride())
		return UB_STOP_SYSCALL_WORK;
	/* The stack is accessed without masks, relative to this. */
	if (regs->sp >= TASK_SIZE_MAX || !ub_registers_can_ride(regs))
		return UB_STOP_CONDITION;
	/* The kernel would flush branch predictions before user mode. */
	if (cpu_feature_enabled(X86_FEATURE_IBPB_EXIT_TO_USER) &&
	    this_cpu_read(x86_ibpb_exit_to_user))
		return UB_STOP_CONDITION;
	/* That membarrier aborts restartable sequences in whatever runs. */
	if (atomic_read(&rider->space->mm->membarrier_state) &
		    MEMBARRIER_STATE_PRIVATE_EXPEDITED_RSEQ &&
	    !UB_LEFT_OUT(MEMBARRIER_CHECK))
		return UB_STOP_CONDITION;
	/* A data breakpoint hit in ring 0 would not be the user's. */
	if (hw_breakpoint_active() && !UB_LEFT_OUT(BREAKPOINT_CHECK))
		return UB_STOP_CONDITION;
	return UB_GO;
}

/*
 * fpregs_unlock(), without the function call behind it when no softirq waits:
 * a good tenth of what a ride costs. One raised before preemption is on again is seen
 * here; one raised later runs at the end of its interrupt.
 */
static inline void ub_fpregs_unlock(void)
{
	if (IS_ENABLED(CONFIG_PREEMPT_RT) || IS_ENABLED(CONFIG_TRACE_IRQFLAGS) ||
	    !IS_ENABLED(CONFIG_PREEMPT_COUNT)) {
		fpregs_unlock();
		return;
	}
	barrier();
	/* Softirqs on, preemption still off; the rest is preempt_enable()'s. */
	__preempt_count_sub(SOFTIRQ_DISABLE_OFFSET - 1);
	if (unlikely(local_softirq_pending())) {
		local_bh_disable();
		local_bh_enable();
	}
	preempt_enable();
}

int ub_conditions_init(void);

#endif

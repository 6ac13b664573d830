/* SPDX-License-Identifier: GPL-2.0 */
#ifndef UB_CONDITIONS_H
#define UB_CONDITIONS_H

#include <linux/entry-common.h>
#include <linux/interrupt.h>
#include <linux/thread_info.h>
#include <linux/types.h>

struct pt_regs;
struct ub_rider;

/* A run condition holds. Otherwise conditions return an enum ub_stop. */
#define UB_GO (-1)

/* The work flags with which a thread does not go (back) to user code. */
#define UB_WORK_MASK ((u32)EXIT_TO_USER_MODE_WORK)

/* The run conditions. Call with preemption off: some belong to the CPU. */
int ub_may_ride(struct ub_rider *rider, struct pt_regs *regs);
/*
 * Does the work that the way back to user mode would do, as far as a ride can
 * do it exactly so. Sleeps. UB_GO or UB_STOP_POLL.
 */
int ub_do_pending_work(struct pt_regs *regs);
/*
 * The last look, with preemption and softirqs off: true if nothing is pending and
 * the fragment may be entered.
 */
static inline bool ub_nothing_pending(void)
{
	return !(read_thread_flags() & UB_WORK_MASK) && !local_softirq_pending();
}

/*
 * Whether a system call may be made in a ride right now: no seccomp, ptrace,
 * audit, tracepoints or user dispatch.
 */
static inline bool ub_no_syscall_work(void)
{
	return !READ_ONCE(current_thread_info()->syscall_work);
}

int ub_conditions_init(void);

#endif

/* SPDX-License-Identifier: GPL-2.0 */
#ifndef UB_CONDITIONS_H
#define UB_CONDITIONS_H

#include <linux/types.h>

struct pt_regs;
struct ub_rider;

/* A run condition holds. Otherwise conditions return an enum ub_stop. */
#define UB_GO (-1)

/* The work flags with which a thread does not go (back) to user code. */
u32 ub_work_mask(void);

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
bool ub_nothing_pending(void);
/* Whether a system call may be made in a ride right now. */
bool ub_no_syscall_work(void);

int ub_conditions_init(void);

#endif

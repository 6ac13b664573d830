/* SPDX-License-Identifier: GPL-2.0 */
#ifndef UB_RIDE_H
#define UB_RIDE_H

#include <linux/types.h>

struct pt_regs;
struct ub_rider;

/*
 * After a system call of an enrolled thread: runs fragments for as long as
 * there are any and all conditions hold. Returns the number of the system
 * call that the program makes next, with regs as its entry would have left
 * them, or -1 to leave for user mode at regs.
 */
int ub_ride(struct ub_rider *rider, struct pt_regs *regs);

#endif

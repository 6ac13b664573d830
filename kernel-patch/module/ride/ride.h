/* SPDX-License-Identifier: GPL-2.0 */
#ifndef UB_RIDE_H
#define UB_RIDE_H

#include <linux/types.h>

struct pt_regs;

/*
 * After a system call of an enrolled thread, whose struct ub_rider this is: runs fragments for as long as
 * there are any and all conditions hold. Returns the number of the system
 * call that the program makes next, with regs as its entry would have left
 * them, or -1 to leave for user mode at regs.
 */
int ub_ride(void *thread, struct pt_regs *regs);

#endif

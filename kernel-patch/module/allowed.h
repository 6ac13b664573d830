/* SPDX-License-Identifier: GPL-2.0 */
#ifndef UB_ALLOWED_H
#define UB_ALLOWED_H

#include <linux/types.h>

/*
 * True if system call nr may go through the gate and run inside a ride. What
 * is not on the list runs natively, with nothing of ours on the stack.
 */
bool ub_call_allowed(unsigned int nr);
void ub_allowed_init(void);

#endif

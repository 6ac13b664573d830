/* SPDX-License-Identifier: GPL-2.0 */
#ifndef UB_ALLOWED_H
#define UB_ALLOWED_H

#include <linux/bitmap.h>
#include <linux/types.h>
#include <asm/unistd.h>

extern unsigned long ub_allowed_calls[BITS_TO_LONGS(NR_syscalls)];

/*
 * True if system call nr may go through the gate and run inside a ride. What
 * is not on the list runs natively, with nothing of ours on the stack.
 */
static inline bool ub_call_allowed(unsigned int nr)
{
	return nr < NR_syscalls && test_bit(nr, ub_allowed_calls);
}

void ub_allowed_init(void);

#endif

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What this kernel does about speculative execution on this CPU when it
 * goes from user mode to kernel mode and back, and what a ride does in its
 * place. Where a ride cannot do the same, there are no rides.
 */
#ifndef UB_MITIGATIONS_H
#define UB_MITIGATIONS_H

#include <linux/types.h>

#include "uapi/ub.h"

extern u32 ub_refusals;		/* UB_REFUSE_* */
extern u32 ub_actions;		/* UB_ACT_* */

/*
 * Where the kernel clears CPU buffers before user mode, interrupts wait for the end of a
 * fragment: from their handlers the kernel would go back to it without doing so.
 */
static inline bool ub_interrupts_wait(void)
{
	return ub_actions & UB_ACT_CLEAR_BUFFERS;
}

void ub_mitigations_init(void);

#endif

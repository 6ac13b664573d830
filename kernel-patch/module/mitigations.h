/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What this kernel does about speculative execution on this CPU when it
 * goes from user mode to kernel mode and back, and what a ride does in its
 * place. Where a ride cannot do the same, there are no rides.
 */
#ifndef UB_MITIGATIONS_H
#define UB_MITIGATIONS_H

#include <linux/types.h>

extern u32 ub_refusals;		/* UB_REFUSE_* */
extern u32 ub_actions;		/* UB_ACT_* */

void ub_mitigations_init(void);

#endif

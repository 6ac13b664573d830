/* SPDX-License-Identifier: GPL-2.0 */
#ifndef UB_RUN_FRAGMENT_H
#define UB_RUN_FRAGMENT_H

#ifdef __ASSEMBLY__
/* struct ub_run; checked in ride.c */
#define RUN_REGS	0
#define RUN_ENTRY	8
#define RUN_FLAGS	16
#define RUN_SOFTIRQ	24
#define RUN_MASK	32
#define RUN_EXIT_ID	36
#define RUN_TARGET	40
#define RUN_FLAGS_OUT	48
/* struct ub_frame; checked in ride.c */
#define FRAME_RSP	0x00
#define FRAME_TARGET	0x08
#define FRAME_SPILL	0x10
#define FRAME_R11	0x48
#define FRAME_FLAGS	0x50
#define FRAME_SOFTIRQ	0x58
#define FRAME_MASK	0x60
#define FRAME_EXIT_ID	0x64
#define FRAME_SIZE	0x68
/* asm-offsets.h lacks this one; checked in ride.c */
#define PT_REGS_AX	80
#else

#include <linux/types.h>

struct pt_regs;

/* One run of one fragment. */
struct ub_run {
	struct pt_regs *regs;		/* user registers, in and out */
	void *entry;
	const void *work_flags;
	const u16 *softirq_pending;
	u32 poll_mask;
	u32 exit_id;			/* out */
	u64 target;			/* out */
	u32 flags_out;			/* out: OF in bit 0, lahf's byte in bits 8-15 */
};

/*
 * Enters the fragment with the user's registers and returns through
 * ub_fragment_exit_stub when it is left. Between STAC and CLAC nothing but
 * the fragment runs. Call with preemption and softirqs off and the user's
 * vector state in the registers.
 */
void ub_run_fragment(struct ub_run *run);

/* Where the exit jumps of every fragment lead; not a C function. */
extern const u8 ub_fragment_exit_stub[];

#endif
#endif

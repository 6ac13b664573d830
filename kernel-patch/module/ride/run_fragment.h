/* SPDX-License-Identifier: GPL-2.0 */
#ifndef UB_RUN_FRAGMENT_H
#define UB_RUN_FRAGMENT_H

#ifdef __ASSEMBLY__
/* struct ub_run; checked in ride.c */
#define RUN_FLAGS	0
#define RUN_STACK_END	8
#define RUN_TARGET	16
#define RUN_MASK	24
#define RUN_LINKS_LEFT	28
#define RUN_BUDGET	32
/* struct ub_fragment and struct ub_link; checked in ride.c */
#define FRAGMENT_ENTRY	16
#define FRAGMENT_CODE	24
#define FRAGMENT_LINKS	32
#define FRAGMENT_WRITTEN 40
#define FRAGMENT_EXIT_COUNT 48
#define FRAGMENT_WORK	52
#define LINK_SHIFT	5
#define LINK_NEXT	0
#define LINK_IS_INDIRECT 24
/* struct ub_frame; checked in ride.c */
#define FRAME_RSP	0x00
#define FRAME_TARGET	0x08
#define FRAME_SPILL	0x10
#define FRAME_R11	0x48
#define FRAME_FLAGS	0x50
#define FRAME_SOFTIRQ	0x58
#define FRAME_MASK	0x60
#define FRAME_EXIT_ID	0x64
#define FRAME_BUDGET	0x68
#define FRAME_SIZE	0x70
/* asm-offsets.h lacks this one; checked in ride.c */
#define PT_REGS_AX	80
#endif

/* Links that are followed in a row before all conditions are looked at again, and one. */
#define UB_LINKS_IN_A_ROW 256
/*
 * Instructions after which interrupts get their turn where they wait (ub_interrupts_wait()),
 * and at most UB_MAX_WORK more until the next poll. Those that take long count for several;
 * so it is some microseconds, and more where each load misses the caches. Few, so that nobody
 * waits much longer than where interrupts do not: long gaps are entered again several times.
 */
#define UB_WAITING_BUDGET 4096
/* What a link takes off the budget besides: its own way, and clearing buffers on it. */
#define UB_LINK_WORK 128

#ifndef __ASSEMBLY__

#include <linux/types.h>

struct pt_regs;
struct ub_fragment;

/* What ub_run_fragment() takes of a thread besides its registers, and what it says. */
struct ub_run {
	/* In; the same for all runs of a ride. */
	const void *work_flags;
	u64 stack_end;			/* user stack pointers are below */
	/* Out, but for the mask. */
	u64 target;			/* of an INDIRECT exit */
	u32 poll_mask;			/* in */
	u32 links_left;			/* of UB_LINKS_IN_A_ROW */
	s32 budget;			/* in: of each run, see struct ub_frame */
};

/* Where a run ended; travels in rax and rdx. */
struct ub_left {
	struct ub_fragment *fragment;
	u64 exit_id;
};

/*
 * Enters the fragment with the user's registers, which are in regs before and
 * after but for ip, and returns through ub_fragment_exit_stub when it is left
 * for something else than a linked fragment. Between STAC and CLAC nothing but
 * fragments and the way from one to the next runs. Call with preemption and
 * softirqs off and the user's vector state in the registers.
 */
struct ub_left ub_run_fragment(struct pt_regs *regs, struct ub_fragment *fragment,
			       const u16 *softirq_pending, struct ub_run *run);

/* Where the exit jumps of every fragment lead; not a C function. */
extern const u8 ub_fragment_exit_stub[];

#endif /* __ASSEMBLY__ */
#endif

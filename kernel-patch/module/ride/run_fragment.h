/* SPDX-License-Identifier: GPL-2.0 */
#ifndef UB_RUN_FRAGMENT_H
#define UB_RUN_FRAGMENT_H

#ifdef __ASSEMBLY__
/* struct ub_run; checked in ride.c */
#define RUN_REGS	0
#define RUN_FRAGMENT	8
#define RUN_FLAGS	16
#define RUN_SOFTIRQ	24
#define RUN_MASK	32
#define RUN_EXIT_ID	36
#define RUN_TARGET	40
#define RUN_STACK_END	48
#define RUN_LINKS_LEFT	56
#define RUN_FLAGS_OUT	60
#define RUN_ARENA_SEEN	64
/* struct ub_fragment and struct ub_link; checked in ride.c */
#define FRAGMENT_ENTRY	0
#define FRAGMENT_CODE	8
#define FRAGMENT_LINKS	16
#define FRAGMENT_WRITTEN 24
#define FRAGMENT_EXIT_COUNT 32
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
#define FRAME_SIZE	0x68
/* asm-offsets.h lacks this one; checked in ride.c */
#define PT_REGS_AX	80
#else

#include <linux/types.h>

struct pt_regs;
struct ub_fragment;

/* One run of a fragment and of those that it is linked to. */
struct ub_run {
	struct pt_regs *regs;		/* user registers, in and out */
	struct ub_fragment *fragment;	/* to enter; out: that was left */
	const void *work_flags;
	const u16 *softirq_pending;
	u32 poll_mask;
	u32 exit_id;			/* out */
	u64 target;			/* out */
	u64 stack_end;			/* user stack pointers are below */
	u32 links_left;			/* links to follow at most, and one; out: the rest */
	u32 flags_out;			/* out: OF in bit 0, lahf's byte in bits 8-15 */
	u64 arena_seen;			/* this CPU's ub_arena_seen */
};

/*
 * Enters the fragment with the user's registers and returns through
 * ub_fragment_exit_stub when it is left for something else than a linked
 * fragment. Between STAC and CLAC nothing but fragments and the way from one
 * to the next runs. Call with preemption and softirqs off and the user's
 * vector state in the registers.
 */
void ub_run_fragment(struct ub_run *run);

/* Where the exit jumps of every fragment lead; not a C function. */
extern const u8 ub_fragment_exit_stub[];

#endif
#endif

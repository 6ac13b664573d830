/* SPDX-License-Identifier: GPL-2.0 */
/*
 * ub_gate.ko: the hook and the loop that runs system calls of enrolled
 * threads. A thread may sleep in a system call for years; the frames below
 * that call belong to this module alone, so ub.ko, which decides everything,
 * can be unloaded at any moment: the sleeper wakes up, finds nobody attached
 * and returns to user mode as if nothing had ever been there.
 */
#ifndef UB_GATE_H
#define UB_GATE_H

#include <linux/types.h>

struct pt_regs;

/*
 * What ub.ko attaches. Both run in process context, may sleep for a bounded
 * time, and are never called for a thread without the enrolment mark.
 */
struct ub_gate_ops {
	/*
	 * At the entry of system call nr; entered: the cycle counter before the
	 * gate did anything about it. A pointer: run it through the gate and
	 * pass the pointer to after(). NULL: the kernel goes on as if there
	 * were no hook.
	 */
	void *(*enter)(struct pt_regs *regs, unsigned int nr, u64 entered);
	/*
	 * After a call that went through the gate; regs are those of user
	 * mode, result in regs->ax. Returns the number of the next system call to
	 * run with the regs as they are now, or -1 to leave for user mode. Not
	 * called if there was a detach since enter().
	 */
	int (*after)(void *thread, struct pt_regs *regs);
};

/* What enter() said, and which attachment said it; travels in rax and rdx. */
struct ub_gate_pass {
	void *thread;
	unsigned long attachment;
};

/* Installs the hook. One user at a time: -EBUSY. */
int ub_gate_attach(const struct ub_gate_ops *ops);
/* Removes the hook and returns once no CPU executes any of the ops. */
void ub_gate_detach(void);

/* Cycles that the gate itself takes between two calls of its loop. */
u32 ub_gate_cycles(void);

/* compat/stock/trampoline.S: the ftrace direct call target. */
void ub_gate_trampoline(void);
/* Called by the hook, in this order. */
struct ub_gate_pass ub_gate_enter(struct pt_regs *regs, unsigned int nr);
long ub_gate_loop(struct pt_regs *regs, unsigned int nr, unsigned long attachment,
		  void *thread);
/* The hook tells what makes a system call without coming back to it. */
void ub_gate_set_body(unsigned long address);

#endif

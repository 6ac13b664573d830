/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Seccomp filters of threads that ride. Debian's own redis-server unit, like
 * most hardened units, installs one: without this it could never ride.
 */
#ifndef UB_FILTER_H
#define UB_FILTER_H

#include <linux/thread_info.h>
#include <linux/types.h>

#include "protection.h"

struct pt_regs;

/* True if the system call that a thread is about to make has to be filtered. */
static inline bool ub_filter_wanted(void)
{
	return !UB_LEFT_OUT(SECCOMP_FILTER) &&
	       (READ_ONCE(current_thread_info()->syscall_work) & SYSCALL_WORK_SECCOMP);
}

/*
 * Lets the kernel's own seccomp code judge the call that regs are about to
 * make, as syscall_trace_enter() does, with everything that follows from it:
 * logging, a signal, a listener that is asked. Sleeps in the last case, and
 * does not return where the filter ends this one thread; *lost is called then,
 * from the end of the thread. The number of the call to make, which a tracer
 * may have changed, or -1 for none: regs are then as after the call.
 */
int ub_filter_call(struct pt_regs *regs);

/* lost: called for every thread that ended inside ub_filter_call(). */
int ub_filter_init(void (*lost)(void));
void ub_filter_exit(void);

#endif

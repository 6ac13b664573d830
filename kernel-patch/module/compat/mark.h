/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The enrolment mark of a thread, and the note that it is inside its seccomp
 * filter, in the gate's loop. fork copies both to the child. With the in-tree
 * hooks they are bits of syscall_work, which everybody tests anyway; else bits
 * of thread_info.flags that no kernel we build on uses (x86 ends at 31), and
 * the trampoline loads and tests one: all that an unrelated thread pays besides
 * the call.
 */
#ifndef UB_MARK_H
#define UB_MARK_H

#define UB_TIF_ENROLLED 63
#define UB_TIF_ENROLLED_BYTE 7
#define UB_TIF_ENROLLED_MASK 0x80
#define UB_TIF_FILTERING 62

#ifndef __ASSEMBLY__

#include <linux/build_bug.h>
#include <linux/sched.h>
#include <linux/thread_info.h>

static_assert(offsetof(struct task_struct, thread_info) == 0);
static_assert(offsetof(struct thread_info, flags) == 0);
static_assert(sizeof_field(struct thread_info, flags) == 8);

#ifdef UB_IN_TREE
#define UB_MARK_WORK (SYSCALL_WORK_USERSPACE_BYPASS | SYSCALL_WORK_USERSPACE_BYPASS_SECCOMP)
#define ub_set_mark(task) set_task_syscall_work(task, USERSPACE_BYPASS)
#define ub_clear_mark(task) clear_task_syscall_work(task, USERSPACE_BYPASS)
#define ub_has_mark(task) test_task_syscall_work(task, USERSPACE_BYPASS)
#define ub_set_filtering(task) set_task_syscall_work(task, USERSPACE_BYPASS_SECCOMP)
#define ub_clear_filtering(task) clear_task_syscall_work(task, USERSPACE_BYPASS_SECCOMP)
#define ub_is_filtering(task) test_task_syscall_work(task, USERSPACE_BYPASS_SECCOMP)
#else
#define UB_MARK_WORK 0ul
#define ub_set_mark(task) set_tsk_thread_flag(task, UB_TIF_ENROLLED)
#define ub_clear_mark(task) clear_tsk_thread_flag(task, UB_TIF_ENROLLED)
#define ub_has_mark(task) test_tsk_thread_flag(task, UB_TIF_ENROLLED)
#define ub_set_filtering(task) set_tsk_thread_flag(task, UB_TIF_FILTERING)
#define ub_clear_filtering(task) clear_tsk_thread_flag(task, UB_TIF_FILTERING)
#define ub_is_filtering(task) test_tsk_thread_flag(task, UB_TIF_FILTERING)
#endif

/* What others than us want done at the thread's system calls: SYSCALL_WORK_*. */
static inline unsigned long ub_syscall_work(void)
{
	return READ_ONCE(current_thread_info()->syscall_work) & ~UB_MARK_WORK;
}

#endif /* __ASSEMBLY__ */
#endif

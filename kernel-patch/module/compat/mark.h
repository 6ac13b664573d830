/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The enrolment mark of a thread, and the note that it is inside its seccomp
 * filter, in the gate's loop. fork copies both to the child. With the in-tree
 * hooks they are bits of syscall_work, which everybody tests anyway; else bits
 * of thread_info.flags that no kernel we build on uses (x86 ends at 31), and
 * the trampoline loads and tests one: all that an unrelated thread pays besides
 * the call.
 *
 * Between them is the number of calls that an enrolled thread makes without
 * being looked at. That word is the thread's own: others set and clear bits of
 * the same variable with locked instructions, which leave it as it is.
 */
#ifndef UB_MARK_H
#define UB_MARK_H

#define UB_TIF_ENROLLED 63
#define UB_TIF_ENROLLED_BYTE 7
#define UB_TIF_ENROLLED_MASK 0x80
#define UB_TIF_FILTERING 62
/* Where the 16-bit number of calls to skip is in task_struct. */
#define UB_CALLS_TO_SKIP 4

#ifndef __ASSEMBLY__

#include <linux/bits.h>
#include <linux/build_bug.h>
#include <linux/entry-common.h>
#include <linux/sched.h>
#include <linux/thread_info.h>

static_assert(offsetof(struct task_struct, thread_info) == 0);
static_assert(offsetof(struct thread_info, flags) == 0);
static_assert(sizeof_field(struct thread_info, flags) == 8);
static_assert(BIT(8 * UB_CALLS_TO_SKIP) > EXIT_TO_USER_MODE_WORK);

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

static inline u16 *ub_calls_to_skip(struct task_struct *task)
{
	return (u16 *)((u8 *)task_thread_info(task) + UB_CALLS_TO_SKIP);
}

/* What others than us want done at the thread's system calls: SYSCALL_WORK_*. */
static inline unsigned long ub_syscall_work(void)
{
	return READ_ONCE(current_thread_info()->syscall_work) & ~UB_MARK_WORK;
}

#endif /* __ASSEMBLY__ */
#endif

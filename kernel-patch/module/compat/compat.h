/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Every difference between kernel versions is in this folder. A kernel that
 * nobody tested is refused at build time: most of what is used here is not
 * an interface that kernels promise to keep.
 */
#ifndef UB_COMPAT_H
#define UB_COMPAT_H

#include <linux/version.h>

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0) && \
	LINUX_VERSION_CODE < KERNEL_VERSION(6, 13, 0)
#define UB_KERNEL_6_12 1
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 1, 0) && \
	LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
#define UB_KERNEL_6_1 1
#else
#error "ub was tested on Linux 6.1 and 6.12 only; see kernel-patch/module/compat"
#endif

/*
 * The enrolment mark: a bit of thread_info.flags that no kernel we build on
 * uses (x86 ends at 31). fork copies it to the child, and the trampoline
 * loads and tests it: all that an unrelated thread pays besides the call.
 */
#define UB_TIF_ENROLLED 63
#define UB_TIF_ENROLLED_BYTE 7
#define UB_TIF_ENROLLED_MASK 0x80
/* Another unused one: the thread is inside its seccomp filter, in the gate's loop. */
#define UB_TIF_FILTERING 62

#ifdef __ASSEMBLY__
#ifdef UB_KERNEL_6_12
#define UB_CURRENT_TASK PER_CPU_VAR(pcpu_hot)
#else
#define UB_CURRENT_TASK PER_CPU_VAR(current_task)
#endif
#else

#include <linux/build_bug.h>
#include <linux/interrupt.h>
#include <linux/sched.h>
#include <linux/thread_info.h>

static_assert(offsetof(struct task_struct, thread_info) == 0);
static_assert(offsetof(struct thread_info, flags) == 0);
static_assert(sizeof_field(struct thread_info, flags) == 8);
#ifdef UB_KERNEL_6_12
static_assert(offsetof(struct pcpu_hot, current_task) == 0);
#endif

/* Address of this CPU's 16-bit mask of pending softirqs. */
static inline const u16 *ub_softirq_pending(void)
{
	return (const u16 *)this_cpu_ptr(&local_softirq_pending_ref);
}

/* True if a block device asked this thread to wait on its way to user mode. */
static inline bool ub_throttled(void)
{
#ifdef CONFIG_BLK_CGROUP
#ifdef UB_KERNEL_6_12
	return current->throttle_disk != NULL;
#else
	return current->throttle_queue != NULL;
#endif
#else
	return false;
#endif
}

/* True if the thread has a user shadow stack, which fragments do not keep. */
static inline bool ub_has_shadow_stack(void)
{
#ifdef CONFIG_X86_USER_SHADOW_STACK
	return current->thread.features != 0;
#else
	return false;
#endif
}

/*
 * Looks up a kernel symbol that is not exported; 0 if there is none. Call
 * what it returns through a static_call only: a direct call needs no ENDBR,
 * and the kernel overwrites the ENDBR of functions it never calls indirectly.
 */
unsigned long ub_symbol(const char *name);

/* Finds x64_sys_call and chooses it; 0 or a negative errno. Once per module. */
int ub_hook_init(void);
void ub_hook_exit(void);
/* Attaches the trampoline to it; 0 or a negative errno. */
int ub_hook_attach(void);
void ub_hook_detach(void);

#endif /* __ASSEMBLY__ */
#endif

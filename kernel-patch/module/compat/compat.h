/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Every difference between kernels is in this folder: between versions in this
 * file, between stock kernels and those with the patches of
 * kernel-patch/linux-6.12 in stock/ and in_tree/, of which Kbuild takes one
 * (UB_IN_TREE is defined for the latter). A kernel that nobody tested is
 * refused at build time: most of what stock/ uses is not an interface that
 * kernels promise to keep.
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

#include "protection.h"

#ifdef UB_KERNEL_6_12
static_assert(offsetof(struct pcpu_hot, current_task) == 0);
#endif

/* Address of this CPU's 16-bit mask of pending softirqs. */
static inline const u16 *ub_softirq_pending(void)
{
	static const u16 none;

	/* Each tick brings some: it would do what the wait for riders is there for. */
	if (UB_LEFT_OUT(WAIT_FOR_RIDERS) || UB_LEFT_OUT(NOTHING) || UB_LEFT_OUT(POLLS))
		return &none;
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

/* Finds what to hook; 0 or a negative errno. Once per module. */
int ub_hook_init(void);
void ub_hook_exit(void);
/* From here on the gate gets the calls of marked threads; 0 or a negative errno. */
int ub_hook_attach(void);
void ub_hook_detach(void);

#endif /* __ASSEMBLY__ */
#endif

// SPDX-License-Identifier: GPL-2.0
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/static_call.h>
#include <linux/string.h>
#include <linux/tracepoint.h>
#include <asm/syscall.h>
#include <asm/unistd.h>

#include "compat/compat.h"
#include "compat/mark.h"
#include "gate/filter.h"
#include "protection.h"

DEFINE_STATIC_CALL_NULL(ub_secure_computing, *(int (*)(const struct seccomp_data *))NULL);

static void (*on_lost)(void);
static struct tracepoint *exit_tracepoint;

int ub_filter_call(struct pt_regs *regs)
{
	int next = -1;

	/* The call before which a test has a tracer come. */
	if (syscall_get_nr(current, regs) == __NR_nanosleep)
		UB_RACE_WINDOW(10000);
	/* SECCOMP_RET_KILL_THREAD ends the thread without a return to here. */
	ub_set_filtering(current);
	if (static_call(ub_secure_computing)(NULL) == 0)
		next = syscall_get_nr(current, regs);
	ub_clear_filtering(current);
	return next;
}

/* Runs in the thread that ends. */
static void on_exit(void *unused, struct task_struct *task)
{
	if (ub_is_filtering(task))
		on_lost();
}

static void find_tracepoint(struct tracepoint *tracepoint, void *unused)
{
	if (!strcmp(tracepoint->name, "sched_process_exit"))
		exit_tracepoint = tracepoint;
}

int ub_filter_init(void (*lost)(void))
{
	unsigned long judge = ub_symbol("__secure_computing");

	for_each_kernel_tracepoint(find_tracepoint, NULL);
	if (!judge || !exit_tracepoint)
		return -EOPNOTSUPP;
	static_call_update(ub_secure_computing, (int (*)(const struct seccomp_data *))judge);
	on_lost = lost;
	return tracepoint_probe_register(exit_tracepoint, on_exit, NULL);
}

void ub_filter_exit(void)
{
	tracepoint_probe_unregister(exit_tracepoint, on_exit, NULL);
	tracepoint_synchronize_unregister();
}

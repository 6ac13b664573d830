// SPDX-License-Identifier: GPL-2.0
/* The hook of kernel-patch/linux-6.12, which the kernel calls for marked threads only. */
#include <linux/module.h>
#include <linux/userspace_bypass.h>

#include "compat/compat.h"
#include "compat/mark.h"
#include "gate/gate.h"

static long on_call(struct pt_regs *regs, long nr)
{
	u16 *skip = ub_calls_to_skip(current);
	u16 left = READ_ONCE(*skip);
	struct ub_gate_pass pass;

	if (left) {
		WRITE_ONCE(*skip, left - 1);
		return nr;
	}
	pass = ub_gate_enter(regs, nr);
	if (!pass.thread)
		return nr;
	ub_gate_loop(regs, nr, pass.attachment, pass.thread);
	return -1;
}

int ub_hook_init(void)
{
	ub_gate_set_body((unsigned long)userspace_bypass_call);
	return 0;
}

void ub_hook_exit(void)
{
}

int ub_hook_attach(void)
{
	return userspace_bypass_register(on_call);
}

void ub_hook_detach(void)
{
	userspace_bypass_unregister();
}

MODULE_IMPORT_NS(USERSPACE_BYPASS);

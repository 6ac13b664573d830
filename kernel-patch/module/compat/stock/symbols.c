// SPDX-License-Identifier: GPL-2.0
/* Unexported kernel symbols, by way of a kprobe on kallsyms_lookup_name(). */
#include <linux/export.h>
#include <linux/kprobes.h>
#include <linux/static_call.h>

#include "compat/compat.h"

DEFINE_STATIC_CALL_NULL(ub_kallsyms, *(unsigned long (*)(const char *))NULL);

static int ub_symbols_init(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	static bool done;
	int err;

	if (done)
		return 0;
	err = register_kprobe(&probe);
	if (err)
		return err;
	unregister_kprobe(&probe);
	/*
	 * On IBT kernels probe.addr lies behind the (sealed) ENDBR. A direct
	 * call may land there; an indirect one could not.
	 */
	static_call_update(ub_kallsyms, (unsigned long (*)(const char *))probe.addr);
	done = true;
	return 0;
}

unsigned long ub_symbol(const char *name)
{
	if (ub_symbols_init())
		return 0;
	return static_call(ub_kallsyms)(name);
}
EXPORT_SYMBOL_GPL(ub_symbol);

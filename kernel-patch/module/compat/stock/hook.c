// SPDX-License-Identifier: GPL-2.0
/*
 * The hook on x64_sys_call(): an ftrace direct call to ub_gate_trampoline.
 * Where the original body starts is derived from the ftrace location and the
 * bytes there are checked: a wrong guess would be an oops in the first call.
 */
#include <linux/ftrace.h>
#include <linux/static_call.h>
#include <asm/text-patching.h>

#include "compat/compat.h"
#include "gate/gate.h"

/* Length of the call or nop that ftrace owns at a function's start. */
#define FTRACE_SITE_BYTES 5
/* ENDBR64 or, where the kernel sealed the function, the nop put over it. */
#define ENDBR_BYTES 4

DEFINE_STATIC_CALL_NULL(ub_ftrace_location, *(unsigned long (*)(unsigned long))NULL);

static struct ftrace_ops hook_ops;

static bool site_is_ftrace(unsigned long site)
{
	static const u8 nop5[] = { 0x0f, 0x1f, 0x44, 0x00, 0x00 };
	const u8 *byte = (const u8 *)site;

	return byte[0] == 0xe8 || !memcmp(byte, nop5, sizeof(nop5));
}

static unsigned long find_site(void)
{
	unsigned long function = ub_symbol("x64_sys_call");
	unsigned long location = ub_symbol("ftrace_location");
	unsigned long site;

	if (!function || !location)
		return 0;
	static_call_update(ub_ftrace_location, (unsigned long (*)(unsigned long))location);
	site = static_call(ub_ftrace_location)(function);
	if (site != function && site != function + ENDBR_BYTES)
		return 0;
	return site_is_ftrace(site) ? site : 0;
}

int ub_hook_init(void)
{
	unsigned long site = find_site();

	if (!site) {
		pr_err("ub_gate: x64_sys_call is not traceable on this kernel\n");
		return -EOPNOTSUPP;
	}
	ub_gate_set_body(site + FTRACE_SITE_BYTES);
	return ftrace_set_filter_ip(&hook_ops, site, 0, 0);
}

void ub_hook_exit(void)
{
	/* Frees, but leaves pointers behind: only when nobody attaches again. */
	ftrace_free_filter(&hook_ops);
}

int ub_hook_attach(void)
{
#ifdef UB_KERNEL_6_12
	return register_ftrace_direct(&hook_ops, (unsigned long)ub_gate_trampoline);
#else
	return register_ftrace_direct_multi(&hook_ops, (unsigned long)ub_gate_trampoline);
#endif
}

void ub_hook_detach(void)
{
#ifdef UB_KERNEL_6_12
	unregister_ftrace_direct(&hook_ops, (unsigned long)ub_gate_trampoline, false);
#else
	unregister_ftrace_direct_multi(&hook_ops, (unsigned long)ub_gate_trampoline);
#endif
}

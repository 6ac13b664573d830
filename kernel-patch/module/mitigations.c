// SPDX-License-Identifier: GPL-2.0
#include <linux/cache.h>
#include <linux/kernel.h>
#include <linux/init.h>
#include <asm/cpufeature.h>

#include "mitigations.h"
#include "uapi/ub.h"

u32 ub_refusals __ro_after_init;
u32 ub_actions __ro_after_init;

struct policy {
	int feature;		/* X86_FEATURE_* */
	bool refuse_if;		/* refuse when present, or when absent */
	u32 refusal;
};

static const struct policy refusals[] __initconst = {
	/*
	 * The kernel writes IBRS on entry to discard what user code trained.
	 * User code in a ride trains in ring 0, behind that write.
	 */
	{ X86_FEATURE_KERNEL_IBRS, true, UB_REFUSE_LEGACY_IBRS },
	/*
	 * BHI_DIS_S hides branch history made in ring 3 only; the kernel has
	 * no sequence that clears history made in ring 0 on such a CPU.
	 */
	{ X86_FEATURE_CLEAR_BHB_HW, true, UB_REFUSE_BRANCH_HISTORY },
	/*
	 * Done on entry from user mode. A fault or an interrupt in a fragment enters
	 * the kernel from ring 0, and its handler returns as user code has trained.
	 */
	{ X86_FEATURE_UNRET, true, UB_REFUSE_UNTRAINED_RETURNS },
	{ X86_FEATURE_ENTRY_IBPB, true, UB_REFUSE_UNTRAINED_RETURNS },
	{ X86_FEATURE_XENPV, true, UB_REFUSE_XEN_PV },
	/* Without SMAP, STAC does not exist and a stray access is not caught. */
	{ X86_FEATURE_SMAP, false, UB_REFUSE_NO_SMAP },
	{ X86_FEATURE_FSGSBASE, false, UB_REFUSE_NO_FSGSBASE },
#ifdef X86_FEATURE_CALL_DEPTH
	/* The depth counter would have to follow calls that fragments emulate. */
	{ X86_FEATURE_CALL_DEPTH, true, UB_REFUSE_CALL_DEPTH },
#endif
};

struct action {
	int feature;
	u32 action;
};

/*
 * Done by the kernel's own macros in run_fragment.S, which patch themselves
 * in with these features; here they are only reported.
 */
static const struct action actions[] __initconst = {
	{ X86_FEATURE_CLEAR_CPU_BUF, UB_ACT_CLEAR_BUFFERS },
	{ X86_FEATURE_CLEAR_BHB_LOOP, UB_ACT_CLEAR_BRANCHES },
	{ X86_FEATURE_UNRET, UB_ACT_UNTRAIN },
	{ X86_FEATURE_ENTRY_IBPB, UB_ACT_IBPB },
};

void __init ub_mitigations_init(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(refusals); i++)
		if (boot_cpu_has(refusals[i].feature) == refusals[i].refuse_if)
			ub_refusals |= refusals[i].refusal;
	/* The kernel flushes the divider on its way to user mode (Zen 1). */
	if (boot_cpu_has_bug(X86_BUG_DIV0))
		ub_refusals |= UB_REFUSE_DIVIDER;
	for (i = 0; i < ARRAY_SIZE(actions); i++)
		if (boot_cpu_has(actions[i].feature))
			ub_actions |= actions[i].action;
}

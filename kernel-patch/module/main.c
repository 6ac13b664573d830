// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
#include <asm/tsc.h>

#include "address_space.h"
#include "allowed.h"
#include "arena.h"
#include "compat/compat.h"
#include "device.h"
#include "fixup.h"
#include "fragment.h"
#include "gate/gate.h"
#include "measure.h"
#include "mitigations.h"
#include "ride/conditions.h"
#include "ride/ride.h"
#include "rider.h"

/*
 * True if there is nothing to ride into behind this call and its gap is not
 * sampled: the kernel may then go on as if there were no hook. So it does for
 * all calls until the next sample, unasked, if the thread rests.
 */
static bool pass_by(struct ub_rider *rider)
{
	bool is_resting = ub_measure_is_resting(rider);
	u16 skip;

	if (rider->until_sample <= 0 || rider->time_gaps)
		return false;
	if (!list_empty(&rider->space->fragments) && !is_resting)
		return false;
	rider->until_sample--;
	rider->rode = false;
	rider->counters.refused[UB_STOP_NO_FRAGMENT]++;
	if (is_resting && rider->until_sample > 0) {
		skip = min(rider->until_sample, U16_MAX);
		rider->until_sample -= skip;
		ub_rider_skip(rider, skip);
	}
	return true;
}

/* At the entry of every system call of an enrolled thread, rides excepted. */
static void *on_enter(struct pt_regs *regs, unsigned int nr, u64 entered)
{
	struct ub_rider *rider = ub_rider_enter();

	if (!rider)
		return NULL;
	if (unlikely(rider->time_gaps))
		ub_gap_timer_stop(&rider->timer, &rider->counters,
				  rider->rode ? UB_GAP_LEFT : UB_GAP_NATIVE, entered);
	/* The ride ended in the gate: a seccomp filter refused its next call. */
	if (unlikely(rider->riding)) {
		rider->riding = false;
		rider->counters.stops[UB_STOP_SYSCALL_WORK]++;
		rider->gap = NULL;
	}
	rider->counters.entered++;
	if (!ub_rider_space(rider))
		return NULL;
	if (unlikely(rider->gap))
		ub_measure_end(rider, nr, entered, rider->rode, true);
	return ub_call_allowed(nr) && !pass_by(rider) ? rider : NULL;
}

static const struct ub_gate_ops gate_ops = {
	.enter = on_enter,
	.after = ub_ride,
};

static int shutdown_set(const char *value, const struct kernel_param *parameter)
{
	ub_session_end_all();
	return 0;
}

static const struct kernel_param_ops shutdown_ops = { .set = shutdown_set };
module_param_cb(shutdown, &shutdown_ops, NULL, 0200);
MODULE_PARM_DESC(shutdown, "write anything to end all sessions, so that the module can be unloaded");

static int gate_attach(void)
{
	return ub_gate_attach(&gate_ops);
}

static int need_cycle_counter(void)
{
	return tsc_khz ? 0 : -EOPNOTSUPP;
}

/*
 * Undone in reverse. No file is open when the module leaves, but threads may
 * still be marked, inside fragments, or asleep in a call that the gate made
 * for them. First the gate, so that nobody is or gets inside our code; then
 * the records; then the address spaces these held, whose end retires the
 * fragments; then the fragments' memory, after a grace period; and only then
 * the fixups and the arena they lie in.
 */
static const struct step {
	const char *name;
	int (*init)(void);
	void (*exit)(void);
} steps[] = {
	{ "cycle counter", need_cycle_counter, NULL },
	{ "run conditions", ub_conditions_init, NULL },
	{ "arena", ub_arena_init, ub_arena_exit },
	{ "fixups", ub_fixups_init, ub_fixups_exit },
	{ "fragments", ub_fragment_init, ub_fragment_exit },
	{ "address spaces", ub_space_init, ub_space_exit },
	{ "fork and exit", ub_rider_init, ub_rider_exit },
	{ "gate", gate_attach, ub_gate_detach },
	/* Last: whoever can open the device may use all of the above. */
	{ "device", ub_device_init, ub_device_exit },
};

static void undo(int done)
{
	while (done-- > 0)
		if (steps[done].exit)
			steps[done].exit();
	/* Records and sessions are freed by RCU. */
	rcu_barrier();
}

static int __init ub_init(void)
{
	int i, err;

	ub_allowed_init();
	ub_mitigations_init();
	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		err = steps[i].init();
		if (err) {
			pr_err("ub: %s: error %d\n", steps[i].name, err);
			undo(i);
			return err;
		}
	}
#ifdef UB_WITHOUT_PROTECTION
	pr_notice("ub: TEST BUILD without %s\n", __stringify(UB_WITHOUT_PROTECTION));
#endif
	pr_info("ub: ready, refusals 0x%x, actions 0x%x\n", ub_refusals, ub_actions);
	return 0;
}

static void __exit ub_exit(void)
{
	undo(ARRAY_SIZE(steps));
}

module_init(ub_init);
module_exit(ub_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Userspace Bypass");
#ifdef UB_WITHOUT_PROTECTION
MODULE_INFO(without_protection, __stringify(UB_WITHOUT_PROTECTION));
#endif

// SPDX-License-Identifier: GPL-2.0
#include <linux/bitops.h>
#include <linux/bottom_half.h>
#include <linux/errno.h>
#include <linux/nospec.h>
#include <linux/pid.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/timex.h>
#include <asm/fpu/api.h>
#include <asm/processor-flags.h>
#include <asm/ptrace.h>
#include <asm/tsc.h>
#include <asm/unistd.h>

#include "address_space.h"
#include "allowed.h"
#include "arena.h"
#include "compat/compat.h"
#include "fragment.h"
#include "measure.h"
#include "ride/conditions.h"
#include "ride/ride.h"
#include "ride/run_fragment.h"
#include "rider.h"

/* What run_fragment.S knows by number. */
static_assert(offsetof(struct ub_run, regs) == 0);
static_assert(offsetof(struct ub_run, fragment) == 8);
static_assert(offsetof(struct ub_run, work_flags) == 16);
static_assert(offsetof(struct ub_run, softirq_pending) == 24);
static_assert(offsetof(struct ub_run, poll_mask) == 32);
static_assert(offsetof(struct ub_run, exit_id) == 36);
static_assert(offsetof(struct ub_run, target) == 40);
static_assert(offsetof(struct ub_run, stack_end) == 48);
static_assert(offsetof(struct ub_run, links_left) == 56);
static_assert(offsetof(struct ub_run, flags_out) == 60);
static_assert(offsetof(struct ub_run, arena_seen) == 64);
static_assert(offsetof(struct ub_fragment, entry) == 0);
static_assert(offsetof(struct ub_fragment, code) == 8);
static_assert(offsetof(struct ub_fragment, links) == 16);
static_assert(offsetof(struct ub_fragment, written) == 24);
static_assert(offsetof(struct ub_fragment, exit_count) == 32);
static_assert(sizeof(struct ub_link) == 1 << 5);
static_assert(offsetof(struct ub_link, next) == 0);
static_assert(offsetof(struct ub_link, is_indirect) == 24);
static_assert(offsetof(struct ub_frame, user_rsp) == 0x00);
static_assert(offsetof(struct ub_frame, target) == 0x08);
static_assert(offsetof(struct ub_frame, spill) == 0x10);
static_assert(offsetof(struct ub_frame, user_r11) == 0x48);
static_assert(offsetof(struct ub_frame, poll_flags) == 0x50);
static_assert(offsetof(struct ub_frame, poll_softirq) == 0x58);
static_assert(offsetof(struct ub_frame, poll_mask) == 0x60);
static_assert(offsetof(struct ub_frame, exit_id) == 0x64);
static_assert(sizeof(struct ub_frame) == 0x68);
static_assert(offsetof(struct pt_regs, ax) == 80);

/* What lahf and seto bring; DF cannot change in a fragment. */
#define ARITHMETIC_FLAGS (X86_EFLAGS_CF | X86_EFLAGS_PF | X86_EFLAGS_AF | X86_EFLAGS_ZF | \
			  X86_EFLAGS_SF | X86_EFLAGS_OF)
#define SYSCALL_BYTES 2
/* Times that work is done on the way into a fragment before more of it ends the ride. */
#define PENDING_ATTEMPTS 8
/* Fragments run by links before all conditions are looked at again. */
#define LINKS_IN_A_ROW 256

static bool must_restart(const struct pt_regs *regs)
{
	switch ((long)regs->ax) {
	case -ERESTARTSYS:
	case -ERESTARTNOINTR:
	case -ERESTARTNOHAND:
	case -ERESTART_RESTARTBLOCK:
		return true;
	}
	return false;
}

static unsigned long flags_after(unsigned long before, u32 out)
{
	unsigned long flags = (out >> 8) & (ARITHMETIC_FLAGS & 0xff);

	if (out & 1)
		flags |= X86_EFLAGS_OF;
	return (before & ~ARITHMETIC_FLAGS) | flags;
}

static noinline void report_link(struct ub_rider *rider, u64 from, u64 to)
{
	struct ub_session *session = rider->session;
	struct ub_report report = {
		.kind = UB_REPORT_LINKED,
		.pid = task_tgid_nr_ns(current, session->pid_namespace),
		.btc = rider->space->id,
		.address = to,
		.from = from,
	};

	ub_session_report(session, &report);
}

/*
 * Runs the fragment and those that its exits are linked to, and brings regs up
 * to date.
 */
static __always_inline struct ub_exit enter(struct ub_rider *rider, struct ub_fragment *fragment,
					    struct pt_regs *regs)
{
	struct ub_run run = {
		.regs = regs,
		.fragment = fragment,
		.work_flags = &current_thread_info()->flags,
		.softirq_pending = ub_softirq_pending(),
		.poll_mask = UB_WORK_MASK,
		.stack_end = TASK_SIZE_MAX,
		.links_left = LINKS_IN_A_ROW,
		.arena_seen = this_cpu_read(ub_arena_seen),
		/* Written by run_fragment.S. */
		.exit_id = 0,
		.target = 0,
		.flags_out = 0,
	};
	struct ub_exit exit;

	if (unlikely(run.arena_seen < fragment->written))
		run.arena_seen = ub_arena_catch_up();
	ub_run_fragment(&run);
	fragment = run.fragment;
	rider->counters.fragments_run += 1 + LINKS_IN_A_ROW - run.links_left;
	/* The bound is the verifier's to prove; this keeps a mistake readable. */
	if (likely(run.exit_id < fragment->exit_count)) {
		run.exit_id = array_index_nospec(run.exit_id, fragment->exit_count);
		exit = fragment->exits[run.exit_id];
	} else {
		exit = (struct ub_exit){ .kind = UB_EXIT_GUARD, .user_ip = fragment->entry };
	}

	regs->flags = flags_after(regs->flags, run.flags_out);
	regs->ip = exit.kind == UB_EXIT_INDIRECT ? run.target : exit.user_ip;
	/* We are no longer in a system call: nothing to restart. */
	regs->orig_ax = -1;
	if (exit.kind == UB_EXIT_BRANCH || exit.kind == UB_EXIT_INDIRECT) {
		struct ub_fragment *next = ub_space_find(rider->space, regs->ip);

		if (next && ub_fragment_link(rider->space, fragment, run.exit_id, next))
			report_link(rider, fragment->entry, next->entry);
	}
	return exit;
}

/*
 * Finds the fragment at regs->ip and runs it. On UB_GO *exit says how it was
 * left and regs are the user's there. Otherwise nothing happened.
 */
static __always_inline int run_one(struct ub_rider *rider, struct pt_regs *regs, struct ub_exit *exit)
{
	struct ub_fragment *fragment;
	bool first = !rider->riding;
	int stop, attempts = 0;

	/*
	 * Preemption and softirqs off until fpregs_unlock(): the user's vector
	 * registers stay in place, and the fragment stays allocated (retiring
	 * waits for an RCU grace period).
	 */
	fpregs_lock();
	while (!ub_nothing_pending()) {
		/* Softirqs run in here, unless they are ksoftirqd's by now. */
		fpregs_unlock();
		if (++attempts == PENDING_ATTEMPTS)
			return UB_STOP_POLL;
		/* Longer than a gap may be: a long computation, maybe without end. */
		if (rider->worked && rdtsc() - rider->worked > rider->session->gap_max_cycles)
			return UB_STOP_LONG;
		stop = ub_do_pending_work(regs);
		if (stop != UB_GO)
			return stop;
		rider->worked = rdtsc();
		first = true;
		fpregs_lock();
	}
	stop = ub_may_go_on(rider, regs);
	if (stop == UB_GO && first)
		stop = ub_may_start(rider, regs);
	if (stop != UB_GO) {
		fpregs_unlock();
		return stop;
	}
	fragment = ub_space_find(rider->space, regs->ip);
	if (!fragment) {
		fpregs_unlock();
		return UB_STOP_NO_FRAGMENT;
	}
	if (test_thread_flag(TIF_NEED_FPU_LOAD) && !UB_LEFT_OUT(VECTOR_RELOAD))
		switch_fpu_return();
	/* A store on every run would be one too many. */
	if (unlikely(!READ_ONCE(fragment->used)))
		WRITE_ONCE(fragment->used, true);

	*exit = enter(rider, fragment, regs);
	ub_fpregs_unlock();
	return UB_GO;
}

/* The program is at a syscall instruction. Makes regs what entry_64.S would. */
static __always_inline int next_call(struct ub_rider *rider, struct pt_regs *regs)
{
	unsigned int nr = regs->ax;

	if (!ub_call_allowed(nr) || !ub_calls_may_ride())
		return -1;
	rider->counters.syscalls++;
	rider->counters.ridden++;
	regs->ip += SYSCALL_BYTES;
	regs->cx = regs->ip;
	regs->r11 = regs->flags;
	regs->orig_ax = nr;
	regs->ax = -ENOSYS;
	return nr;
}

/* Counts one passage of an edge or exit and reports it when it is often. */
static void count_exit(struct ub_rider *rider, enum ub_report_kind kind, u64 address, u64 from)
{
	struct ub_session *session = rider->session;
	u32 count;

	/* One counter for each of them; that two share one is unlikely and harmless. */
	count = ub_misses_count(&rider->space->misses,
				address ^ rol64(from, 23) ^ ((u64)kind << 56),
				session->config.miss_count);
	if (count) {
		struct ub_report report = {
			.kind = kind,
			.pid = task_tgid_nr_ns(current, session->pid_namespace),
			.btc = rider->space->id,
			.address = address,
			.from = from,
			.count = count,
		};

		ub_session_report(session, &report);
	}
}

/* A fragment was left for address, by the indirect branch at from or, if 0, a direct one. */
static void count_miss(struct ub_rider *rider, u64 address, u64 from)
{
	count_exit(rider, UB_REPORT_MISS, address, from);
}

int ub_ride(void *thread, struct pt_regs *regs)
{
	struct ub_rider *rider = thread;
	bool in_gap = true;	/* no user instruction since the call */
	int stop, missed = UB_STOP_NO_FRAGMENT;

	if (unlikely(rider->time_gaps))
		ub_gap_timer_start(&rider->timer);
	if (must_restart(regs) && !UB_LEFT_OUT(RESTART_CHECK)) {
		stop = UB_STOP_RESTART;
		goto out;
	}
	rider->worked = 0;
	if (ub_measure(rider, regs->ip)) {
		stop = UB_STOP_MEASURED;
		goto out;
	}
	for (;;) {
		struct ub_exit exit;

		stop = run_one(rider, regs, &exit);
		if (stop == UB_STOP_NO_FRAGMENT) {
			stop = missed;
			if (missed == UB_STOP_BRANCH_MISS)
				count_miss(rider, regs->ip, 0);
		}
		if (stop != UB_GO)
			break;
		if (in_gap)
			rider->counters.rides += !rider->riding;
		rider->riding = true;
		in_gap = false;

		switch (exit.kind) {
		case UB_EXIT_SYSCALL: {
			int nr = next_call(rider, regs);

			if (nr >= 0) {
				if (unlikely(rider->time_gaps))
					ub_gap_timer_stop(&rider->timer, &rider->counters,
							  UB_GAP_RIDDEN);
				if (unlikely(rider->gap))
					ub_measure_end(rider, nr, true, false);
				return nr;
			}
			stop = UB_STOP_SYSCALL_REFUSED;
			goto out;
		}
		case UB_EXIT_BRANCH:
			missed = UB_STOP_BRANCH_MISS;
			continue;
		case UB_EXIT_INDIRECT:
			missed = UB_STOP_INDIRECT_MISS;
			count_miss(rider, regs->ip, exit.user_ip);
			continue;
		case UB_EXIT_POLL:
			continue;
		case UB_EXIT_UNSUPPORTED:
			stop = UB_STOP_UNSUPPORTED;
			goto out;
		case UB_EXIT_FAULT:
			stop = UB_STOP_FAULT;
			goto out;
		default:
			stop = UB_STOP_GUARD;
			count_exit(rider, UB_REPORT_GUARD, regs->ip, 0);
			goto out;
		}
	}
out:
	if (rider->riding) {
		rider->riding = false;
		rider->counters.stops[stop]++;
	} else {
		rider->counters.refused[stop]++;
	}
	rider->rode = !in_gap;
	/* A gap that starts natively here is one to learn about. */
	if (unlikely(rider->gap) && in_gap)
		ub_measure_native(rider, stop == UB_STOP_NO_FRAGMENT);
	return -1;
}

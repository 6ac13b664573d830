// SPDX-License-Identifier: GPL-2.0
#include <linux/bitops.h>
#include <linux/bottom_half.h>
#include <linux/cache.h>
#include <linux/errno.h>
#include <linux/irqflags.h>
#include <linux/limits.h>
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
#include "mitigations.h"
#include "ride/conditions.h"
#include "ride/ride.h"
#include "ride/run_fragment.h"
#include "rider.h"

/* What run_fragment.S knows by number. */
static_assert(offsetof(struct ub_run, work_flags) == 0);
static_assert(offsetof(struct ub_run, stack_end) == 8);
static_assert(offsetof(struct ub_run, target) == 16);
static_assert(offsetof(struct ub_run, poll_mask) == 24);
static_assert(offsetof(struct ub_run, links_left) == 28);
static_assert(offsetof(struct ub_run, budget) == 32);
static_assert(offsetof(struct ub_fragment, entry) == 16);
static_assert(offsetof(struct ub_fragment, code) == 24);
static_assert(offsetof(struct ub_fragment, links) == 32);
static_assert(offsetof(struct ub_fragment, written) == 40);
static_assert(offsetof(struct ub_fragment, exit_count) == 48);
static_assert(offsetof(struct ub_fragment, work) == 52);
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
static_assert(offsetof(struct ub_frame, budget) == 0x68);
static_assert(sizeof(struct ub_frame) == 0x70);
static_assert(offsetof(struct pt_regs, ax) == 80);
static_assert((X86_EFLAGS_CF | X86_EFLAGS_PF | X86_EFLAGS_AF | X86_EFLAGS_ZF | X86_EFLAGS_SF |
	       X86_EFLAGS_OF) == 0x8d5);

#define SYSCALL_BYTES 2
/* Times that work is done on the way into a fragment before more of it ends the ride. */
#define PENDING_ATTEMPTS 8
/* Beside UB_GO: the ride goes on with a system call. */
#define UB_CALL (-2)

static bool must_restart(const struct pt_regs *regs)
{
	static_assert(ERESTART_RESTARTBLOCK == ERESTARTSYS + 4);
	/* Between them lie the others and one that no call returns to user mode. */
	return -regs->ax - ERESTARTSYS <= ERESTART_RESTARTBLOCK - ERESTARTSYS;
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

/* The fragment was left by a branch; the next rider may go on without coming here. */
static void follow(struct ub_rider *rider, struct ub_left left, u64 address)
{
	struct ub_fragment *next = ub_space_find(rider->space, address);

	if (next && ub_fragment_link(rider->space, left.fragment, left.exit_id, next))
		report_link(rider, left.fragment->entry, next->entry);
}

/* The program is at a syscall instruction, at ip. Makes regs what entry_64.S would. */
static __always_inline bool next_call(struct ub_rider *rider, struct pt_regs *regs, u64 ip)
{
	unsigned int nr = regs->ax;

	if (unlikely(!ub_call_allowed(nr)) || !ub_calls_may_ride())
		return false;
	rider->counters.ridden++;
	ip += SYSCALL_BYTES;
	regs->ip = ip;
	regs->cx = ip;
	regs->r11 = regs->flags;
	regs->orig_ax = nr;
	regs->ax = -ENOSYS;
	return true;
}

/*
 * What polls see where interrupts wait: nothing becomes pending there but by interrupt, or
 * can wait until the budget is used up. In a cache line of its own, as a poll brings the line
 * it looks at into buffers that were cleared for the user code behind it.
 */
static const u64 nothing_pending[SMP_CACHE_BYTES / sizeof(u64)] ____cacheline_aligned;

/*
 * Runs the fragment and those that its exits are linked to, and brings regs up
 * to date. UB_CALL, or UB_GO and how it was left.
 */
static __always_inline int enter(struct ub_rider *rider, struct ub_fragment *fragment,
				 struct pt_regs *regs, struct ub_exit *exit)
{
	const u16 *softirqs = ub_softirq_pending();
	struct ub_left left;

	if (unlikely(this_cpu_read(ub_arena_seen) < fragment->written))
		ub_arena_catch_up();
	if (unlikely(ub_interrupts_wait())) {
		softirqs = (const u16 *)nothing_pending;
		local_irq_disable();
	}
	left = ub_run_fragment(regs, fragment, softirqs, &rider->run);
	if (unlikely(ub_interrupts_wait()))
		local_irq_enable();
	fragment = left.fragment;
	rider->counters.fragments_run += 1 + UB_LINKS_IN_A_ROW - rider->run.links_left;
	/* The bound is the verifier's to prove; this keeps a mistake readable. */
	if (likely(left.exit_id < fragment->exit_count))
		*exit = fragment->exits[array_index_nospec(left.exit_id, fragment->exit_count)];
	else
		*exit = (struct ub_exit){ .kind = UB_EXIT_GUARD, .user_ip = fragment->entry };

	if (likely(exit->kind == UB_EXIT_SYSCALL) && next_call(rider, regs, exit->user_ip))
		return UB_CALL;
	regs->ip = exit->kind == UB_EXIT_INDIRECT ? rider->run.target : exit->user_ip;
	/* We are no longer in a system call: nothing to restart. */
	regs->orig_ax = -1;
	if (exit->kind == UB_EXIT_BRANCH || exit->kind == UB_EXIT_INDIRECT)
		follow(rider, left, regs->ip);
	return UB_GO;
}

/*
 * Does what is pending. UB_GO: nothing is any more, and preemption and softirqs
 * are off, as before. Otherwise they are on.
 */
static noinline int do_pending(struct ub_rider *rider, struct pt_regs *regs)
{
	int stop, attempts = 0;

	do {
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
		fpregs_lock();
	} while (!ub_nothing_pending());
	stop = ub_may_start(rider);
	if (stop != UB_GO)
		fpregs_unlock();
	return stop;
}

/* The first fragment of a ride is about to run. */
static noinline int start(struct ub_rider *rider)
{
	int stop = ub_may_start(rider);

	if (stop == UB_GO) {
		rider->run.work_flags = &current_thread_info()->flags;
		rider->run.budget = INT_MAX;
		if (ub_interrupts_wait()) {
			rider->run.work_flags = nothing_pending;
			rider->run.budget = UB_WAITING_BUDGET;
		}
		rider->run.poll_mask = UB_LEFT_OUT(POLLS) ? 0 : UB_WORK_MASK;
		rider->run.stack_end = TASK_SIZE_MAX;
		rider->riding = true;
		rider->counters.rides++;
	}
	return stop;
}

/*
 * Finds the fragment at regs->ip and runs it. On UB_GO *exit says how it was
 * left and regs are the user's there; on UB_CALL they are those of the program's
 * next call. Otherwise nothing happened.
 */
static __always_inline int run_one(struct ub_rider *rider, struct pt_regs *regs, struct ub_exit *exit)
{
	struct ub_fragment *fragment;
	int stop;

	/*
	 * Preemption and softirqs off until fpregs_unlock(): the user's vector
	 * registers stay in place, and the fragment stays allocated (retiring
	 * waits for an RCU grace period).
	 */
	fpregs_lock();
	if (unlikely(!ub_nothing_pending())) {
		stop = do_pending(rider, regs);
		if (stop != UB_GO)
			return stop;
	}
	stop = ub_may_go_on(rider, regs);
	if (unlikely(stop != UB_GO)) {
		fpregs_unlock();
		return stop;
	}
	fragment = ub_space_find(rider->space, regs->ip);
	if (!fragment) {
		/* A thread that may not ride has no use for one, either. */
		stop = rider->riding ? UB_GO : ub_may_start(rider);
		fpregs_unlock();
		return stop == UB_GO ? UB_STOP_NO_FRAGMENT : stop;
	}
	if (unlikely(!rider->riding)) {
		stop = start(rider);
		if (stop != UB_GO) {
			fpregs_unlock();
			return stop;
		}
	}
	/* A store on every run would be one too many. */
	if (unlikely(!READ_ONCE(fragment->used)))
		WRITE_ONCE(fragment->used, true);

	stop = enter(rider, ub_confined(fragment), regs, exit);
	ub_fpregs_unlock();
	return stop;
}

/* Counts one passage of an edge or exit and reports it when it is often. */
static void count_exit(struct ub_rider *rider, enum ub_report_kind kind, u64 address, u64 from)
{
	struct ub_session *session = rider->session;
	u32 count;

	/* One counter for each of them; that two share one is unlikely and harmless. */
	count = ub_misses_count(&rider->space->misses,
				address ^ rol64(from, 23) ^ ((u64)kind << 56),
				session->config.miss_count, session->miss_window);
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
		if (likely(stop == UB_CALL)) {
			if (unlikely(rider->time_gaps))
				ub_gap_timer_stop(&rider->timer, &rider->counters, UB_GAP_RIDDEN,
						  rdtsc());
			if (unlikely(rider->gap))
				ub_measure_end(rider, regs->orig_ax, rdtsc(), true, false);
			return regs->orig_ax;
		}
		if (stop == UB_STOP_NO_FRAGMENT) {
			stop = missed;
			if (missed == UB_STOP_BRANCH_MISS)
				count_miss(rider, regs->ip, 0);
		}
		if (stop != UB_GO)
			break;
		in_gap = false;

		switch (exit.kind) {
		case UB_EXIT_SYSCALL:
			stop = UB_STOP_SYSCALL_REFUSED;
			goto out;
		case UB_EXIT_BRANCH:
			missed = UB_STOP_BRANCH_MISS;
			continue;
		case UB_EXIT_INDIRECT:
			missed = UB_STOP_INDIRECT_MISS;
			count_miss(rider, regs->ip, exit.user_ip);
			continue;
		case UB_EXIT_POLL:
			/* Long loops leave there again and again, so they have to be learned. */
			if (ub_interrupts_wait())
				missed = UB_STOP_BRANCH_MISS;
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
	/* Longer than it takes until the module is unloaded: somebody is still inside. */
	UB_RACE_SLEEP(READ_ONCE(rider->session->ended), 5000);
	rider->rode = !in_gap;
	/* A gap that starts natively here is one to learn about. */
	if (unlikely(rider->gap) && in_gap)
		ub_measure_native(rider, stop == UB_STOP_NO_FRAGMENT);
	return -1;
}

/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * The one interface between ub.ko and user space: ioctls, reports and
 * statistics on /dev/ub, and the frame through which a fragment talks to
 * whoever runs it. runtime/tests/abi.rs checks the Rust side against this
 * file; change both together and raise UB_ABI_VERSION.
 */
#ifndef _UAPI_UB_H
#define _UAPI_UB_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define UB_ABI_VERSION 7
#define UB_DEVICE_PATH "/dev/ub"

/*
 * The frame at the hardware stack pointer while a fragment runs. A fragment
 * reaches it as [rsp + offset] with an 8-bit displacement and reaches
 * nothing else on the kernel stack. docs/fragment.md has the rules.
 */
#define UB_SPILL_SLOTS 7

struct ub_frame {
	__u64 user_rsp;			/* in and out: the user's stack pointer */
	__u64 target;			/* out: user target of an indirect exit */
	__u64 spill[UB_SPILL_SLOTS];	/* displaced registers and scratch */
	__u64 user_r11;			/* in: the user's r11 */
	__u64 poll_flags;		/* in: address of the thread's work flags */
	__u64 poll_softirq;		/* in: address of the 16-bit pending mask */
	__u32 poll_mask;		/* in: work flags that end a ride */
	__u32 exit_id;			/* out: index into the fragment's exits */
	__s32 budget;			/* in: instructions until a poll leaves; polls take off */
	__u32 reserved;
};

/* Most instructions of a fragment between its entry or a poll and the next poll or out. */
#define UB_MAX_WORK 8192

/* Why a fragment was left. Value of ub_exit.kind. */
enum ub_exit_kind {
	UB_EXIT_SYSCALL = 1,		/* user_ip: the syscall instruction */
	UB_EXIT_BRANCH = 2,		/* user_ip: target outside the region */
	UB_EXIT_INDIRECT = 3,		/* user_ip: the branch; frame.target: its target */
	UB_EXIT_UNSUPPORTED = 4,	/* user_ip: instruction not on the allow-list */
	UB_EXIT_FAULT = 5,		/* user_ip: instruction whose access faulted */
	UB_EXIT_GUARD = 6,		/* user_ip: instruction a run-time guard refused */
	UB_EXIT_POLL = 7,		/* user_ip: where to go on; work is pending */
	UB_EXIT_KIND_MAX,
};

struct ub_exit {
	__u64 user_ip;
	__u16 kind;			/* enum ub_exit_kind */
	__u16 reason;			/* translator's name for UNSUPPORTED, else 0 */
	__u32 reserved;			/* zero */
};

/* A fault at fault_offset continues at landing_offset, both in the code. */
struct ub_fixup {
	__u32 fault_offset;
	__u32 landing_offset;
};

struct ub_range {
	__u64 start;
	__u64 end;			/* exclusive */
};

struct ub_info {
	__u32 abi_version;
	__u32 refusals;			/* UB_REFUSE_*: why no ride happens on this CPU */
	__u32 actions;			/* UB_ACT_*: what is done around a fragment */
	__u32 poll_mask;
	__u64 arena_bytes;
	__u64 arena_free;
	__u32 max_code_bytes;		/* per fragment */
	__u32 max_exits;		/* per fragment */
	__u32 max_fixups;		/* per fragment */
	__u32 max_sources;		/* per fragment */
	__u32 sessions;
	__u32 fragments;
	__u32 cycles_khz;		/* of the cycle counter in ub_gap_info */
	__u32 reserved;			/* zero */
};

#define UB_REFUSE_LEGACY_IBRS	(1u << 0)	/* kernel writes IBRS on entry */
#define UB_REFUSE_BRANCH_HISTORY (1u << 1)	/* branch history hidden by BHI_DIS_S */
#define UB_REFUSE_CALL_DEPTH	(1u << 2)	/* return-depth tracking in use */
#define UB_REFUSE_XEN_PV	(1u << 3)	/* Xen PV guest */
#define UB_REFUSE_NO_SMAP	(1u << 4)	/* SMAP absent or disabled */
#define UB_REFUSE_NO_FSGSBASE	(1u << 5)	/* FS base not readable by fragments */
#define UB_REFUSE_DIVIDER	(1u << 6)	/* stale divider results (Zen 1) */
#define UB_REFUSE_UNTRAINED_RETURNS (1u << 7)	/* untrained, or IBPB, on entry */
#define UB_ACT_CLEAR_BUFFERS	(1u << 0)	/* VERW before each fragment, no interrupts in it */
#define UB_ACT_CLEAR_BRANCHES	(1u << 1)	/* branch history cleared after each fragment */
#define UB_ACT_UNTRAIN		(1u << 2)	/* returns untrained after each fragment */
#define UB_ACT_IBPB		(1u << 3)	/* branch predictions flushed after each fragment */

/*
 * How a session finds gaps that are worth a ride, and measures whether they
 * are. What is zero becomes the module's default (its parameter of the same
 * name). SESSION_CREATE writes back what holds.
 *
 * A passage of a gap is sampled: one of sample_interval, at random; one of fewer where
 * hot_window samples would take over 2 s, and one of more, up to native_interval and no more
 * than 16,384, while so few calls are native that no gap of theirs can be hot. Only threads
 * that make min_rate system calls a second are looked at; after a pause those that did so
 * before it. A gap is hot when hot_count of the last hot_window samples of an address space
 * led from it to the next call within gap_short_ns, or within gap_max_ns. Once there is a
 * fragment, one of native_interval passages goes native on purpose, several in a
 * row of which the last ones are timed.
 */
struct ub_session_config {
	__u32 abi_version;
	__u32 flags;			/* UB_SESSION_* */
	__u32 sample_interval;		/* passages for one that is sampled */
	__u32 min_rate;			/* system calls of a thread in a second */
	__u32 hot_count;		/* samples of a gap that make it hot ... */
	__u32 hot_window;		/* ... among so many of all gaps */
	__u64 gap_short_ns;		/* gaps that are tried first */
	__u64 gap_max_ns;		/* gaps that are tried at all */
	__u32 native_interval;		/* >= 100 or UB_NATIVE_NEVER: no measuring, no judging */
	__u32 miss_count;		/* times a fragment is left for an address before that is reported */
	__u32 max_fragments;
	__u32 miss_window_ms;		/* within which it must be left so often */
	__u64 max_arena_bytes;
};

#define UB_SESSION_TIME_GAPS	(1u << 0)	/* fill ub_stats.gaps and .gap_cycles */
#define UB_NATIVE_NEVER		0xffffffffu

struct ub_read_code {
	__u64 btc;
	__u64 address;
	__u64 buffer;			/* user pointer */
	__u32 length;			/* at most 64 KiB */
	__u32 copied;			/* out */
	__u64 sequence;			/* out: pass it on to install */
};

struct ub_install {
	__u64 btc;
	__u64 sequence;			/* smallest seen while reading the sources */
	__u64 entry;			/* user address the fragment stands for */
	__u64 code;			/* user pointer */
	__u64 exits;			/* user pointer to struct ub_exit[] */
	__u64 fixups;			/* user pointer to struct ub_fixup[], by fault_offset */
	__u64 sources;			/* user pointer to struct ub_range[] */
	__u64 relocations;		/* user pointer to __u32[]: rel32 fields of the exit jump */
	__u32 code_length;
	__u32 exit_count;
	__u32 fixup_count;
	__u32 source_count;
	__u32 relocation_count;
	__u32 work;			/* of UB_MAX_WORK; 0: all of it */
};

struct ub_retire {
	__u64 btc;
	__u64 entry;
};

struct ub_process {
	__u32 pid;			/* of the process, in the caller's pid namespace */
	__u32 threads;			/* out: threads that the call enrolled or detached */
};

/* Why a ride ended or did not begin. Index into ub_stats.stops and .refused. */
enum ub_stop {
	UB_STOP_NO_FRAGMENT = 0,	/* resume address not translated (yet) */
	UB_STOP_BRANCH_MISS,		/* direct branch to untranslated code */
	UB_STOP_INDIRECT_MISS,		/* indirect branch to untranslated code */
	UB_STOP_UNSUPPORTED,		/* instruction not on the allow-list */
	UB_STOP_FAULT,			/* a user memory access faulted */
	UB_STOP_GUARD,			/* a run-time guard refused an operand */
	UB_STOP_POLL,			/* signal, reschedule or softirq pending */
	UB_STOP_SYSCALL_REFUSED,	/* the next call is not run in a ride */
	UB_STOP_RESTART,		/* the call must be restarted */
	UB_STOP_SYSCALL_WORK,		/* a filter's refusal, ptrace, audit or tracing */
	UB_STOP_CONDITION,		/* another run condition does not hold */
	UB_STOP_SESSION_END,		/* supervisor gone or module leaving */
	UB_STOP_MEASURED,		/* native on purpose, to compare */
	UB_STOP_LONG,			/* the gap took longer than gap_max_ns */
	UB_STOP_MAX,
};

/*
 * How the program got from the end of one system call to the start of the
 * next. Index into ub_stats.gaps and ub_stats.gap_cycles.
 */
enum ub_gap {
	UB_GAP_NATIVE = 0,		/* in user mode, with the way there and back */
	UB_GAP_RIDDEN,			/* in a ride */
	UB_GAP_LEFT,			/* in a ride, then in user mode */
	UB_GAP_MAX,
};

struct ub_stats {
	__u64 syscalls;			/* system calls of enrolled threads */
	__u64 ridden;			/* of these, reached without leaving ring 0 */
	__u64 rides;			/* stays in ring 0 with at least one fragment */
	__u64 fragments_run;
	__u64 stops[UB_STOP_MAX];	/* ends of rides */
	__u64 refused[UB_STOP_MAX];	/* calls behind which no ride began */
	__u64 threads;			/* enrolled so far */
	__u64 threads_now;
	__u64 address_spaces;		/* so far */
	__u64 fragments;		/* installed now */
	__u64 fragments_installed;	/* so far */
	__u64 fragments_retired;	/* so far */
	__u64 fragments_evicted;	/* of these, to make room for others */
	__u64 installs_stale;		/* rejected: code changed meanwhile */
	__u64 arena_bytes;		/* in use now */
	__u64 reports;
	__u64 reports_dropped;
	__u64 sampled;			/* passages of gaps that were sampled */
	/*
	 * Of sessions with UB_SESSION_TIME_GAPS, else zero: how many, and their
	 * cycles in sum, without time in which the thread was not running.
	 * Between two calls that both go through the gate.
	 */
	__u64 gaps[UB_GAP_MAX];
	__u64 gap_cycles[UB_GAP_MAX];
};

/* Where a gap stands. Value of ub_gap_info.state. */
enum ub_gap_state {
	UB_GAP_STATE_COLD = 0,		/* seen, and not worth a translation */
	UB_GAP_STATE_HOT,		/* reported; no fragment (yet) */
	UB_GAP_STATE_TRANSLATED,	/* there is a fragment at its resume address */
	UB_GAP_STATE_RETIRED,		/* goes native for held_ns at least */
	UB_GAP_STATE_MAX,
};

/* Why it stands there. Value of ub_gap_info.reason and ub_verdict.reason. */
enum ub_gap_reason {
	UB_GAP_REASON_RARE = 0,		/* COLD: not often enough, or of slow threads only */
	UB_GAP_REASON_LONG,		/* COLD: mostly longer than gap_max_ns */
	UB_GAP_REASON_REPORTED,		/* HOT: it is the supervisor's turn */
	UB_GAP_REASON_WAITS,		/* HOT: long; tried when shorter ones have paid */
	UB_GAP_REASON_REFUSED,		/* HOT: the supervisor could not translate it */
	UB_GAP_REASON_MEASURING,	/* TRANSLATED: too few samples to tell */
	UB_GAP_REASON_PAYS,		/* TRANSLATED: saves time, with confidence */
	UB_GAP_REASON_SLOWER,		/* RETIRED: costs time, with confidence */
	UB_GAP_REASON_NO_GAIN,		/* RETIRED: no saving could be shown */
	UB_GAP_REASON_UNMEASURED,	/* TRANSLATED: the session does not measure */
	UB_GAP_REASON_MACHINE,		/* RETIRED: rides cost more than calls on this machine */
	UB_GAP_REASON_MAX,
};

/* Latest samples kept of each gap and kind. */
#define UB_GAP_SAMPLES 32
/* ub_gap_info.next_call of a gap that led to no call yet. */
#define UB_NO_CALL 0xffffffffu

/*
 * What is known about the gaps that start at one address. Times are those of
 * sampled passages, from the end of one call to the start of the next: natively
 * with both switches, or what the ride does in their place. A passage that
 * began in a ride and ended natively is a ride's.
 */
struct ub_gap_info {
	__u64 btc;
	__u64 address;			/* resume address */
	__u64 passages;			/* estimate, by samples; all kinds */
	__u64 ridden;			/* of these: began in a ride */
	__u64 native_sampled;		/* so far, as all counts here */
	__u64 ride_sampled;		/* of the present fragment, or the last one */
	__u64 left_sampled;		/* of these: did not get to the next call in the ride */
	__u64 native_on_purpose;	/* of native_sampled: there was a fragment */
	__u64 native_ns;		/* mean of the latest samples; 0: none */
	__u64 ride_ns;			/* mean of the latest samples; 0: none */
	__s64 saved_ps;			/* the last verdict's, picoseconds a passage */
	__u64 saved_error_ps;		/* its standard error */
	__u64 held_ns;			/* RETIRED: time left until it may be tried again */
	__u32 state;			/* enum ub_gap_state */
	__u32 reason;			/* enum ub_gap_reason */
	__u32 retirements;		/* by verdicts, so far */
	__u32 next_call;		/* that over half of the latest samples led to, if any; else of one */
	__u32 native_cycles[UB_GAP_SAMPLES];	/* the latest, newest first, then zeros */
	__u32 ride_cycles[UB_GAP_SAMPLES];	/* the same in rides */
};

struct ub_gaps_query {
	__u64 btc;			/* an address space, or 0: all of the session */
	__u64 buffer;			/* user pointer to struct ub_gap_info[] */
	__u32 capacity;			/* how many fit */
	__u32 count;			/* out: how many there are, which may be more */
};

/* What the supervisor decided about a gap, by its measurements. */
struct ub_verdict {
	__u64 btc;
	__u64 address;
	__u64 hold_ns;			/* not 0: retire the fragment, and keep it away for so long */
	__s64 saved_ps;
	__u64 saved_error_ps;
	__u32 reason;			/* enum ub_gap_reason, for whoever asks */
	__u32 reserved;			/* zero */
};

enum ub_report_kind {
	UB_REPORT_HOT_GAP = 1,		/* address: resume address of a hot gap */
	/*
	 * A fragment is often left for address. from: the indirect branch that
	 * goes there, whether or not there is a fragment at address; or 0:
	 * a direct branch, and there is none.
	 */
	UB_REPORT_MISS = 2,
	UB_REPORT_BTC_GONE = 3,		/* the address space ended */
	UB_REPORT_RETIRED = 4,		/* sources in [address, from) changed */
	UB_REPORT_GUARD = 5,		/* fragments are often left by a guard at address */
	UB_REPORT_EVICTED = 6,		/* the fragment at address made room for another */
	UB_REPORT_LINKED = 7,		/* riders go on from the fragment at from to that at address */
};

struct ub_report {
	__u32 kind;			/* enum ub_report_kind */
	__u32 pid;			/* a thread that saw it, in the reader's pid namespace or 0 */
	__u64 btc;
	__u64 address;
	__u64 from;
	__u64 count;
	__u64 gap_ns;			/* mean native gap time, HOT_GAP only */
};

/*
 * A file on /dev/ub becomes a session with SESSION_CREATE. ENROLL enrols the
 * calling thread, which must be the only one of its process; what it forks
 * and executes stays enrolled. ATTACH enrols all threads of a running
 * process, each from its next call on; EBUSY if one of them is in another
 * session, and then none is. DETACH works on any file and takes the threads
 * of a process out of whatever session they are in: each rides no more from
 * its next poll or call on. read() yields struct ub_report, blocks unless
 * O_NONBLOCK, and returns 0 once every enrolled thread has ended. Closing
 * the file ends the session: its threads go on natively.
 */
#define UB_IOC_MAGIC		0xb5
#define UB_IOC_INFO		_IOR(UB_IOC_MAGIC, 1, struct ub_info)
#define UB_IOC_SESSION_CREATE	_IOWR(UB_IOC_MAGIC, 2, struct ub_session_config)
#define UB_IOC_ENROLL		_IO(UB_IOC_MAGIC, 3)
#define UB_IOC_READ_CODE	_IOWR(UB_IOC_MAGIC, 4, struct ub_read_code)
#define UB_IOC_INSTALL		_IOW(UB_IOC_MAGIC, 5, struct ub_install)
#define UB_IOC_RETIRE		_IOW(UB_IOC_MAGIC, 6, struct ub_retire)
#define UB_IOC_STATS		_IOR(UB_IOC_MAGIC, 7, struct ub_stats)
#define UB_IOC_GAPS		_IOWR(UB_IOC_MAGIC, 8, struct ub_gaps_query)
#define UB_IOC_VERDICT		_IOW(UB_IOC_MAGIC, 9, struct ub_verdict)
#define UB_IOC_ATTACH		_IOWR(UB_IOC_MAGIC, 10, struct ub_process)
#define UB_IOC_DETACH		_IOWR(UB_IOC_MAGIC, 11, struct ub_process)

#endif /* _UAPI_UB_H */

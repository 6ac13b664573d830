//! The interface to the kernel module, field by field as in
//! `kernel-patch/module/uapi/ub.h`.
//!
//! The macros below write a type and its description from the same text, so a
//! field cannot exist without being compared with the header by
//! `tests/abi.rs`.

use std::mem::{offset_of, size_of};

use ub_translator::fragment::ExitKind;
use ub_translator::frame;

/// Revision of the interface that this program speaks (`UB_ABI_VERSION`).
pub const ABI_VERSION: u32 = 5;
/// The device node (`UB_DEVICE_PATH`).
pub const DEVICE_PATH: &str = "/dev/ub";
/// First letter of every ioctl number (`UB_IOC_MAGIC`).
pub const IOC_MAGIC: u8 = 0xb5;
/// Most bytes that one `UB_IOC_READ_CODE` may ask for.
pub const READ_CODE_MAX: usize = 64 << 10;

/// One member of a structure of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Field {
    /// Name in C.
    pub name: &'static str,
    /// Offset from the start of the structure in bytes.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
}

/// A structure of the interface, as laid out by the Rust compiler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Tag in C.
    pub name: &'static str,
    /// Size in bytes.
    pub size: usize,
    /// Members in order.
    pub fields: &'static [Field],
}

macro_rules! uapi_struct {
    ($(#[$meta:meta])* struct $c:ident = $name:ident {
        $($(#[$field_meta:meta])* $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl $name {
            /// Name, size and members, for comparison with the header.
            pub const LAYOUT: Layout = Layout {
                name: stringify!($c),
                size: size_of::<$name>(),
                fields: &[$(Field {
                    name: stringify!($field),
                    offset: offset_of!($name, $field),
                    size: size_of::<$type>(),
                }),*],
            };
        }
    };
}

/// `struct ub_frame`, which the translator owns: no code here touches one.
const FRAME_LAYOUT: Layout = Layout {
    name: "ub_frame",
    size: frame::SIZE,
    fields: &[
        Field { name: "user_rsp", offset: frame::USER_RSP as usize, size: 8 },
        Field { name: "target", offset: frame::TARGET as usize, size: 8 },
        Field { name: "spill", offset: frame::SPILL as usize, size: 8 * frame::SPILL_SLOTS },
        Field { name: "user_r11", offset: frame::USER_R11 as usize, size: 8 },
        Field { name: "poll_flags", offset: frame::POLL_FLAGS as usize, size: 8 },
        Field { name: "poll_softirq", offset: frame::POLL_SOFTIRQ as usize, size: 8 },
        Field { name: "poll_mask", offset: frame::POLL_MASK as usize, size: 4 },
        Field { name: "exit_id", offset: frame::EXIT_ID as usize, size: 4 },
    ],
};

uapi_struct! {
    /// One way out of a fragment.
    struct ub_exit = Exit {
        /// User address of the meaning that `kind` gives it.
        user_ip: u64,
        /// [`ExitKind`] as a number.
        kind: u16,
        /// [`ub_translator::fragment::Unsupported`] as a number.
        reason: u16,
        /// Zero.
        reserved: u32,
    }
}

uapi_struct! {
    /// Where a fault inside the code continues.
    struct ub_fixup = Fixup {
        /// Offset of the instruction that may fault.
        fault_offset: u32,
        /// Offset at which execution continues.
        landing_offset: u32,
    }
}

uapi_struct! {
    /// A stretch of user addresses.
    struct ub_range = Range {
        /// First address.
        start: u64,
        /// One past the last address.
        end: u64,
    }
}

uapi_struct! {
    /// What the module is and what it decided about this CPU.
    struct ub_info = Info {
        /// The module's [`ABI_VERSION`].
        abi_version: u32,
        /// [`Refusal`] bits: why no ride happens on this CPU.
        refusals: u32,
        /// [`Action`] bits: what is done around a fragment.
        actions: u32,
        /// Work flags that end a ride.
        poll_mask: u32,
        /// Size of the code arena in bytes.
        arena_bytes: u64,
        /// Unused bytes of the arena.
        arena_free: u64,
        /// Most bytes of code in a fragment.
        max_code_bytes: u32,
        /// Most exits of a fragment.
        max_exits: u32,
        /// Most fixups of a fragment.
        max_fixups: u32,
        /// Most source ranges of a fragment.
        max_sources: u32,
        /// Sessions open now, of all users.
        sessions: u32,
        /// Fragments installed now, of all sessions.
        fragments: u32,
        /// Frequency of the cycle counter that gaps are timed with, in kHz.
        cycles_khz: u32,
        /// Zero.
        reserved: u32,
    }
}

uapi_struct! {
    /// How a session finds gaps that are worth a ride, and measures whether they
    /// are. What is zero becomes the module's default, and creating the
    /// session writes back what holds.
    struct ub_session_config = SessionConfig {
        /// [`ABI_VERSION`].
        abi_version: u32,
        /// [`TIME_GAPS`] or zero.
        flags: u32,
        /// Passages of gaps for one that is sampled.
        sample_interval: u32,
        /// System calls a second below which a thread is left alone.
        min_rate: u32,
        /// Samples of a gap that make it hot.
        hot_count: u32,
        /// Samples of all gaps of an address space among which these must be.
        hot_window: u32,
        /// Longest native time of gaps that are tried first, in nanoseconds.
        gap_short_ns: u64,
        /// Longest native time of gaps that are tried at all, in nanoseconds.
        gap_max_ns: u64,
        /// Passages of a translated gap for one that goes native on purpose: at
        /// least 100, or [`NATIVE_NEVER`].
        native_interval: u32,
        /// Misses at an address before it is reported.
        miss_count: u32,
        /// Most fragments of the session.
        max_fragments: u32,
        /// Zero.
        reserved: u32,
        /// Most bytes of arena for the session.
        max_arena_bytes: u64,
    }
}

uapi_struct! {
    /// Request to read code bytes of a supervised address space.
    struct ub_read_code = ReadCode {
        /// Which address space.
        btc: u64,
        /// First user address.
        address: u64,
        /// Where to put the bytes, an address of the caller.
        buffer: u64,
        /// How many bytes at most.
        length: u32,
        /// How many bytes were read.
        copied: u32,
        /// State of the address space, for [`Install::sequence`].
        sequence: u64,
    }
}

uapi_struct! {
    /// Request to install a fragment.
    struct ub_install = Install {
        /// Into which address space.
        btc: u64,
        /// Smallest sequence seen while reading the sources.
        sequence: u64,
        /// User address the fragment stands for.
        entry: u64,
        /// Address of the code bytes.
        code: u64,
        /// Address of an array of [`Exit`].
        exits: u64,
        /// Address of an array of [`Fixup`], sorted by fault offset.
        fixups: u64,
        /// Address of an array of [`Range`].
        sources: u64,
        /// Address of an array of `u32`: offsets of the rel32 fields.
        relocations: u64,
        /// Bytes of code.
        code_length: u32,
        /// Elements of `exits`.
        exit_count: u32,
        /// Elements of `fixups`.
        fixup_count: u32,
        /// Elements of `sources`.
        source_count: u32,
        /// Elements of `relocations`.
        relocation_count: u32,
        /// Zero.
        flags: u32,
    }
}

uapi_struct! {
    /// Request to retire a fragment.
    struct ub_retire = Retire {
        /// Of which address space.
        btc: u64,
        /// User address it stands for.
        entry: u64,
    }
}

uapi_struct! {
    /// Request to enrol or detach a running process.
    struct ub_process = Process {
        /// Its process id, in the caller's pid namespace.
        pid: u32,
        /// Filled in: threads that the call enrolled or detached.
        threads: u32,
    }
}

uapi_struct! {
    /// What a session has counted.
    struct ub_stats = Stats {
        /// System calls of enrolled threads.
        syscalls: u64,
        /// Of these, reached without leaving ring 0.
        ridden: u64,
        /// Stays in ring 0 with at least one fragment.
        rides: u64,
        /// Fragments executed.
        fragments_run: u64,
        /// Ends of rides by [`Stop`].
        stops: [u64; STOP_COUNT],
        /// System calls behind which no ride began, by [`Stop`].
        refused: [u64; STOP_COUNT],
        /// Threads enrolled so far.
        threads: u64,
        /// Threads enrolled now.
        threads_now: u64,
        /// Address spaces seen so far.
        address_spaces: u64,
        /// Fragments installed now.
        fragments: u64,
        /// Fragments installed so far.
        fragments_installed: u64,
        /// Fragments retired so far.
        fragments_retired: u64,
        /// Of these, to make room for others.
        fragments_evicted: u64,
        /// Installs rejected because the code had changed.
        installs_stale: u64,
        /// Arena bytes in use now.
        arena_bytes: u64,
        /// Reports made.
        reports: u64,
        /// Reports lost because nobody read them in time.
        reports_dropped: u64,
        /// Passages of gaps that were sampled.
        sampled: u64,
        /// Gaps between two system calls by [`Gap`]; zero unless [`TIME_GAPS`].
        gaps: [u64; GAP_COUNT],
        /// Cycles in them, without those in which the thread did not run.
        gap_cycles: [u64; GAP_COUNT],
    }
}

uapi_struct! {
    /// What is known about the gaps that start at one address.
    ///
    /// Times are those of sampled passages, from the end of one system call to
    /// the start of the next: natively with both switches, or what the ride
    /// does in their place. A passage that began in a ride and ended natively
    /// counts as a ride's.
    struct ub_gap_info = GapInfo {
        /// Which address space.
        btc: u64,
        /// Resume address: where the gap begins.
        address: u64,
        /// Passages so far, estimated from the samples.
        passages: u64,
        /// Of these, those that began in a ride.
        ridden: u64,
        /// Native samples so far.
        native_sampled: u64,
        /// Samples of rides with the present fragment, or the last one.
        ride_sampled: u64,
        /// Of these, rides that ended before the next call.
        left_sampled: u64,
        /// Of the native samples, those that had a fragment.
        native_on_purpose: u64,
        /// Mean of the latest native samples in nanoseconds; 0: none.
        native_ns: u64,
        /// Mean of the latest samples of rides in nanoseconds; 0: none.
        ride_ns: u64,
        /// What a ride saves, by the last verdict, in picoseconds a passage.
        saved_ps: i64,
        /// The standard error of that.
        saved_error_ps: u64,
        /// Time until a retired gap may be tried again, in nanoseconds.
        held_ns: u64,
        /// [`GapState`] as a number.
        state: u32,
        /// [`GapReason`] as a number.
        reason: u32,
        /// Retirements by verdict so far.
        retirements: u32,
        /// Number of the system call that the last sample led to, or
        /// [`NO_CALL`].
        next_call: u32,
        /// The latest native samples in cycles, newest first, then zeros.
        native_cycles: [u32; GAP_SAMPLES],
        /// The latest samples of rides in cycles, newest first, then zeros.
        ride_cycles: [u32; GAP_SAMPLES],
    }
}

uapi_struct! {
    /// Request for what is known about gaps.
    struct ub_gaps_query = GapsQuery {
        /// Of which address space; 0 for all of the session.
        btc: u64,
        /// Address of an array of [`GapInfo`].
        buffer: u64,
        /// Elements of the array.
        capacity: u32,
        /// How many there are, which may be more than fit.
        count: u32,
    }
}

uapi_struct! {
    /// What the supervisor decided about a gap.
    struct ub_verdict = Verdict {
        /// Of which address space.
        btc: u64,
        /// Resume address of the gap.
        address: u64,
        /// If not 0: the fragment is retired, and the gap is not reported for so
        /// long.
        hold_ns: u64,
        /// [`GapInfo::saved_ps`] from now on.
        saved_ps: i64,
        /// [`GapInfo::saved_error_ps`] from now on.
        saved_error_ps: u64,
        /// [`GapReason`] as a number.
        reason: u32,
        /// Zero.
        reserved: u32,
    }
}

uapi_struct! {
    /// One thing the module wants the supervisor to know.
    struct ub_report = Report {
        /// [`ReportKind`] as a number.
        kind: u32,
        /// A thread that saw it, in the reader's pid namespace, or 0.
        pid: u32,
        /// Which address space.
        btc: u64,
        /// User address; its meaning depends on `kind`.
        address: u64,
        /// Second user address; its meaning depends on `kind`.
        from: u64,
        /// How often it was seen.
        count: u64,
        /// Mean native gap time in nanoseconds, for hot gaps.
        gap_ns: u64,
    }
}

/// Every structure of the interface.
pub const LAYOUTS: &[Layout] = &[
    FRAME_LAYOUT,
    Exit::LAYOUT,
    Fixup::LAYOUT,
    Range::LAYOUT,
    Info::LAYOUT,
    SessionConfig::LAYOUT,
    ReadCode::LAYOUT,
    Install::LAYOUT,
    Retire::LAYOUT,
    Process::LAYOUT,
    Stats::LAYOUT,
    GapInfo::LAYOUT,
    GapsQuery::LAYOUT,
    Verdict::LAYOUT,
    Report::LAYOUT,
];

macro_rules! uapi_enum {
    ($(#[$meta:meta])* enum $name:ident: $repr:ty {
        $($(#[$variant_meta:meta])* $c:ident = $variant:ident = $value:expr, $label:literal;)*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr($repr)]
        pub enum $name {
            $($(#[$variant_meta])* $variant = $value,)*
        }

        impl $name {
            /// Every value, in order.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
            /// Names and values in C, for comparison with the header.
            pub const CONSTANTS: &[(&str, u64)] = &[$((stringify!($c), $value as u64)),*];

            /// Name for statistics and logs, in snake case.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)*
                }
            }

            /// The value that the module calls `number`.
            #[must_use]
            pub fn from_number(number: u32) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| *value as u32 == number)
            }
        }
    };
}

uapi_enum! {
    /// Why a ride ended or did not begin; index into [`Stats::stops`] and
    /// [`Stats::refused`].
    enum Stop: u32 {
        /// The resume address is not translated (yet).
        UB_STOP_NO_FRAGMENT = NoFragment = 0, "no_fragment";
        /// Direct branch to untranslated code.
        UB_STOP_BRANCH_MISS = BranchMiss = 1, "branch_miss";
        /// Indirect branch to untranslated code.
        UB_STOP_INDIRECT_MISS = IndirectMiss = 2, "indirect_miss";
        /// An instruction that is not on the allow-list.
        UB_STOP_UNSUPPORTED = Unsupported = 3, "unsupported";
        /// A user memory access faulted.
        UB_STOP_FAULT = Fault = 4, "fault";
        /// A run-time guard refused an operand.
        UB_STOP_GUARD = Guard = 5, "guard";
        /// Signal, reschedule or softirq pending.
        UB_STOP_POLL = Poll = 6, "poll";
        /// The next system call is not run in a ride.
        UB_STOP_SYSCALL_REFUSED = SyscallRefused = 7, "syscall_refused";
        /// The system call must be restarted.
        UB_STOP_RESTART = Restart = 8, "restart";
        /// A refusal by the seccomp filter, strict seccomp, ptrace, audit or tracing.
        UB_STOP_SYSCALL_WORK = SyscallWork = 9, "syscall_work";
        /// Another run condition does not hold.
        UB_STOP_CONDITION = Condition = 10, "condition";
        /// Supervisor gone or module leaving.
        UB_STOP_SESSION_END = SessionEnd = 11, "session_end";
        /// Native on purpose, to compare.
        UB_STOP_MEASURED = Measured = 12, "measured";
        /// The gap took longer than [`SessionConfig::gap_max_ns`].
        UB_STOP_LONG = Long = 13, "long_gap";
    }
}

/// Length of [`Stats::stops`] (`UB_STOP_MAX`).
pub const STOP_COUNT: usize = 14;

uapi_enum! {
    /// How a program got from one system call to the next; index into
    /// [`Stats::gaps`] and [`Stats::gap_cycles`].
    enum Gap: u32 {
        /// In user mode, with the way there and back.
        UB_GAP_NATIVE = Native = 0, "native";
        /// In a ride.
        UB_GAP_RIDDEN = Ridden = 1, "ridden";
        /// In a ride, then in user mode.
        UB_GAP_LEFT = Left = 2, "left";
    }
}

/// Length of [`Stats::gaps`] (`UB_GAP_MAX`).
pub const GAP_COUNT: usize = 3;

/// [`SessionConfig::flags`]: count gaps and their cycles
/// (`UB_SESSION_TIME_GAPS`).
pub const TIME_GAPS: u32 = 1 << 0;

/// [`SessionConfig::native_interval`]: nothing is measured, nothing judged
/// (`UB_NATIVE_NEVER`).
pub const NATIVE_NEVER: u32 = u32::MAX;

/// Latest samples kept of each gap and kind (`UB_GAP_SAMPLES`).
pub const GAP_SAMPLES: usize = 32;

/// [`GapInfo::next_call`] of a gap that led to no call yet (`UB_NO_CALL`).
pub const NO_CALL: u32 = u32::MAX;

uapi_enum! {
    /// Where a gap stands; [`GapInfo::state`].
    enum GapState: u32 {
        /// Seen, and not worth a translation.
        UB_GAP_STATE_COLD = Cold = 0, "cold";
        /// Reported; no fragment (yet).
        UB_GAP_STATE_HOT = Hot = 1, "hot";
        /// There is a fragment at its resume address.
        UB_GAP_STATE_TRANSLATED = Translated = 2, "translated";
        /// Goes native for [`GapInfo::held_ns`] at least.
        UB_GAP_STATE_RETIRED = Retired = 3, "retired";
    }
}

uapi_enum! {
    /// Why a gap stands there; [`GapInfo::reason`] and [`Verdict::reason`].
    enum GapReason: u32 {
        /// Cold: not often enough, or of slow threads only.
        UB_GAP_REASON_RARE = Rare = 0, "rare";
        /// Cold: mostly longer than [`SessionConfig::gap_max_ns`].
        UB_GAP_REASON_LONG = Long = 1, "long";
        /// Hot: it is the supervisor's turn.
        UB_GAP_REASON_REPORTED = Reported = 2, "reported";
        /// Hot: long; tried when shorter ones have paid.
        UB_GAP_REASON_WAITS = Waits = 3, "waits";
        /// Hot: the supervisor could not translate it.
        UB_GAP_REASON_REFUSED = Refused = 4, "refused";
        /// Translated: too few samples to tell.
        UB_GAP_REASON_MEASURING = Measuring = 5, "measuring";
        /// Translated: saves time, with confidence.
        UB_GAP_REASON_PAYS = Pays = 6, "pays";
        /// Retired: costs time, with confidence.
        UB_GAP_REASON_SLOWER = Slower = 7, "slower";
        /// Retired: no saving could be shown.
        UB_GAP_REASON_NO_GAIN = NoGain = 8, "no_gain";
        /// Translated: the session does not measure.
        UB_GAP_REASON_UNMEASURED = Unmeasured = 9, "unmeasured";
    }
}

uapi_enum! {
    /// What a [`Report`] is about.
    enum ReportKind: u32 {
        /// `address`: resume address of a hot gap.
        UB_REPORT_HOT_GAP = HotGap = 1, "hot_gap";
        /// `address`: untranslated target; `from`: the branch, or 0.
        UB_REPORT_MISS = Miss = 2, "miss";
        /// The address space ended.
        UB_REPORT_BTC_GONE = BtcGone = 3, "btc_gone";
        /// Sources in `address..from` changed; their fragments are retired.
        UB_REPORT_RETIRED = Retired = 4, "retired";
        /// Fragments are often left by a run-time guard at `address`.
        UB_REPORT_GUARD = Guard = 5, "guard";
        /// The fragment at `address` made room for another.
        UB_REPORT_EVICTED = Evicted = 6, "evicted";
        /// Riders go on from the fragment at `from` to the one at `address`.
        UB_REPORT_LINKED = Linked = 7, "linked";
    }
}

uapi_enum! {
    /// A reason for which the module never rides on this CPU; one bit of
    /// [`Info::refusals`].
    enum Refusal: u32 {
        /// The kernel writes IBRS on entry.
        UB_REFUSE_LEGACY_IBRS = LegacyIbrs = 1 << 0, "legacy_ibrs";
        /// Branch history is hidden by BHI_DIS_S.
        UB_REFUSE_BRANCH_HISTORY = BranchHistory = 1 << 1, "branch_history";
        /// Return-depth tracking in use.
        UB_REFUSE_CALL_DEPTH = CallDepth = 1 << 2, "call_depth";
        /// Xen PV guest.
        UB_REFUSE_XEN_PV = XenPv = 1 << 3, "xen_pv";
        /// SMAP absent or disabled.
        UB_REFUSE_NO_SMAP = NoSmap = 1 << 4, "no_smap";
        /// Fragments cannot read the FS base.
        UB_REFUSE_NO_FSGSBASE = NoFsgsbase = 1 << 5, "no_fsgsbase";
        /// Stale divider results (Zen 1).
        UB_REFUSE_DIVIDER = Divider = 1 << 6, "divider";
    }
}

uapi_enum! {
    /// What the module does around a fragment; one bit of [`Info::actions`].
    enum Action: u32 {
        /// CPU buffers are cleared (VERW) before each fragment.
        UB_ACT_CLEAR_BUFFERS = ClearBuffers = 1 << 0, "clear_buffers";
        /// Branch history is cleared after each fragment.
        UB_ACT_CLEAR_BRANCHES = ClearBranches = 1 << 1, "clear_branches";
        /// Returns are untrained after each fragment.
        UB_ACT_UNTRAIN = Untrain = 1 << 2, "untrain";
        /// Branch predictions are flushed (IBPB) after each fragment.
        UB_ACT_IBPB = Ibpb = 1 << 3, "ibpb";
    }
}

impl Refusal {
    /// Splits [`Info::refusals`]; bits nobody knows come back as a number.
    #[must_use]
    pub fn split(bits: u32) -> (Vec<Self>, u32) {
        let known: Vec<_> = Self::ALL.iter().copied().filter(|r| bits & *r as u32 != 0).collect();
        let rest = known.iter().fold(bits, |rest, r| rest & !(*r as u32));
        (known, rest)
    }

    /// One line for people: what the obstacle is.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::LegacyIbrs => {
                "the kernel writes IBRS on every entry (spectre_v2=ibrs or retbleed mitigation)"
            }
            Self::BranchHistory => "the kernel hides branch history with BHI_DIS_S",
            Self::CallDepth => "the kernel tracks call depth (retbleed=stuff)",
            Self::XenPv => "Xen PV guest",
            Self::NoSmap => "the CPU lacks SMAP or the kernel turned it off",
            Self::NoFsgsbase => "the CPU lacks FSGSBASE or the kernel turned it off",
            Self::Divider => "the CPU leaks stale divider results (Zen 1)",
        }
    }
}

impl Action {
    /// Splits [`Info::actions`]; bits nobody knows come back as a number.
    #[must_use]
    pub fn split(bits: u32) -> (Vec<Self>, u32) {
        let known: Vec<_> = Self::ALL.iter().copied().filter(|a| bits & *a as u32 != 0).collect();
        let rest = known.iter().fold(bits, |rest, a| rest & !(*a as u32));
        (known, rest)
    }

    /// One line for people: what is done and when.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::ClearBuffers => "CPU buffers are cleared (VERW) before each fragment",
            Self::ClearBranches => "branch history is cleared after each fragment",
            Self::Untrain => "returns are untrained after each fragment",
            Self::Ibpb => "branch predictions are flushed (IBPB) after each fragment",
        }
    }
}

/// Remaining numbers of the interface, by their names in C.
const OTHER_CONSTANTS: &[(&str, u64)] = &[
    ("UB_ABI_VERSION", ABI_VERSION as u64),
    ("UB_SPILL_SLOTS", frame::SPILL_SLOTS as u64),
    ("UB_EXIT_SYSCALL", ExitKind::Syscall as u64),
    ("UB_EXIT_BRANCH", ExitKind::Branch as u64),
    ("UB_EXIT_INDIRECT", ExitKind::Indirect as u64),
    ("UB_EXIT_UNSUPPORTED", ExitKind::Unsupported as u64),
    ("UB_EXIT_FAULT", ExitKind::Fault as u64),
    ("UB_EXIT_GUARD", ExitKind::Guard as u64),
    ("UB_EXIT_POLL", ExitKind::Poll as u64),
    ("UB_EXIT_KIND_MAX", ExitKind::Poll as u64 + 1),
    ("UB_STOP_MAX", STOP_COUNT as u64),
    ("UB_GAP_MAX", GAP_COUNT as u64),
    ("UB_SESSION_TIME_GAPS", TIME_GAPS as u64),
    ("UB_NATIVE_NEVER", NATIVE_NEVER as u64),
    ("UB_GAP_SAMPLES", GAP_SAMPLES as u64),
    ("UB_NO_CALL", NO_CALL as u64),
    ("UB_GAP_STATE_MAX", GapState::ALL.len() as u64),
    ("UB_GAP_REASON_MAX", GapReason::ALL.len() as u64),
    ("UB_IOC_MAGIC", IOC_MAGIC as u64),
    ("UB_IOC_INFO", IOC_INFO),
    ("UB_IOC_SESSION_CREATE", IOC_SESSION_CREATE),
    ("UB_IOC_ENROLL", IOC_ENROLL),
    ("UB_IOC_READ_CODE", IOC_READ_CODE),
    ("UB_IOC_INSTALL", IOC_INSTALL),
    ("UB_IOC_RETIRE", IOC_RETIRE),
    ("UB_IOC_STATS", IOC_STATS),
    ("UB_IOC_GAPS", IOC_GAPS),
    ("UB_IOC_VERDICT", IOC_VERDICT),
    ("UB_IOC_ATTACH", IOC_ATTACH),
    ("UB_IOC_DETACH", IOC_DETACH),
];

/// Every number of the interface, by its name in C.
pub fn constants() -> impl Iterator<Item = (&'static str, u64)> {
    [
        OTHER_CONSTANTS,
        Stop::CONSTANTS,
        Gap::CONSTANTS,
        GapState::CONSTANTS,
        GapReason::CONSTANTS,
        ReportKind::CONSTANTS,
        Refusal::CONSTANTS,
        Action::CONSTANTS,
    ]
    .into_iter()
    .flatten()
    .copied()
}

const _: () = assert!(Stop::ALL.len() == STOP_COUNT && Gap::ALL.len() == GAP_COUNT);

/// `UB_IOC_INFO`: fills an [`Info`].
pub const IOC_INFO: u64 = nix::request_code_read!(IOC_MAGIC, 1, size_of::<Info>());
/// `UB_IOC_SESSION_CREATE`: takes and completes a [`SessionConfig`].
pub const IOC_SESSION_CREATE: u64 =
    nix::request_code_readwrite!(IOC_MAGIC, 2, size_of::<SessionConfig>());
/// `UB_IOC_ENROLL`: enrols the caller.
pub const IOC_ENROLL: u64 = nix::request_code_none!(IOC_MAGIC, 3);
/// `UB_IOC_READ_CODE`: takes and fills a [`ReadCode`].
pub const IOC_READ_CODE: u64 = nix::request_code_readwrite!(IOC_MAGIC, 4, size_of::<ReadCode>());
/// `UB_IOC_INSTALL`: takes an [`Install`].
pub const IOC_INSTALL: u64 = nix::request_code_write!(IOC_MAGIC, 5, size_of::<Install>());
/// `UB_IOC_RETIRE`: takes a [`Retire`].
pub const IOC_RETIRE: u64 = nix::request_code_write!(IOC_MAGIC, 6, size_of::<Retire>());
/// `UB_IOC_STATS`: fills a [`Stats`].
pub const IOC_STATS: u64 = nix::request_code_read!(IOC_MAGIC, 7, size_of::<Stats>());
/// `UB_IOC_GAPS`: takes and fills a [`GapsQuery`].
pub const IOC_GAPS: u64 = nix::request_code_readwrite!(IOC_MAGIC, 8, size_of::<GapsQuery>());
/// `UB_IOC_VERDICT`: takes a [`Verdict`].
pub const IOC_VERDICT: u64 = nix::request_code_write!(IOC_MAGIC, 9, size_of::<Verdict>());
/// `UB_IOC_ATTACH`: takes and fills a [`Process`].
pub const IOC_ATTACH: u64 = nix::request_code_readwrite!(IOC_MAGIC, 10, size_of::<Process>());
/// `UB_IOC_DETACH`: takes and fills a [`Process`].
pub const IOC_DETACH: u64 = nix::request_code_readwrite!(IOC_MAGIC, 11, size_of::<Process>());

/// The raw calls. [`crate::device`] makes them safe.
pub(crate) mod raw {
    use super::{
        GapsQuery, Info, Install, Process, ReadCode, Retire, SessionConfig, Stats, Verdict,
    };

    nix::ioctl_read_bad!(info, super::IOC_INFO, Info);
    nix::ioctl_readwrite_bad!(session_create, super::IOC_SESSION_CREATE, SessionConfig);
    nix::ioctl_none_bad!(enroll, super::IOC_ENROLL);
    nix::ioctl_readwrite_bad!(read_code, super::IOC_READ_CODE, ReadCode);
    nix::ioctl_write_ptr_bad!(install, super::IOC_INSTALL, Install);
    nix::ioctl_write_ptr_bad!(retire, super::IOC_RETIRE, Retire);
    nix::ioctl_read_bad!(stats, super::IOC_STATS, Stats);
    nix::ioctl_readwrite_bad!(gaps, super::IOC_GAPS, GapsQuery);
    nix::ioctl_write_ptr_bad!(verdict, super::IOC_VERDICT, Verdict);
    nix::ioctl_readwrite_bad!(attach, super::IOC_ATTACH, Process);
    nix::ioctl_readwrite_bad!(detach, super::IOC_DETACH, Process);
}

//! The structures of the interface, and how they are laid out.

use std::mem::{offset_of, size_of};

use ub_translator::frame;

use super::{GAP_COUNT, GAP_SAMPLES, STOP_COUNT};

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
        Field { name: "budget", offset: frame::BUDGET as usize, size: 4 },
        Field { name: "reserved", offset: frame::BUDGET as usize + 4, size: 4 },
    ],
};

uapi_struct! {
    /// One way out of a fragment.
    struct ub_exit = Exit {
        /// User address of the meaning that `kind` gives it.
        user_ip: u64,
        /// [`ub_translator::fragment::ExitKind`] as a number.
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
        /// The module's [`ABI_VERSION`](super::ABI_VERSION).
        abi_version: u32,
        /// [`Refusal`](super::Refusal) bits: why no ride happens on this CPU.
        refusals: u32,
        /// [`Action`](super::Action) bits: what is done around a fragment.
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
        /// [`ABI_VERSION`](super::ABI_VERSION).
        abi_version: u32,
        /// [`TIME_GAPS`](super::TIME_GAPS) or zero.
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
        /// least 100, or [`NATIVE_NEVER`](super::NATIVE_NEVER).
        native_interval: u32,
        /// Misses at an address before it is reported.
        miss_count: u32,
        /// Most fragments of the session.
        max_fragments: u32,
        /// Within which so many misses must be seen, in milliseconds.
        miss_window_ms: u32,
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
        /// [`ub_translator::fragment::Parts::work`]; 0 stands for the most there can be.
        work: u32,
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
        /// Ends of rides by [`Stop`](super::Stop).
        stops: [u64; STOP_COUNT],
        /// System calls behind which no ride began, by [`Stop`](super::Stop).
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
        /// Gaps between two system calls by [`Gap`](super::Gap); zero unless [`TIME_GAPS`](super::TIME_GAPS).
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
        /// [`GapState`](super::GapState) as a number.
        state: u32,
        /// [`GapReason`](super::GapReason) as a number.
        reason: u32,
        /// Retirements by verdict so far.
        retirements: u32,
        /// Number of the system call that more than half of the latest samples led to,
        /// if there is one, or of one that any led to; or [`NO_CALL`](super::NO_CALL).
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
        /// [`GapReason`](super::GapReason) as a number.
        reason: u32,
        /// Zero.
        reserved: u32,
    }
}

uapi_struct! {
    /// One thing the module wants the supervisor to know.
    struct ub_report = Report {
        /// [`ReportKind`](super::ReportKind) as a number.
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

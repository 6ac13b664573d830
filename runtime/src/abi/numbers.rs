//! The numbers of the interface that have a meaning each: reasons, states,
//! kinds.

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
    /// Why a ride ended or did not begin; index into [`Stats::stops`](super::Stats::stops) and
    /// [`Stats::refused`](super::Stats::refused).
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
        /// The gap took longer than [`SessionConfig::gap_max_ns`](super::SessionConfig::gap_max_ns).
        UB_STOP_LONG = Long = 13, "long_gap";
    }
}

/// Length of [`Stats::stops`](super::Stats::stops) (`UB_STOP_MAX`).
pub const STOP_COUNT: usize = 14;

uapi_enum! {
    /// How a program got from one system call to the next; index into
    /// [`Stats::gaps`](super::Stats::gaps) and [`Stats::gap_cycles`](super::Stats::gap_cycles).
    enum Gap: u32 {
        /// In user mode, with the way there and back.
        UB_GAP_NATIVE = Native = 0, "native";
        /// In a ride.
        UB_GAP_RIDDEN = Ridden = 1, "ridden";
        /// In a ride, then in user mode.
        UB_GAP_LEFT = Left = 2, "left";
    }
}

/// Length of [`Stats::gaps`](super::Stats::gaps) (`UB_GAP_MAX`).
pub const GAP_COUNT: usize = 3;

uapi_enum! {
    /// Where a gap stands; [`GapInfo::state`](super::GapInfo::state).
    enum GapState: u32 {
        /// Seen, and not worth a translation.
        UB_GAP_STATE_COLD = Cold = 0, "cold";
        /// Reported; no fragment (yet).
        UB_GAP_STATE_HOT = Hot = 1, "hot";
        /// There is a fragment at its resume address.
        UB_GAP_STATE_TRANSLATED = Translated = 2, "translated";
        /// Goes native for [`GapInfo::held_ns`](super::GapInfo::held_ns) at least.
        UB_GAP_STATE_RETIRED = Retired = 3, "retired";
    }
}

uapi_enum! {
    /// Why a gap stands there; [`GapInfo::reason`](super::GapInfo::reason) and [`Verdict::reason`](super::Verdict::reason).
    enum GapReason: u32 {
        /// Cold: not often enough, or of slow threads only.
        UB_GAP_REASON_RARE = Rare = 0, "rare";
        /// Cold: mostly longer than [`SessionConfig::gap_max_ns`](super::SessionConfig::gap_max_ns).
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
        /// Retired: on this machine rides save next to nothing.
        UB_GAP_REASON_MACHINE = Machine = 10, "machine";
    }
}

uapi_enum! {
    /// What a [`Report`](super::Report) is about.
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
    /// [`Info::refusals`](super::Info::refusals).
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
        /// Returns are untrained, or predictions flushed, on entry.
        UB_REFUSE_UNTRAINED_RETURNS = UntrainedReturns = 1 << 7, "untrained_returns";
    }
}

uapi_enum! {
    /// What the module does around a fragment; one bit of [`Info::actions`](super::Info::actions).
    enum Action: u32 {
        /// CPU buffers are cleared (VERW) before each fragment, in which interrupts wait.
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
    /// Splits [`Info::refusals`](super::Info::refusals); bits nobody knows come back as a number.
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
            Self::UntrainedReturns => {
                "the kernel untrains returns or flushes predictions on every entry (Zen 1 to 4)"
            }
        }
    }
}

impl Action {
    /// Splits [`Info::actions`](super::Info::actions); bits nobody knows come back as a number.
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
            Self::ClearBuffers => {
                "CPU buffers are cleared (VERW) before each fragment, and interrupts wait for its end"
            }
            Self::ClearBranches => "branch history is cleared after each fragment",
            Self::Untrain => "returns are untrained after each fragment",
            Self::Ibpb => "branch predictions are flushed (IBPB) after each fragment",
        }
    }
}

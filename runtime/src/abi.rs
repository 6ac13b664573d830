//! The interface to the kernel module, field by field as in
//! `kernel-patch/module/uapi/ub.h`.
//!
//! The macros in its parts write a type and its description from the same text, so a
//! field cannot exist without being compared with the header by
//! `tests/abi.rs`.

mod ioctls;
mod numbers;
mod structures;

use ub_translator::fragment::ExitKind;
use ub_translator::frame;

pub(crate) use ioctls::raw;
pub use ioctls::{
    IOC_ATTACH, IOC_DETACH, IOC_ENROLL, IOC_GAPS, IOC_INFO, IOC_INSTALL, IOC_READ_CODE, IOC_RETIRE,
    IOC_SESSION_CREATE, IOC_STATS, IOC_VERDICT,
};
pub use numbers::{
    Action, GAP_COUNT, Gap, GapReason, GapState, Refusal, ReportKind, STOP_COUNT, Stop,
};
pub use structures::{
    Exit, Field, Fixup, GapInfo, GapsQuery, Info, Install, LAYOUTS, Layout, Process, Range,
    ReadCode, Report, Retire, SessionConfig, Stats, Verdict,
};

/// Revision of the interface that this program speaks (`UB_ABI_VERSION`).
pub const ABI_VERSION: u32 = 7;
/// The device node (`UB_DEVICE_PATH`).
pub const DEVICE_PATH: &str = "/dev/ub";
/// First letter of every ioctl number (`UB_IOC_MAGIC`).
pub const IOC_MAGIC: u8 = 0xb5;
/// Most bytes that one `UB_IOC_READ_CODE` may ask for.
pub const READ_CODE_MAX: usize = 64 << 10;

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

/// Remaining numbers of the interface, by their names in C.
const OTHER_CONSTANTS: &[(&str, u64)] = &[
    ("UB_ABI_VERSION", ABI_VERSION as u64),
    ("UB_SPILL_SLOTS", frame::SPILL_SLOTS as u64),
    ("UB_MAX_WORK", frame::WORK_LIMIT as u64),
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

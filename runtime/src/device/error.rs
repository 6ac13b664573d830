//! Why the device is not what it is wanted for.

use nix::errno::Errno;

use crate::abi::{self, Refusal};

/// Why there is no session. Every message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The device node is absent or nothing is behind it.
    #[error(
        "kernel module not loaded ({} is absent); `ub doctor` says what to do",
        abi::DEVICE_PATH
    )]
    NoModule,
    /// The node exists, and this process may not use it: the module asks for
    /// CAP_SYS_MODULE, whatever the node's mode is.
    #[error(
        "no permission to use {}; as root, `ub attach PID` takes a running program in",
        abi::DEVICE_PATH
    )]
    NoPermission,
    /// Module and command come from different builds.
    #[error(
        "the kernel module speaks {}, this command ABI version {}; use both from one build",
        .module.map_or_else(|| "another ABI".to_owned(), |version| format!("ABI version {version}")),
        abi::ABI_VERSION
    )]
    AbiMismatch {
        /// What the module said, if it could be asked at all.
        module: Option<u32>,
    },
    /// The module works and declines to ride on this CPU.
    #[error("no rides on this CPU: {}; `ub doctor` has the details", describe(*.0))]
    Refused(
        /// [`abi::Info::refusals`].
        u32,
    ),
    /// The kernel names weaknesses of this CPU that were unknown when this program
    /// was made; see `without_policy` of the doctor.
    #[error("no rides on this CPU: no policy for {}; look for a newer version of ub", .0.join(", "))]
    NoPolicy(
        /// The names.
        Vec<String>,
    ),
    /// The module does not accept the session's thresholds.
    #[error(
        "the kernel module refuses these thresholds: a native interval is at least 100, a sample \
         interval at most 2^30; look at the options and at /sys/module/ub/parameters"
    )]
    Config,
    /// Anything else, with the operation that failed.
    #[error("{operation}: {}", .errno.desc())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What the kernel answered.
        errno: Errno,
    },
}

impl OpenError {
    pub(super) fn io(operation: &'static str, errno: Errno) -> Self {
        Self::Io { operation, errno }
    }
}

fn describe(refusals: u32) -> String {
    let (known, rest) = Refusal::split(refusals);
    let mut parts: Vec<_> = known.into_iter().map(|r| r.description().to_owned()).collect();
    if rest != 0 {
        parts.push(format!("unknown reason {rest:#x}"));
    }
    parts.join(", ")
}

/// Why a running process was not taken into a session, or out of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// There is no such process, or it ended meanwhile.
    #[error("no such process")]
    Absent,
    /// It is in no session.
    #[error("not in a session")]
    NoMember,
    /// Another session has it. There is one session for a program, or two
    /// supervisors would translate the same code and contradict each other.
    #[error("already in another session; take it out with `ub detach {pid}` or end that session", pid = .0)]
    OtherSession(
        /// The process.
        u32,
    ),
    /// A kernel thread, or the calling process.
    #[error("a kernel thread or ub itself; give the pid of a program")]
    NoProgram,
    /// The session has ended.
    #[error("the session has ended")]
    SessionEnded,
    /// Anything else.
    #[error("the kernel module answers: {}", .0.desc())]
    Io(
        /// What the kernel answered.
        Errno,
    ),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_spelled_out() {
        let text = OpenError::Refused(Refusal::NoSmap as u32 | 1 << 30).to_string();
        assert!(text.contains("SMAP") && text.contains("0x40000000"), "{text}");
    }
}

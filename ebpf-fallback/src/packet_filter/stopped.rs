//! Why a filter ended.

use super::layout::Event;

/// Why a filter ended. The kernel found it out before the call in question
/// was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// A register that the decision depends on changed.
    #[error("a register changed that packets were judged by")]
    Register,
    /// Memory that the decision depends on changed, code perhaps.
    #[error("memory changed that packets were judged by, at {0:#x}")]
    Memory(u64),
    /// The descriptor is another file now, or closed.
    #[error("the descriptor is another file now")]
    OtherSocket,
    /// Somebody else has the socket, after `fork`, `dup` or passing it on.
    #[error("the socket has another descriptor (fork, dup, passed on)")]
    SharedSocket,
    /// There are other threads, or processes with the same descriptors.
    #[error("the process has other threads")]
    Threads,
    /// There are other processes with the same memory, or somebody was looking
    /// at the process in `/proc`, which cannot be told from writing to it.
    #[error("somebody else uses the memory of the process (a process that shares it, or ps)")]
    MemoryInUse,
    /// Somebody put another filter in its place.
    #[error("the socket has another filter")]
    OtherFilter,
    /// The process made a call that may change anything.
    #[error("the process called {}", ub_report::calls::name(*.0))]
    Call(u32),
    /// The socket is watched by epoll.
    #[error("the socket is watched by epoll")]
    Polled,
    /// Somebody traces the process and would miss calls.
    #[error("the process is traced")]
    Traced,
    /// It saved too little.
    #[error("it dropped hardly any packets")]
    Useless,
    /// It was not wanted any more.
    #[error("the supervision is over")]
    Finished,
    /// The kernel gave a reason that this program does not know.
    #[error("bug: unknown reason {0}")]
    Unknown(u32),
}

impl Stopped {
    pub(super) fn of(event: &Event) -> Self {
        match event.reason {
            1 => Self::Register,
            2 => Self::Memory(event.detail),
            3 => Self::OtherSocket,
            4 => Self::SharedSocket,
            5 => Self::Threads,
            6 => Self::OtherFilter,
            7 => Self::Call(event.detail as u32),
            8 => Self::Polled,
            9 => Self::Traced,
            10 => Self::MemoryInUse,
            other => Self::Unknown(other),
        }
    }

    /// Whether the filter on the descriptor still is the one of this project.
    pub(super) fn is_ours(self) -> bool {
        !matches!(self, Self::OtherFilter | Self::OtherSocket)
    }
}

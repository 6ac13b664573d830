//! What the supervisor needs from the kernel, as a trait, so that it can be
//! tested against a kernel made of a few maps.

use std::io;

use nix::errno::Errno;
use ub_report::symbols::Mappings;
use ub_translator::fragment::{Fragment, Verified};

use crate::abi;

/// An address space of a session, as the module numbers it. Numbers are not
/// reused within a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Btc(pub u64);

/// State of an address space when code was read from it. An install that
/// names an older state than the last change of its sources is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence(pub u64);

/// Result of [`Kernel::read_code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeRead {
    /// How many bytes at the start of the buffer are valid; 0 where nothing
    /// executable and unwritable is mapped.
    pub copied: usize,
    /// To be handed to [`Kernel::install`].
    pub sequence: Sequence,
}

/// Result of [`Kernel::read_reports`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// At least one report was appended.
    Some,
    /// Nothing to read at the moment.
    Empty,
    /// Every enrolled thread has ended.
    Ended,
}

/// Why a fragment was not installed. Each needs another reaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// The code changed after it was read: read it again.
    #[error("the code changed while it was translated")]
    Stale,
    /// A limit of the session or the arena is reached: try less often.
    #[error("no room for another fragment")]
    Full,
    /// A fragment for this entry is already there.
    #[error("already installed")]
    Exists,
    /// The address space or the session ended.
    #[error("the address space is gone")]
    Gone,
    /// The module does not accept this fragment; trying again is useless. A
    /// verified fragment within the module's limits should never see this.
    #[error("the kernel module refused the fragment: {}", .0.desc())]
    Refused(Errno),
}

impl From<Errno> for InstallError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ESTALE | Errno::EAGAIN => Self::Stale,
            Errno::ENOSPC | Errno::ENOMEM => Self::Full,
            Errno::EEXIST => Self::Exists,
            Errno::ESRCH | Errno::ENOENT | Errno::ESHUTDOWN | Errno::ENOTCONN => Self::Gone,
            other => Self::Refused(other),
        }
    }
}

/// The operations of a session. [`crate::device::Session`] is the real one.
pub trait Kernel {
    /// Copies code bytes of `btc` from `address` on into `buffer`, which is at
    /// most [`abi::READ_CODE_MAX`] long.
    ///
    /// # Errors
    /// `ESRCH` or `ENOENT` when the address space is gone, `EAGAIN` while its
    /// mappings are being changed; anything else means that no code which may
    /// be translated is mapped there.
    fn read_code(&self, btc: Btc, address: u64, buffer: &mut [u8]) -> io::Result<CodeRead>;

    /// Installs `fragment`, made from code read at `sequence` or later.
    ///
    /// # Errors
    /// See [`InstallError`].
    fn install(
        &self,
        btc: Btc,
        sequence: Sequence,
        fragment: &Fragment<Verified>,
    ) -> Result<(), InstallError>;

    /// Removes the fragment that stands for `entry`.
    ///
    /// # Errors
    /// `ENOENT` when there is none.
    fn retire(&self, btc: Btc, entry: u64) -> io::Result<()>;

    /// The session's counters.
    ///
    /// # Errors
    /// Only when the session is unusable.
    fn stats(&self) -> io::Result<abi::Stats>;

    /// What is known about the gaps of all address spaces of the session.
    ///
    /// # Errors
    /// Only when the session is unusable.
    fn gaps(&self) -> io::Result<Vec<abi::GapInfo>>;

    /// Tells the module what was decided about a gap.
    ///
    /// # Errors
    /// `ESRCH` when the address space is gone, `ENOSPC` when the module keeps
    /// no record of the gap and has no room for one.
    fn judge(&self, verdict: &abi::Verdict) -> io::Result<()>;

    /// Appends the pending reports to `reports` without blocking.
    ///
    /// # Errors
    /// Only when the session is unusable.
    fn read_reports(&self, reports: &mut Vec<abi::Report>) -> io::Result<Reading>;

    /// The 64-bit word at `address` of process `pid`, if it can be read. It
    /// only guides predictions: a wrong value costs time and nothing else.
    fn read_pointer(&self, pid: u32, address: u64) -> Option<u64>;

    /// What process `pid` has mapped as code. Like the above it only guides
    /// predictions.
    ///
    /// # Errors
    /// When the process has ended.
    fn mappings(&self, pid: u32) -> io::Result<Mappings>;
}

impl<K: Kernel + ?Sized> Kernel for &K {
    fn read_code(&self, btc: Btc, address: u64, buffer: &mut [u8]) -> io::Result<CodeRead> {
        (**self).read_code(btc, address, buffer)
    }

    fn install(
        &self,
        btc: Btc,
        sequence: Sequence,
        fragment: &Fragment<Verified>,
    ) -> Result<(), InstallError> {
        (**self).install(btc, sequence, fragment)
    }

    fn retire(&self, btc: Btc, entry: u64) -> io::Result<()> {
        (**self).retire(btc, entry)
    }

    fn stats(&self) -> io::Result<abi::Stats> {
        (**self).stats()
    }

    fn gaps(&self) -> io::Result<Vec<abi::GapInfo>> {
        (**self).gaps()
    }

    fn judge(&self, verdict: &abi::Verdict) -> io::Result<()> {
        (**self).judge(verdict)
    }

    fn read_reports(&self, reports: &mut Vec<abi::Report>) -> io::Result<Reading> {
        (**self).read_reports(reports)
    }

    fn read_pointer(&self, pid: u32, address: u64) -> Option<u64> {
        (**self).read_pointer(pid, address)
    }

    fn mappings(&self, pid: u32) -> io::Result<Mappings> {
        (**self).mappings(pid)
    }
}

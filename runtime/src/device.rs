//! `/dev/ub`, made safe.
//!
//! Only verified fragments can be installed; an unverified one does not
//! compile:
//!
//! ```compile_fail,E0308
//! use ub_runtime::device::Session;
//! use ub_runtime::kernel::{Btc, Kernel, Sequence};
//! use ub_translator::fragment::{Fragment, Translated};
//!
//! fn install(session: &Session, fragment: &Fragment<Translated>) {
//!     session.install(Btc(1), Sequence(1), fragment).unwrap();
//! }
//! ```
//!
//! The same with a verified fragment does:
//!
//! ```no_run
//! use ub_runtime::device::Session;
//! use ub_runtime::kernel::{Btc, Kernel, Sequence};
//! use ub_translator::fragment::{Fragment, Verified};
//!
//! fn install(session: &Session, fragment: &Fragment<Verified>) {
//!     session.install(Btc(1), Sequence(1), fragment).unwrap();
//! }
//! ```

mod error;

use std::fs::OpenOptions;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use libc::STDERR_FILENO;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use ub_report::symbols::Mappings;
use ub_translator::fragment::{Fragment, Verified};

use crate::abi::{self, raw};
use crate::kernel::{Btc, CodeRead, InstallError, Kernel, Reading, Sequence};
pub use error::{OpenError, ProcessError};

/// The open device, not yet a session.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
    info: abi::Info,
}

impl Device {
    /// Opens `/dev/ub` and checks that the module speaks our ABI.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open() -> Result<Self, OpenError> {
        Self::open_at(Path::new(abi::DEVICE_PATH))
    }

    fn open_at(path: &Path) -> Result<Self, OpenError> {
        // std opens with O_CLOEXEC: the program never sees this descriptor.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|error| match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => OpenError::NoModule,
                Errno::EACCES | Errno::EPERM => OpenError::NoPermission,
                errno => OpenError::io("opening /dev/ub", errno),
            })?;
        let fd = above(STDERR_FILENO, file.into())
            .map_err(|errno| OpenError::io("duplicating /dev/ub", errno))?;
        let mut info = abi::Info::default();
        // SAFETY: `info` is a valid, writable `struct ub_info`, the type that
        // UB_IOC_INFO fills; a device that is not ours answers ENOTTY.
        match unsafe { raw::info(fd.as_raw_fd(), &raw mut info) } {
            Ok(_) if info.abi_version == abi::ABI_VERSION => Ok(Self { fd, info }),
            Ok(_) => Err(OpenError::AbiMismatch { module: Some(info.abi_version) }),
            // The structure's size is part of the number, so another layout
            // is another, unknown ioctl.
            Err(Errno::ENOTTY | Errno::EINVAL) => Err(OpenError::AbiMismatch { module: None }),
            Err(Errno::EPERM | Errno::EACCES) => Err(OpenError::NoPermission),
            Err(errno) => Err(OpenError::io("asking the kernel module", errno)),
        }
    }

    /// What the module said about itself when it was opened.
    #[must_use]
    pub fn info(&self) -> &abi::Info {
        &self.info
    }

    /// Takes all threads of a process out of whatever session they are in,
    /// each from its next system call or poll on. Returns how many.
    ///
    /// # Errors
    /// See [`ProcessError`].
    pub fn detach(&self, pid: u32) -> Result<u32, ProcessError> {
        let mut process = abi::Process { pid, threads: 0 };
        // SAFETY: `process` is a valid, writable `struct ub_process`.
        match unsafe { raw::detach(self.fd.as_raw_fd(), &raw mut process) } {
            Ok(_) => Ok(process.threads),
            Err(Errno::ESRCH) if Path::new(&format!("/proc/{pid}")).exists() => {
                Err(ProcessError::NoMember)
            }
            Err(Errno::ESRCH) => Err(ProcessError::Absent),
            Err(Errno::EINVAL) => Err(ProcessError::NoProgram),
            Err(errno) => Err(ProcessError::Io(errno)),
        }
    }

    /// Turns the device into a session that nobody has joined yet. `config` is
    /// completed with the module's defaults.
    ///
    /// # Errors
    /// [`OpenError::Refused`] when no ride can happen on this CPU, or what the
    /// module answers.
    pub fn create_session(self, config: &mut abi::SessionConfig) -> Result<Session, OpenError> {
        if self.info.refusals != 0 {
            return Err(OpenError::Refused(self.info.refusals));
        }
        // SAFETY: `config` is a valid, writable `struct ub_session_config`, the
        // type that UB_IOC_SESSION_CREATE reads and fills.
        match unsafe { raw::session_create(self.fd.as_raw_fd(), &raw mut *config) } {
            Ok(_) => Ok(Session { fd: self.fd }),
            Err(Errno::EPERM | Errno::EACCES) => Err(OpenError::NoPermission),
            Err(Errno::EPROTO) => Err(OpenError::AbiMismatch { module: None }),
            Err(Errno::EINVAL) => Err(OpenError::Config),
            Err(errno) => Err(OpenError::io("creating a session", errno)),
        }
    }
}

/// Moves `fd` above `last`, the last standard stream: when the program was
/// started with one of them closed, ours must not take its place and receive
/// its output.
fn above(last: RawFd, fd: OwnedFd) -> nix::Result<OwnedFd> {
    if fd.as_raw_fd() > last {
        return Ok(fd);
    }
    let raw = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(last + 1))?;
    // SAFETY: F_DUPFD_CLOEXEC returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// A session: closing its last descriptor lets its members go on natively.
#[derive(Debug)]
pub struct Session {
    fd: OwnedFd,
}

impl Session {
    /// Another handle of the same session.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()? })
    }

    /// Enrols the calling thread, which must be the only one of its process,
    /// with all that it will fork and execute.
    ///
    /// # Errors
    /// What the module answers; nothing is enrolled then.
    pub fn enroll(&self) -> Result<(), OpenError> {
        // SAFETY: UB_IOC_ENROLL has no argument and touches no user memory.
        match unsafe { raw::enroll(self.fd.as_raw_fd()) } {
            Ok(_) => Ok(()),
            Err(errno) => Err(OpenError::io("enrolling", errno)),
        }
    }

    /// Enrols all threads of a running process, each from its next system call
    /// on, with all that it will fork and execute. Returns how many were not
    /// members before; on error none was enrolled.
    ///
    /// # Errors
    /// See [`ProcessError`].
    pub fn attach(&self, pid: u32) -> Result<u32, ProcessError> {
        let mut process = abi::Process { pid, threads: 0 };
        // SAFETY: `process` is a valid, writable `struct ub_process`.
        match unsafe { raw::attach(self.fd.as_raw_fd(), &raw mut process) } {
            Ok(_) => Ok(process.threads),
            Err(Errno::ESRCH) => Err(ProcessError::Absent),
            Err(Errno::EBUSY) => Err(ProcessError::OtherSession(pid)),
            Err(Errno::EINVAL) => Err(ProcessError::NoProgram),
            Err(Errno::ESHUTDOWN) => Err(ProcessError::SessionEnded),
            Err(errno) => Err(ProcessError::Io(errno)),
        }
    }
}

/// Wraps any descriptor; on one that is not a session every operation fails,
/// which is how the parts around it are tested.
impl From<OwnedFd> for Session {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Kernel for Session {
    fn read_code(&self, btc: Btc, address: u64, buffer: &mut [u8]) -> io::Result<CodeRead> {
        let length = u32::try_from(buffer.len().min(abi::READ_CODE_MAX)).expect("at most 64 KiB");
        let mut request = abi::ReadCode {
            btc: btc.0,
            address,
            buffer: buffer.as_mut_ptr() as u64,
            length,
            ..Default::default()
        };
        // SAFETY: `request` is a valid `struct ub_read_code`; the module writes
        // at most `length` bytes to `buffer`, which is exclusively ours and at
        // least that long.
        unsafe { raw::read_code(self.fd.as_raw_fd(), &raw mut request) }?;
        let copied = buffer.len().min(request.copied as usize);
        Ok(CodeRead { copied, sequence: Sequence(request.sequence) })
    }

    fn install(
        &self,
        btc: Btc,
        sequence: Sequence,
        fragment: &Fragment<Verified>,
    ) -> Result<(), InstallError> {
        let parts = fragment.parts();
        let exits: Vec<_> = parts
            .exits
            .iter()
            .map(|exit| abi::Exit {
                user_ip: exit.user_ip,
                kind: exit.kind as u16,
                reason: exit.reason as u16,
                reserved: 0,
            })
            .collect();
        let fixups: Vec<_> = parts
            .fixups
            .iter()
            .map(|f| abi::Fixup { fault_offset: f.fault, landing_offset: f.landing })
            .collect();
        let sources: Vec<_> =
            parts.sources.iter().map(|r| abi::Range { start: r.start, end: r.end }).collect();
        let length = |length: usize| u32::try_from(length).map_err(|_| InstallError::Full);
        let request = abi::Install {
            btc: btc.0,
            sequence: sequence.0,
            entry: parts.entry,
            code: parts.code.as_ptr() as u64,
            exits: exits.as_ptr() as u64,
            fixups: fixups.as_ptr() as u64,
            sources: sources.as_ptr() as u64,
            relocations: parts.relocations.as_ptr() as u64,
            code_length: length(parts.code.len())?,
            exit_count: length(exits.len())?,
            fixup_count: length(fixups.len())?,
            source_count: length(sources.len())?,
            relocation_count: length(parts.relocations.len())?,
            work: parts.work,
        };
        // SAFETY: `request` is a valid `struct ub_install` whose pointers and
        // counts describe arrays that live until the end of this function; the
        // module only reads them. That the code is harmless in ring 0 is what
        // the type `Fragment<Verified>` says.
        unsafe { raw::install(self.fd.as_raw_fd(), &raw const request) }?;
        Ok(())
    }

    fn retire(&self, btc: Btc, entry: u64) -> io::Result<()> {
        let request = abi::Retire { btc: btc.0, entry };
        // SAFETY: `request` is a valid `struct ub_retire`, only read.
        unsafe { raw::retire(self.fd.as_raw_fd(), &raw const request) }?;
        Ok(())
    }

    fn stats(&self) -> io::Result<abi::Stats> {
        let mut stats = abi::Stats::default();
        // SAFETY: `stats` is a valid, writable `struct ub_stats`, the type that
        // UB_IOC_STATS fills.
        unsafe { raw::stats(self.fd.as_raw_fd(), &raw mut stats) }?;
        Ok(stats)
    }

    fn gaps(&self) -> io::Result<Vec<abi::GapInfo>> {
        // Enough for most; a session of many processes is asked again.
        let mut gaps = vec![abi::GapInfo::default(); 256];
        loop {
            let capacity = u32::try_from(gaps.len()).unwrap_or(u32::MAX);
            let mut query =
                abi::GapsQuery { btc: 0, buffer: gaps.as_mut_ptr() as u64, capacity, count: 0 };
            // SAFETY: `query` is a valid `struct ub_gaps_query`; the module writes
            // at most `capacity` records to `gaps`, which has that many and is
            // exclusively ours. Every bit pattern is a `GapInfo`.
            unsafe { raw::gaps(self.fd.as_raw_fd(), &raw mut query) }?;
            if query.count <= capacity {
                gaps.truncate(query.count as usize);
                return Ok(gaps);
            }
            gaps.resize(query.count as usize + 64, abi::GapInfo::default());
        }
    }

    fn judge(&self, verdict: &abi::Verdict) -> io::Result<()> {
        // SAFETY: `verdict` is a valid `struct ub_verdict`, only read.
        unsafe { raw::verdict(self.fd.as_raw_fd(), &raw const *verdict) }?;
        Ok(())
    }

    fn read_reports(&self, reports: &mut Vec<abi::Report>) -> io::Result<Reading> {
        // Few: each may be a translation, and clients wait for the batch to end.
        const BATCH: usize = 8;
        let mut batch = [abi::Report::default(); BATCH];
        let bytes = size_of_val(&batch);
        let read = loop {
            // SAFETY: `batch` is writable for `bytes` bytes, and `ub_report` has
            // neither padding nor invalid bit patterns.
            let read = unsafe { libc::read(self.fd.as_raw_fd(), batch.as_mut_ptr().cast(), bytes) };
            match Errno::result(read) {
                Ok(read) => break read as usize,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(Reading::Empty),
                Err(errno) => return Err(errno.into()),
            }
        };
        if read == 0 {
            return Ok(Reading::Ended);
        }
        reports.extend_from_slice(&batch[..read / size_of::<abi::Report>()]);
        Ok(Reading::Some)
    }

    fn read_pointer(&self, pid: u32, address: u64) -> Option<u64> {
        let pid = Pid::from_raw(i32::try_from(pid).ok().filter(|pid| *pid > 0)?);
        let mut word = [0; 8];
        let remote = RemoteIoVec { base: usize::try_from(address).ok()?, len: word.len() };
        let read = process_vm_readv(pid, &mut [IoSliceMut::new(&mut word)], &[remote]).ok()?;
        (read == word.len()).then(|| u64::from_le_bytes(word))
    }

    fn mappings(&self, pid: u32) -> io::Result<Mappings> {
        Mappings::of(pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_node_means_no_module() {
        let error = Device::open_at(Path::new("/dev/ub-that-does-not-exist")).unwrap_err();
        assert!(matches!(error, OpenError::NoModule), "{error:?}");
    }

    #[test]
    fn a_node_that_is_not_ours_is_an_abi_mismatch() {
        let error = Device::open_at(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, OpenError::AbiMismatch { module: None }), "{error:?}");
        assert!(error.to_string().contains("another ABI"), "{error}");
    }

    #[test]
    fn a_descriptor_in_the_place_of_a_standard_stream_is_moved_up() {
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let fd = open();
        let raw = fd.as_raw_fd();
        assert_eq!(above(raw - 1, fd).unwrap().as_raw_fd(), raw, "it is above already");
        let fd = open();
        let raw = fd.as_raw_fd();
        let moved = above(raw, fd).unwrap();
        assert!(moved.as_raw_fd() > raw);
        let flags = fcntl(&moved, FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags, libc::FD_CLOEXEC, "the program would inherit it");
    }

    #[test]
    fn own_memory_reads_as_pointer() {
        let session = Session { fd: std::fs::File::open("/dev/null").unwrap().into() };
        let word = 0x1122_3344_5566_7788u64;
        let pointer = session.read_pointer(std::process::id(), &raw const word as u64);
        assert_eq!(pointer, Some(word));
        assert_eq!(session.read_pointer(std::process::id(), 0), None);
        assert_eq!(session.read_pointer(0, &raw const word as u64), None);
    }

    #[test]
    fn end_of_file_ends_the_session() {
        let session = Session { fd: std::fs::File::open("/dev/null").unwrap().into() };
        let mut reports = Vec::new();
        assert_eq!(session.read_reports(&mut reports).unwrap(), Reading::Ended);
        assert!(reports.is_empty());
    }
}

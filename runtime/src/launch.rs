//! Starting a supervisor beside the program.
//!
//! The launcher becomes the program, so the supervisor must not show: not as
//! a child (`wait` would find it), not by a SIGCHLD, not in the program's
//! process group or session, and not by holding the program's descriptors
//! open. The launcher has one thread, which makes forking safe.

use std::ffi::c_long;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::signal::{sigaction, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setsid};
use tracing::{Level, error};
use ub_ebpf_fallback::packet_filter::Watcher;

use crate::device::{OpenError, Session};
use crate::logging;
use crate::packet_filter::{self, FilterRecord};
use crate::session::{Supervision, Wake};

/// What the supervisor says once it can take reports.
const READY: u8 = b'r';
/// What the launcher says once it is enrolled.
const ENROLLED: u8 = b'e';

/// The launcher's line to a supervisor that waits for members.
///
/// Dropping it without [`Link::enroll`] ends the supervisor.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    session: Session,
}

/// The same to a supervisor that filters packets.
///
/// Dropping it without [`FilterLink::begin`] ends the supervisor.
#[derive(Debug)]
pub struct FilterLink(UnixStream);

impl FilterLink {
    /// Tells the supervisor that this process becomes the program now.
    pub fn begin(mut self) {
        // Without supervisor the program runs natively.
        let _ = self.0.write_all(&[ENROLLED]);
    }
}

impl Link {
    /// Enrols this process and tells the supervisor so.
    ///
    /// # Errors
    /// See [`Session::enroll`]; the supervisor ends then.
    pub fn enroll(mut self) -> Result<(), OpenError> {
        self.session.enroll()?;
        // A supervisor that died meanwhile does not matter: the kernel ends the
        // session with it and the program runs natively.
        let _ = self.stream.write_all(&[ENROLLED]);
        Ok(())
    }
}

/// Where and how much the supervisor logs.
#[derive(Debug)]
pub struct Log {
    /// Nowhere if absent.
    pub file: Option<File>,
    /// How much.
    pub level: Level,
}

/// Starts a process that runs `supervision`, and waits until it is ready.
///
/// # Errors
/// When it cannot be started or died at once; nothing is left behind then.
pub fn supervisor(mut supervision: Supervision, log: Log) -> io::Result<Link> {
    let session = supervision.session().try_clone()?;
    let keep = [supervision.session().as_fd().as_raw_fd()];
    let stream = start(&keep, log, move || supervise(&mut supervision))?;
    Ok(Link { stream, session })
}

/// Starts a process that filters the packets of this one and tells about that
/// in `record`, and waits until it is ready.
///
/// # Errors
/// See [`supervisor`].
pub fn packet_filter(log: Log, record: FilterRecord) -> io::Result<FilterLink> {
    let watcher = Watcher::new(std::process::id())?;
    let keep = [watcher.process().as_raw_fd()];
    start(&keep, log, move || packet_filter::supervise(watcher, record)).map(FilterLink)
}

/// Starts a process that does `work` once this one says so, with no other
/// descriptors than `keep` and the log, and waits until it is ready.
fn start(keep: &[RawFd], log: Log, work: impl FnOnce() -> i32) -> io::Result<UnixStream> {
    let (mut ours, theirs) = UnixStream::pair()?;
    // A launcher that adopts orphans would find the supervisor among its
    // children; the attribute survives exec, so it is put back.
    let adopts = prctl::get_child_subreaper().unwrap_or(false);
    if adopts {
        prctl::set_child_subreaper(false)?;
    }
    let started = fork_silently(|| {
        // The stale thread id that a raw clone leaves in libc is repaired by
        // this second, ordinary fork.
        let _ = setsid();
        // SAFETY: this process has one thread, so the child may do anything.
        match unsafe { fork() } {
            // A panic must not unwind into the launcher's frames, which this
            // process has a copy of.
            Ok(ForkResult::Child) => {
                catch_unwind(AssertUnwindSafe(|| run_supervisor(keep, log, theirs, work)))
                    .unwrap_or(1)
            }
            Ok(ForkResult::Parent { .. }) => 0,
            Err(errno) => errno as i32,
        }
    });
    if adopts {
        prctl::set_child_subreaper(true)?;
    }
    started?;
    let mut byte = [0];
    match ours.read(&mut byte) {
        Ok(1) if byte[0] == READY => Ok(ours),
        Ok(_) => Err(io::Error::other("the supervisor ended at once")),
        Err(error) => Err(error),
    }
}

/// Runs `child` in a new process whose end raises no signal, and waits for it.
/// An ordinary fork would leave a pending SIGCHLD to a program that is started
/// with that signal blocked. The child answers 0, or the error number of what it
/// could not do: its exit status is all that comes back from it.
fn fork_silently(child: impl FnOnce() -> i32) -> io::Result<()> {
    const NO_SIGNAL: c_long = 0;
    const NO_POINTER: c_long = 0;
    // SAFETY: without flags, clone is fork but for the signal; the process has
    // one thread, or `child` takes no lock that another one may hold, and the child
    // only forks again and exits.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone, NO_SIGNAL, NO_POINTER, NO_POINTER, NO_POINTER, NO_POINTER)
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let status = child();
            // SAFETY: _exit has no preconditions.
            unsafe { libc::_exit(status) }
        }
        pid => {
            let pid = Pid::from_raw(pid as i32);
            // Only with __WALL does wait see a child that raises no signal. With
            // SIGCHLD ignored there is nothing to wait for and ECHILD is right.
            loop {
                match waitpid(pid, Some(WaitPidFlag::__WALL)) {
                    Err(Errno::EINTR) => {}
                    Ok(WaitStatus::Exited(_, errno)) if errno != 0 => {
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                    _ => return Ok(()),
                }
            }
        }
    }
}

/// The life of the supervisor process; returns its exit status.
fn run_supervisor(
    keep: &[RawFd],
    log: Log,
    mut link: UnixStream,
    work: impl FnOnce() -> i32,
) -> i32 {
    let mut keep = keep.to_vec();
    keep.push(link.as_raw_fd());
    keep.extend(log.file.as_ref().map(AsRawFd::as_raw_fd));
    detach(&keep);
    logging::init(log.file, log.level);
    if link.write_all(&[READY]).is_err() {
        return 1;
    }
    let mut byte = [0];
    if !matches!(link.read(&mut byte), Ok(1)) {
        // The launcher did not enroll.
        return 0;
    }
    drop(link);
    work()
}

/// Supervises a session to its end; returns the exit status.
fn supervise(supervision: &mut Supervision) -> i32 {
    supervision.listen();
    supervision.warm_up();
    let status = match supervision.until(None) {
        // What cannot gain is let go, rather than counted at the program's cost.
        Ok(Wake::Ended | Wake::Caller | Wake::Native) => 0,
        Err(error) => {
            error!(%error, "session lost; its members go on natively");
            1
        }
    };
    supervision.finish();
    status
}

/// Lets go of everything inherited from the program-to-be: descriptors but
/// for `keep`, standard streams, working directory, signal settings.
fn detach(keep: &[RawFd]) {
    close_all_but(keep);
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        for stream in 0..=2 {
            if null.as_raw_fd() != stream {
                // SAFETY: dup2 onto a standard descriptor, which nothing in this
                // process owns.
                unsafe { libc::dup2(null.as_raw_fd(), stream) };
            }
        }
        if null.as_raw_fd() <= 2 {
            // It took the place of a closed stream and must stay there.
            std::mem::forget(null);
        }
    }
    // Or it would keep a file system busy.
    let _ = std::env::set_current_dir(Path::new("/"));
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        let action = if signal == Signal::SIGPIPE { &ignore } else { &default };
        // SAFETY: neither disposition runs code. KILL and STOP answer EINVAL.
        let _ = unsafe { sigaction(signal, action) };
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Closes every descriptor but those in `keep`.
fn close_all_but(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut first = 0;
    for end in keep.into_iter().map(Some).chain([None]) {
        let last = match end {
            Some(kept) if kept == first => {
                first = kept + 1;
                continue;
            }
            Some(kept) => kept - 1,
            None => u32::MAX,
        };
        // SAFETY: no object in this process owns the descriptors closed here: all
        // that are owned are in `keep` or were inherited by number only. On
        // kernels without close_range they stay open, which does no harm that
        // the program could not live with.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        first = last.wrapping_add(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_process_in_between_could_not_do_is_told() {
        // Nothing but a constant: this process has other threads.
        let error = fork_silently(|| Errno::EAGAIN as i32).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::EAGAIN as i32));
        fork_silently(|| 0).unwrap();
    }
}

//! The program as a child: start, signals, end.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, kill, raise, sigaction, sigprocmask,
};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::become_program;
use crate::exec::EXIT_UB;

/// Signals that the program should get in our place.
const PASSED_ON: [Signal; 6] = [
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// A running child.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    signals: SignalFd,
}

/// What happened to the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Running,
    Ended(Status),
}

/// How the child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Exited(u8),
    Killed(Signal),
}

impl Child {
    /// Starts `command`. The child runs `prepare` first, and ends with the
    /// status that it returns instead of a program.
    ///
    /// # Errors
    /// When no process can be made.
    pub(super) fn start(
        command: &[OsString],
        prepare: impl FnOnce() -> Result<(), u8>,
    ) -> nix::Result<Self> {
        let mut set: SigSet = PASSED_ON.into_iter().collect();
        set.add(Signal::SIGCHLD);
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let mut mask = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut mask))?;
        // With SIGCHLD ignored, as it may be inherited, there is no status to
        // wait for. The child gets the inherited disposition back.
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default disposition runs no code.
        let inherited = unsafe { sigaction(Signal::SIGCHLD, &default) }?;
        // SAFETY: this process has one thread, so the child may do anything.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self { pid: child, signals }),
            ForkResult::Child => {
                // SAFETY: puts back what was there before: default or ignore,
                // since handlers do not survive exec.
                let _ = unsafe { sigaction(Signal::SIGCHLD, &inherited) };
                let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None);
                let status = prepare().map_or_else(|status| status, |()| become_program(command));
                // SAFETY: _exit has no preconditions.
                unsafe { libc::_exit(i32::from(status)) }
            }
        }
    }

    /// Its process number.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Readable when [`Child::event`] has something to do.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }

    /// Passes signals on and looks whether the child has ended.
    pub(super) fn event(&self) -> Event {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|s| Signal::try_from(s).ok());
            // What the terminal sends goes to the whole process group, and so
            // to the child, already.
            let from_process = info.ssi_pid != 0;
            if let Some(signal) = signal.filter(|s| PASSED_ON.contains(s) && from_process) {
                let _ = kill(self.pid, signal);
            }
        }
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => {
                    // wait reports the low eight bits only.
                    return Event::Ended(Status::Exited((code & 0xff) as u8));
                }
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    return Event::Ended(Status::Killed(signal));
                }
                Err(Errno::EINTR) => {}
                Ok(_) => return Event::Running,
                // Nobody else waits for it, so this cannot happen; not hanging
                // is the best answer if it does.
                Err(_) => return Event::Ended(Status::Exited(EXIT_UB)),
            }
        }
    }

    /// Waits for the end, still passing signals on.
    pub(super) fn wait(&self) -> Status {
        loop {
            if let Event::Ended(status) = self.event() {
                return status;
            }
            let _ = poll(&mut [PollFd::new(self.events(), PollFlags::POLLIN)], PollTimeout::NONE);
        }
    }
}

impl Status {
    /// Ends this process in the same way, or returns the exit status to end
    /// it with.
    pub(super) fn imitate(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => {
                // The program's core is the interesting one.
                let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
                let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
                // SAFETY: the default disposition runs no code.
                let _ = unsafe { sigaction(signal, &default) };
                let set: SigSet = [signal].into_iter().collect();
                let _ = raise(signal);
                let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&set), None);
                // Reached for signals that do not end a process by default.
                128u8.wrapping_add(signal as i32 as u8)
            }
        }
    }
}

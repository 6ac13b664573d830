//! What `ub profile` and `ub predict` have in common: what to watch, for how
//! long, and watching it.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ub_ebpf_fallback::packet_filter::open_process;
use ub_ebpf_fallback::{Profile, Profiler, WatchError};

use super::child::{Child, Event};
use super::output::Stream;
use super::{become_program, complain};
use crate::config;
use crate::exec::EXIT_UB;

/// How often libraries that were loaded meanwhile are looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// For how long calls are timed, and then only counted, where that is wanted. The kernel
/// adds up the CPU time of who runs at each of its ticks, some milliseconds apart.
const TURN: Duration = Duration::from_millis(200);

/// What is to be seen of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watching {
    /// All are timed.
    Timing,
    /// They are timed for a while and then only counted for a while: how long the program
    /// takes when nobody looks is wanted as well.
    InTurns,
}

/// What to watch.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// Watch a running process, its threads and what it starts
    #[arg(short, long, value_name = "PID", conflicts_with_all = ["cgroup", "command"])]
    pid: Option<u32>,
    /// Watch every process in a control group, given as a folder of the
    /// cgroup2 file system, and below it
    #[arg(long, value_name = "PATH", conflicts_with = "command")]
    cgroup: Option<PathBuf>,
    /// Stop after this many seconds [default: when the program ends, or at
    /// Ctrl-C]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// The program to run and its arguments
    #[arg(value_name = "CMD", trailing_var_arg = true, required_unless_present_any = ["pid", "cgroup"])]
    command: Vec<OsString>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be more than 0".to_owned()),
    }
}

impl Target {
    /// The same in words, for reports.
    pub(super) fn words(&self) -> Vec<String> {
        match (&self.pid, &self.cgroup) {
            (Some(pid), _) => vec!["process".to_owned(), pid.to_string()],
            (_, Some(path)) => {
                vec!["control".to_owned(), "group".to_owned(), path.display().to_string()]
            }
            _ => self.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        }
    }

    /// Where the result is printed: if a program was run, standard output belongs
    /// to it.
    pub(super) fn stream(&self) -> Stream {
        if self.command.is_empty() { Stream::Standard } else { Stream::Aside }
    }

    /// Watches it and hands the profile to `tell`, which returns an exit status.
    /// Returns that of the program, if one was run, else that one.
    pub(super) fn observe(&self, watching: Watching, tell: impl FnOnce(&Profile) -> u8) -> u8 {
        if self.command.is_empty() {
            return match self.observe_running(watching) {
                Ok(profile) => tell(&profile),
                Err(error) => {
                    complain(error);
                    EXIT_UB
                }
            };
        }
        if config::disabled_by_environment() == Some(true) {
            return become_program(&self.command);
        }
        match Profiler::new() {
            Ok(profiler) => self.observe_command(profiler, watching, tell),
            Err(reason) => {
                complain(format_args!("{reason}; running natively, nothing is counted"));
                become_program(&self.command)
            }
        }
    }

    fn observe_running(&self, watching: Watching) -> Result<Profile, WatchError> {
        let mut profiler = match &self.cgroup {
            Some(path) => Profiler::of_cgroup(path)?,
            None => Profiler::new()?,
        };
        let mut process = None;
        if let Some(pid) = self.pid {
            process =
                Some(open_process(pid).map_err(|error| WatchError::NoProcess { pid, error })?);
            profiler.watch_process(pid)?;
        }
        let stop: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        let _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&stop), None);
        let stop = SignalFd::with_flags(&stop, SfdFlags::SFD_CLOEXEC).ok();
        let deadline = self.duration.map(|duration| Instant::now() + duration);
        let ends: Vec<_> =
            process.iter().map(AsFd::as_fd).chain(stop.iter().map(AsFd::as_fd)).collect();
        watch(&mut profiler, watching, &ends, deadline, || true);
        Ok(profiler.finish())
    }

    fn observe_command(
        &self,
        mut profiler: Profiler,
        watching: Watching,
        tell: impl FnOnce(&Profile) -> u8,
    ) -> u8 {
        // The child waits until it is watched.
        let Ok((mut ours, mut theirs)) = UnixStream::pair() else {
            complain("cannot make a socket; running natively, nothing is counted");
            return become_program(&self.command);
        };
        let wait = || {
            // Nothing comes if the parent gave up; the program runs all the same.
            let _ = theirs.read(&mut [0]);
            Ok(())
        };
        let child = match Child::start(&self.command, wait) {
            Ok(child) => child,
            Err(error) => {
                complain(format_args!("cannot start a process: {error}"));
                return EXIT_UB;
            }
        };
        if let Err(reason) = profiler.watch_launcher(child.pid()) {
            complain(format_args!("{reason}; running natively, nothing is counted"));
        }
        let _ = ours.write_all(&[0]);
        drop(ours);
        let deadline = self.duration.map(|duration| Instant::now() + duration);
        let mut status = None;
        watch(&mut profiler, watching, &[child.events()], deadline, || {
            if let Event::Ended(ended) = child.event() {
                status = Some(ended);
            }
            status.is_some()
        });
        let failure = tell(&profiler.finish());
        let status = status.unwrap_or_else(|| child.wait()).imitate();
        if status == 0 { failure } else { status }
    }
}

/// Takes what the profiler has to say until `deadline`, or until one of
/// `ends` is readable and `is_end` agrees.
fn watch(
    profiler: &mut Profiler,
    watching: Watching,
    ends: &[std::os::fd::BorrowedFd<'_>],
    deadline: Option<Instant>,
    mut is_end: impl FnMut() -> bool,
) {
    let mut looked = Instant::now();
    let mut only_counts = false;
    let mut next_turn = (watching == Watching::InTurns).then(|| looked + TURN);
    loop {
        let now = Instant::now();
        let until = |time: Instant| time.saturating_duration_since(now);
        let left = deadline.map(until);
        if left.is_some_and(|left| left.is_zero()) {
            return;
        }
        if next_turn.is_some_and(|next| next <= now) {
            only_counts = !only_counts;
            // What was seen so far is still good.
            if let Err(reason) = profiler.only_count(only_counts) {
                complain(format_args!("{reason}; nothing is counted any more"));
                return;
            }
            next_turn = Some(now + TURN);
        }
        let waits = [left, next_turn.map(until)].into_iter().flatten();
        let wait = waits.fold(LOOK_AGAIN, Duration::min);
        let mut all: Vec<_> = ends.iter().map(|end| PollFd::new(*end, PollFlags::POLLIN)).collect();
        all.push(PollFd::new(profiler.events(), PollFlags::POLLIN));
        // One more, or the last part of a millisecond would be spent polling.
        let wait = PollTimeout::try_from(wait.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let polled = poll(&mut all, wait);
        let ended = polled.is_ok() && all[..ends.len()].iter().any(|end| end.any() == Some(true));
        profiler.take_events();
        if looked.elapsed() >= LOOK_AGAIN {
            profiler.look_again();
            looked = Instant::now();
        }
        if ended && is_end() {
            return;
        }
    }
}

//! `ub attach`: takes running processes into a session.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::Args;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::complain;
use super::members::Target;
use super::session::SessionOptions;
use crate::cgroup;
use crate::device::ProcessError;
use crate::exec::EXIT_UB;
use crate::logging;
use crate::session::{Supervision, Wake};

/// Time between two looks at who is in a control group. Nothing tells of those
/// who join: `cgroup.events` changes only when a group gets its first member
/// or loses its last, the files below a cgroup raise no other events, and the
/// tracepoint of migrations misses who is started inside (`CLONE_INTO_CGROUP`).
/// What members fork joins at once; the others run natively until the look.
const LOOK: Duration = Duration::from_millis(100);

/// Execute the hot gaps of running processes inside the kernel
///
/// Supervises them until they have all ended or were detached. All threads of
/// a process join, each at its next system call, and so does what they fork
/// and execute. If ub is killed they go on natively. With --cgroup, processes
/// that join the group later are attached as well, until the group is removed
/// or `ub detach --cgroup` takes all its members out. Where rides are found not to
/// pay on this machine, everybody is let go, after one line on stderr.
///
/// Exit status: 0 when the supervision is over, 1 if a process could not be
/// attached (none is, then), 125 if ub itself fails.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Write counters to FILE as JSON, every second and at the end
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    session: SessionOptions,
}

/// Runs the command; returns the exit status.
pub(super) fn main(arguments: &Arguments) -> u8 {
    let command: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut plan = match arguments.session.plan(&command, arguments.report.as_deref()) {
        Ok(plan) => plan,
        Err(error) => {
            complain(error);
            return EXIT_UB;
        }
    };
    let mut supervision = match plan.open() {
        Ok(supervision) => supervision,
        Err(reason) => {
            let _ = plan.write_inactive(&reason.to_string());
            complain(reason);
            return EXIT_UB;
        }
    };
    logging::init(plan.log.take(), plan.level);
    if supervision.native_reason().is_some() {
        let_go(&supervision);
        supervision.finish();
        return 0;
    }
    // Before it has members, who would report gaps meanwhile.
    supervision.warm_up();
    for pid in &arguments.target.pids {
        if let Err(error) = supervision.attach(*pid) {
            // Those attached before it are let go with the session.
            complain(format_args!("process {pid}: {error}"));
            return 1;
        }
    }
    if let Some(pid) = arguments.target.pids.first() {
        supervision.started(*pid);
    }
    supervision.listen();
    let result = match &arguments.target.cgroup {
        None => supervision.until(None).map(|wake| {
            if wake == Wake::Native {
                let_go(&supervision);
            }
            0
        }),
        Some(folder) => follow(folder, &mut supervision),
    };
    supervision.finish();
    result.unwrap_or_else(|error| {
        complain(format_args!("session lost, its members go on natively: {error}"));
        EXIT_UB
    })
}

/// Says why nobody is kept in a session in which nobody can gain anything.
fn let_go(supervision: &Supervision) {
    let reason = supervision.native_reason().unwrap_or_default();
    complain(format_args!("{reason}; everything goes on natively"));
}

/// The members of a control group that were looked at, and whether they were
/// attached. Nobody is attached twice: who left the session was detached.
#[derive(Debug, Default)]
struct Group {
    seen: BTreeMap<u32, bool>,
}

impl Group {
    /// Attaches who is new; false if the session takes nobody any more.
    fn look(&mut self, present: &BTreeSet<u32>, supervision: &mut Supervision) -> bool {
        self.seen.retain(|pid, _| present.contains(pid));
        for pid in present {
            if self.seen.contains_key(pid) {
                continue;
            }
            match supervision.attach(*pid) {
                Ok(()) => {
                    self.seen.insert(*pid, true);
                }
                Err(ProcessError::Absent) => {}
                Err(ProcessError::SessionEnded) => return false,
                Err(error) => {
                    if error != ProcessError::NoProgram {
                        complain(format_args!("process {pid}: {error}"));
                    }
                    self.seen.insert(*pid, false);
                }
            }
        }
        true
    }

    /// Whether a member is there that was attached once.
    fn has_attached(&self) -> bool {
        self.seen.values().any(|attached| *attached)
    }
}

/// Supervises the members of a control group; returns the exit status.
fn follow(folder: &Path, supervision: &mut Supervision) -> std::io::Result<u8> {
    let mut group = Group::default();
    let mut present = match cgroup::members(folder) {
        Ok(present) => present,
        Err(error) => {
            complain(format_args!("cannot read the members of {}: {error}", folder.display()));
            return Ok(EXIT_UB);
        }
    };
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
    timer.set(Expiration::Interval(TimeSpec::from(LOOK)), TimerSetTimeFlags::empty())?;
    let mut ended = false;
    loop {
        let before = group.seen.len();
        if !group.look(&present, supervision) {
            return Ok(0);
        }
        // Members are there, none of them is new or in the session: they were
        // detached.
        if ended && group.has_attached() && group.seen.len() == before {
            return Ok(0);
        }
        // While nobody is in the session its descriptor is always ready.
        if ended {
            thread::sleep(LOOK);
        }
        ended = match supervision.until(Some(timer.as_fd()))? {
            Wake::Ended => true,
            Wake::Native => {
                let_go(supervision);
                return Ok(0);
            }
            Wake::Caller => {
                timer.wait()?;
                false
            }
        };
        present = match cgroup::members(folder) {
            Ok(present) => present,
            // The group is gone, and so are its members.
            Err(_) => return Ok(0),
        };
    }
}

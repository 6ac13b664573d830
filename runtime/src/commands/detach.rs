//! `ub detach`: takes running processes out of their sessions.

use std::collections::BTreeSet;

use clap::Args;

use super::complain;
use super::members::Target;
use crate::cgroup;
use crate::device::{Device, ProcessError};
use crate::exec::EXIT_UB;

/// Let running processes go on natively, whichever session they are in
///
/// Each thread leaves at its next system call, or within a tick if it is in a
/// loop. Their supervisor ends when it has no member left. Processes that they
/// start later are not in a session either.
///
/// Exit status: 0 if all of them left, 1 if one was in no session, 125 if ub
/// itself fails.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    target: Target,
}

/// Runs the command; returns the exit status.
pub(super) fn main(arguments: &Arguments) -> u8 {
    let device = match Device::open() {
        Ok(device) => device,
        Err(error) => {
            complain(error);
            return EXIT_UB;
        }
    };
    let mut status = 0;
    for pid in &arguments.target.pids {
        if let Err(error) = device.detach(*pid) {
            complain(format_args!("process {pid}: {error}"));
            status = 1;
        }
    }
    let Some(folder) = &arguments.target.cgroup else { return status };
    // Members that a session has not seen yet, or that fork meanwhile, are
    // found by looking again.
    let mut done = BTreeSet::new();
    loop {
        let pids = match cgroup::members(folder) {
            Ok(pids) => pids,
            Err(error) => {
                complain(format_args!("cannot read the members of {}: {error}", folder.display()));
                return EXIT_UB;
            }
        };
        let new: Vec<u32> = pids.difference(&done).copied().collect();
        if new.is_empty() {
            return status;
        }
        for pid in new {
            match device.detach(pid) {
                // It may be a program that nobody attached, or may have ended.
                Ok(_)
                | Err(ProcessError::NoMember | ProcessError::Absent | ProcessError::NoProgram) => {}
                Err(error) => {
                    complain(format_args!("process {pid}: {error}"));
                    status = 1;
                }
            }
            done.insert(pid);
        }
    }
}

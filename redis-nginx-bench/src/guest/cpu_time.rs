//! CPU time of programs, as the kernel counts it.

use std::fs;
use std::time::Duration;

use nix::errno::Errno;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

use crate::{Error, Result};

/// Unit of times in `/proc/PID/stat` (USER_HZ is 100 on x86).
const TICK_OF_STAT: Duration = Duration::from_millis(10);

/// CPU time of a program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CpuTime {
    /// All of it.
    pub(super) total: Duration,
    /// In user mode, by the kernel's ticks.
    pub(super) user: Duration,
}

impl CpuTime {
    /// What was added after `earlier`.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            total: self.total.saturating_sub(earlier.total),
            user: self.user.saturating_sub(earlier.user),
        }
    }

    /// CPU time of a process and of the processes below it. Of processes that have
    /// ended nothing is known.
    pub(super) fn of(process: u32) -> Result<Self> {
        let threads = format!("/proc/{process}/task");
        let total = cpu_clock(process).map_err(|errno| {
            Error::io(format!("reading the CPU clock of {process}"))(errno.into())
        })?;
        let mut sum = Self { total, user: Duration::ZERO };
        for thread in
            fs::read_dir(&threads).map_err(Error::io(format!("reading {threads}")))?.flatten()
        {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            sum.user += TICK_OF_STAT * user_ticks(&stat);
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
                let below = Self::of(child)?;
                sum.total += below.total;
                sum.user += below.user;
            }
        }
        Ok(sum)
    }
}

/// The user time of a thread's `stat`, in ticks: its 14th field, counted from
/// behind the name, which may contain anything.
fn user_ticks(stat: &str) -> u32 {
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_whitespace().nth(11).and_then(|ticks| ticks.parse().ok()).unwrap_or(0)
}

/// CPU time of a process by its own clock, which every kernel has.
fn cpu_clock(process: u32) -> nix::Result<Duration> {
    let pid = Pid::from_raw(process.try_into().map_err(|_| Errno::ESRCH)?);
    Ok(clock_getcpuclockid(pid)?.now()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_process_has_worked_for_nothing() {
        let me = CpuTime::of(std::process::id()).unwrap();
        assert!(me.total > Duration::ZERO);
        // Not a time of zero, which would look like a figure.
        assert!(CpuTime::of(i32::MAX as u32).is_err());
    }

    #[test]
    fn user_time_is_found_behind_strange_names() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 3 0 0 0 25 4 0 0 20 0 1 0 9";
        assert_eq!((user_ticks(stat), user_ticks("")), (25, 0));
    }
}

//! A measured program that runs: what all workloads have in common.

use std::time::Duration;

use super::launch::{How, Launcher, Running};
use super::{calls, memcached, nginx, packets, redis, sqlite};
use crate::Result;
use crate::content::Digest;
use crate::cost::Settled;
use crate::outcome::{Latency, Round};
use crate::plan::Workload;

/// How much load is put on a program at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    /// Operations.
    pub operations: u64,
    /// Wanted duration: for wrk, which cannot count.
    pub duration: Duration,
}

/// What one load was.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Timed {
    /// Operations and the time they took.
    pub round: Round,
    /// How long single operations took, where the load generator says.
    pub latency: Option<Latency>,
}

/// What checks of the data have found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Of everything that is the same whenever things are right.
    pub digest: Digest,
    /// What was wrong.
    pub faults: Vec<String>,
    /// Operations done by the checks that count like those of the load.
    pub operations: u64,
}

/// A program that was started to be measured, idle between its loads.
pub(super) trait Subject {
    /// Its process.
    fn running(&mut self) -> &mut Running;

    /// Puts a load on it and waits until that is done.
    fn load(&mut self, load: &Load, findings: &mut Findings) -> Result<Timed>;

    /// Checks what it has computed.
    fn check(&mut self, findings: &mut Findings) -> Result<()>;

    /// Ends it; an unsuccessful end is an error.
    fn stop(&mut self) -> Result<()>;
}

/// Starts the program of `workload`.
pub(super) fn start<'a>(
    launcher: &'a Launcher,
    workload: Workload,
    how: How,
) -> Result<Box<dyn Subject + 'a>> {
    Ok(match workload {
        Workload::Null => Box::new(calls::Loop::null(launcher, how)?),
        Workload::Bare => Box::new(calls::Loop::start(launcher, how, &["bare"], None)?),
        Workload::Interposed { by } => Box::new(calls::Loop::interposed(launcher, how, by)?),
        Workload::Read { bytes, from, sum } => {
            Box::new(calls::Loop::reads(launcher, how, bytes, from, sum, None)?)
        }
        Workload::Ring { bytes, from, sum, depth } => {
            Box::new(calls::Loop::reads(launcher, how, bytes, from, sum, Some(depth))?)
        }
        Workload::Redis { access, bytes, clients, pipeline } => {
            let request = redis::Request { access, bytes, clients, pipeline };
            Box::new(redis::Server::start(launcher, how, request)?)
        }
        Workload::Nginx { bytes, connections, access_log, keep_alive } => {
            let request = nginx::Request { bytes, connections, access_log, keep_alive };
            Box::new(nginx::Server::start(launcher, how, request)?)
        }
        Workload::Packets { task, by } => {
            Box::new(packets::Receiver::start(launcher, how, task, by)?)
        }
        Workload::Memcached { access, bytes, clients } => {
            Box::new(memcached::Server::start(launcher, how, access, bytes, clients)?)
        }
        Workload::Sqlite => Box::new(sqlite::Shell::start(launcher, how)?),
    })
}

/// Loads between two looks at the session: a look takes a second in which the
/// program does nothing and nothing about it is learned.
const LOADS_A_LOOK: u32 = 3;

/// Repeats `load` until it causes no more translations, or the plan's limit
/// is over. `None` for a program that is not being translated.
pub(super) fn settle(
    subject: &mut dyn Subject,
    launcher: &Launcher,
    how: How,
    load: &Load,
    findings: &mut Findings,
) -> Result<Option<Settled>> {
    if how != How::Ub {
        return Ok(None);
    }
    let plan = launcher.plan();
    let (start, limit) = (std::time::Instant::now(), Duration::from_millis(plan.settle_ms));
    let mut before = subject.running().progress()?;
    let mut quiet = 0;
    let mut loads = 0;
    while quiet < plan.settle_looks && start.elapsed() < limit {
        for _ in 0..LOADS_A_LOOK {
            subject.load(load, findings)?;
        }
        loads += LOADS_A_LOOK;
        let now = subject.running().progress()?;
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(Some(Settled { loads, seconds, stable: quiet >= plan.settle_looks }))
}

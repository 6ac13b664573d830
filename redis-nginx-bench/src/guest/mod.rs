//! Runs a plan inside the guest (or, natively, on any Linux machine).

mod calls;
mod cost;
mod cpu_time;
mod launch;
mod machine;
mod memcached;
mod modules;
mod nginx;
mod packets;
mod pass;
mod predict;
mod prepare;
mod redis;
mod rounds;
mod sqlite;
mod subject;

use std::fs;
use std::time::Duration;

use crate::content::Digest;
use crate::cost::Settled;
use crate::outcome::Round;
use crate::plan::{Plan, Workload};
use crate::{Error, Result};

pub use cost::run as run_cost;
use launch::Session;
pub use launch::{How, Launcher, pin_and_exec};
pub use machine::machine;
pub use pass::run;
pub use predict::run as run_predict;
pub use rounds::run as run_rounds;
use subject::{Findings, Load};

/// How much one measurement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Amount {
    /// Timed operations; wrk, which cannot count, goes by `timed`.
    pub operations: u64,
    /// Wanted duration of the timed part.
    pub timed: Duration,
    /// Untimed operations before it.
    pub warmup_operations: u64,
    /// Wanted duration of the untimed part.
    pub warmup: Duration,
    /// Whether the counts must be of the timed part alone, without the checks
    /// behind it.
    pub exact: bool,
}

/// One measurement: a process started, warmed up, timed, checked and ended.
#[derive(Debug)]
pub(crate) struct Sample {
    /// The timed part.
    pub round: Round,
    /// Digest of what was computed.
    pub digest: String,
    /// What was wrong with the data.
    pub faults: Vec<String>,
    /// CPU time of the timed part, of servers.
    pub cpu: Option<Duration>,
    /// How the translation of a server came to rest.
    pub settled: Option<Settled>,
    /// The session, unless native.
    pub session: Option<Session>,
}

/// Makes one measurement of `workload`.
fn sample(launcher: &Launcher, workload: Workload, how: How, amount: &Amount) -> Result<Sample> {
    let mut subject = subject::start(launcher, workload, how)?;
    let warm = Load { operations: amount.warmup_operations, duration: amount.warmup };
    let timed = Load { operations: amount.operations, duration: amount.timed };
    let mut findings = Findings::default();
    // Without a warm-up the first operations are part of what is measured.
    if amount.warmup > Duration::ZERO {
        subject.load(&warm, &mut findings)?;
    }
    let settled = if workload.is_micro() && !amount.exact {
        None
    } else {
        subject::settle(&mut *subject, launcher, how, &warm, &mut findings)?
    };
    // The loads before are not the same in every round.
    findings.digest = Digest::default();
    let earlier = subject.running().session_so_far()?;
    let cpu_before = subject.running().cpu_time()?;
    let round = subject.load(&timed, &mut findings)?.round;
    let cpu = subject.running().cpu_time()?.since(cpu_before).total;
    // Unless the checks below may count as part of the load, which saves a
    // second.
    let later = if amount.exact { subject.running().session_so_far()? } else { None };
    subject.check(&mut findings)?;
    subject.stop()?;
    let operations = round.operations + findings.operations;
    let mut session = subject.running().session(earlier.as_ref(), operations)?;
    if let (Some(session), Some(later), Some(earlier)) = (&mut session, later, &earlier) {
        session.counts = later.counts.since(&earlier.counts, round.operations);
    }
    Ok(Sample {
        round,
        digest: findings.digest.finish(),
        faults: findings.faults,
        // A loop has the CPU to itself, and reading its clock is part of it.
        cpu: (!workload.is_micro()).then_some(cpu),
        settled,
        session,
    })
}

/// Checks `plan`, its programs too, and gets the machine ready for it.
fn prepare(plan: &Plan) -> Result<Launcher> {
    plan.validate()?;
    let launcher = prepare_with(plan)?;
    for workload in &plan.workloads {
        if let Some(program) = launcher.missing_program(*workload) {
            return Err(Error::Plan(format!("{} is missing", program.display())));
        }
    }
    Ok(launcher)
}

/// Gets the machine ready for `plan`.
fn prepare_with(plan: &Plan) -> Result<Launcher> {
    fs::create_dir_all(&plan.scratch)
        .map_err(Error::io(format!("creating {}", plan.scratch.display())))?;
    if plan.prepare_guest {
        prepare::guest()?;
    }
    // The guest gets an image only if something reads it.
    if let (Some(image), Some(folder)) = (&plan.disk_image, &plan.disk)
        && image.exists()
    {
        prepare::disk(image, folder)?;
    }
    Launcher::new(plan.clone())
}

/// The amount that takes `timed` and `warmup` at `rate` operations a second.
fn scale(rate: f64, timed: Duration, warmup: Duration, low: u64, high: u64) -> Amount {
    Amount {
        operations: ((rate * timed.as_secs_f64()) as u64).clamp(low, high),
        timed,
        warmup_operations: ((rate * warmup.as_secs_f64()) as u64).clamp(1, high),
        warmup,
        exact: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_fill_the_time_within_bounds() {
        let second = Duration::from_secs(1);
        let amount = scale(5000.0, 2 * second, second, 10, 1_000_000);
        assert_eq!((amount.operations, amount.warmup_operations), (10_000, 5000));
        assert_eq!(scale(1.0, second, second, 10, 100).operations, 10);
        assert_eq!(scale(1e9, second, second, 10, 100).operations, 100);
    }
}

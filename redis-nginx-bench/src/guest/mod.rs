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
use crate::outcome::{Cell, Outcome, Round};
use crate::plan::{Mode, Plan, Workload};
use crate::{Error, Result};

pub use cost::run as run_cost;
use launch::Session;
pub use launch::{How, Launcher, pin_and_exec};
pub use machine::machine;
pub use predict::run as run_predict;
pub use rounds::run as run_rounds;
use subject::{Findings, Load};

/// How often the schedule is gone through for a loop of system calls.
const MICRO_TURNS: usize = 2;

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

/// Runs `plan`.
///
/// # Errors
/// The first thing that kept a measurement from being made. Wrong results
/// are not errors but [`Cell::faults`].
pub fn run(plan: &Plan) -> Result<Outcome> {
    let launcher = prepare(plan)?;
    let mut cells = Vec::new();
    for workload in &plan.workloads {
        cells.extend(run_workload(&launcher, *workload)?);
    }
    Ok(Outcome { machine: machine()?, cells })
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

fn run_workload(launcher: &Launcher, workload: Workload) -> Result<Vec<Cell>> {
    let plan = launcher.plan();
    let amount = pilot(launcher, workload)?;
    tracing::info!("{workload}: {} operations a round", amount.operations);
    let mut cells: Vec<Cell> = plan.modes.iter().map(|mode| empty_cell(workload, *mode)).collect();
    // These take little of the whole time, and their ratio is near 1.
    let turns = if workload.is_micro() { MICRO_TURNS } else { 1 };
    for mode in std::iter::repeat_n(plan.schedule(), turns).flatten() {
        let how = match mode {
            Mode::Native => How::Native,
            Mode::Ub => How::Ub,
        };
        let sample = sample(launcher, workload, how, &amount)?;
        tracing::info!("{workload} {mode}: {:.0} ops/s", sample.round.ops_per_s());
        for cell in cells.iter_mut().filter(|cell| cell.mode == mode) {
            add(cell, &sample);
        }
    }
    if plan.modes.contains(&Mode::Ub) {
        // Counts of the native program need the hook but no fragments.
        let short = Amount {
            operations: amount.operations.div_ceil(2),
            timed: amount.timed / 2,
            warmup_operations: 0,
            warmup: Duration::ZERO,
            exact: false,
        };
        let sample = sample(launcher, workload, How::Count, &short)?;
        for cell in cells.iter_mut().filter(|cell| cell.mode == Mode::Native) {
            add_session(cell, sample.session.as_ref());
        }
    }
    Ok(cells)
}

/// Finds out how many operations fill the wanted time, natively.
fn pilot(launcher: &Launcher, workload: Workload) -> Result<Amount> {
    let plan = launcher.plan();
    let (low, high) = plan.operations;
    let timed = Duration::from_millis(plan.timed_ms);
    let warmup = Duration::from_millis(plan.warmup_ms);
    let first = Amount {
        operations: low,
        timed: timed / 4,
        warmup_operations: low / 4,
        warmup: Duration::ZERO,
        exact: false,
    };
    let rate = sample(launcher, workload, How::Native, &first)?.round.ops_per_s();
    Ok(scale(rate, timed, warmup, low, high))
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

fn empty_cell(workload: Workload, mode: Mode) -> Cell {
    Cell {
        workload,
        mode,
        rounds: Vec::new(),
        counts: None,
        sessions: Vec::new(),
        digest: String::new(),
        faults: Vec::new(),
    }
}

fn add(cell: &mut Cell, sample: &Sample) {
    if cell.rounds.is_empty() {
        cell.digest.clone_from(&sample.digest);
    } else if cell.digest != sample.digest {
        let round = cell.rounds.len();
        cell.faults.push(format!("round {round} computed something else than round 0"));
    }
    cell.rounds.push(sample.round);
    cell.faults.extend(sample.faults.iter().cloned());
    add_session(cell, sample.session.as_ref());
}

fn add_session(cell: &mut Cell, session: Option<&Session>) {
    if let Some(session) = session {
        cell.counts.get_or_insert_default().add(&session.counts);
        cell.sessions.push(session.report.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Counts;

    fn sample(digest: &str, ridden: u64) -> Sample {
        Sample {
            round: Round { operations: 10, seconds: 1.0 },
            digest: digest.into(),
            faults: vec![],
            cpu: None,
            settled: None,
            session: Some(Session {
                counts: Counts { operations: 12, syscalls: 24, ridden, ..Counts::default() },
                ended: true,
                report: serde_json::Value::Null,
            }),
        }
    }

    #[test]
    fn rounds_that_differ_are_a_fault() {
        let mut cell = empty_cell(Workload::Null, Mode::Ub);
        add(&mut cell, &sample("a", 20));
        add(&mut cell, &sample("a", 22));
        assert!(cell.faults.is_empty());
        assert_eq!(cell.counts.as_ref().unwrap().ridden, 42);
        add(&mut cell, &sample("b", 20));
        assert_eq!(cell.faults.len(), 1);
        assert_eq!((cell.rounds.len(), cell.digest.as_str()), (3, "a"));
    }

    #[test]
    fn operations_fill_the_time_within_bounds() {
        let second = Duration::from_secs(1);
        let amount = scale(5000.0, 2 * second, second, 10, 1_000_000);
        assert_eq!((amount.operations, amount.warmup_operations), (10_000, 5000));
        assert_eq!(scale(1.0, second, second, 10, 100).operations, 10);
        assert_eq!(scale(1e9, second, second, 10, 100).operations, 100);
    }
}

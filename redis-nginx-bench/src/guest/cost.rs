//! Counts the instructions of a workload, each way of running it several
//! times. Needs a guest that runs under `-icount`.

use std::time::Duration;

use super::launch::{How, Launcher};
use super::{Amount, Sample, machine, prepare, sample};
use crate::Result;
use crate::cost::{CostCell, CostOutcome, CostRun, Way};
use crate::plan::{Plan, Workload};

/// Requests before the timed part and between two looks while settling, as a
/// multiple of the timed ones. Code becomes known one stretch after the other,
/// and each has to be translated by the CPU that also serves the requests.
const WARMUP: u64 = 2;

/// Runs `plan`, whose smallest number of operations is what is timed.
///
/// # Errors
/// The first thing that kept a measurement from being made. Wrong results
/// are not errors but [`CostRun::faults`].
pub fn run(plan: &Plan) -> Result<CostOutcome> {
    let launcher = prepare(plan)?;
    let mut cells = Vec::new();
    for workload in &plan.workloads {
        for &way in &plan.ways {
            let runs = (0..plan.rounds)
                .map(|_| measure(&launcher, *workload, way))
                .collect::<Result<_>>()?;
            cells.push(CostCell { workload: *workload, way, runs });
        }
    }
    Ok(CostOutcome { machine: machine()?, cells })
}

fn measure(launcher: &Launcher, workload: Workload, way: Way) -> Result<CostRun> {
    let how = match way {
        Way::Native => How::Native,
        Way::Watched => How::Count,
        Way::Ub => How::Ub,
        Way::Plain => How::Plain,
    };
    let plan = launcher.plan();
    let amount = Amount {
        operations: plan.operations.0,
        timed: Duration::from_millis(plan.timed_ms),
        warmup_operations: WARMUP * plan.operations.0,
        warmup: Duration::from_millis(plan.warmup_ms),
        exact: true,
    };
    let sample = sample(launcher, workload, how, &amount)?;
    let run = cost_run(sample);
    tracing::info!(
        "{workload} {}: {:.0} instructions a request{}",
        way.name(),
        run.total(),
        run.user_side().map(|user| format!(", {user:.0} between calls")).unwrap_or_default()
    );
    Ok(run)
}

fn cost_run(sample: Sample) -> CostRun {
    let Sample { round, digest, faults, cpu, settled, session } = sample;
    // A loop of system calls has the only CPU to itself.
    let cpu = cpu.unwrap_or_else(|| Duration::from_secs_f64(round.seconds));
    let (counts, report) = session.map(|session| (session.counts, session.report)).unzip();
    CostRun {
        requests: round.operations,
        cpu_ns: u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX),
        counts,
        settled,
        report,
        digest,
        faults,
    }
}

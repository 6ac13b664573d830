//! Asks `ub predict` about each workload under load, and then measures what a
//! session gains.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::launch::{Launcher, PATIENCE};
use super::rounds::{self, Side};
use super::subject::Load;
use super::{machine, prepare};
use crate::events::Work;
use crate::outcome::Counts;
use crate::plan::{Mode, Plan, Workload};
use crate::prediction::{LAUNCHES, PredictionCell, PredictionOutcome};
use crate::{Error, Result};

/// How long `ub predict` watches.
const WATCHED: &str = "2";
/// Time between two looks whether it does.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Runs `plan`.
///
/// # Errors
/// The first thing that kept a measurement from being made. Wrong results
/// are not errors but [`PredictionCell::faults`].
pub fn run(plan: &Plan) -> Result<PredictionOutcome> {
    let launcher = prepare(plan)?;
    let cells =
        plan.workloads.iter().map(|workload| cell(&launcher, *workload)).collect::<Result<_>>()?;
    Ok(PredictionOutcome { machine: machine()?, cells })
}

fn cell(launcher: &Launcher, workload: Workload) -> Result<PredictionCell> {
    let mut cell = PredictionCell::new(workload);
    let mut counts = Counts::default();
    for launch in 0..LAUNCHES {
        counts.add(&measure(launcher, launch, &mut cell)?);
    }
    cell.ridden_share = counts.ridden_share();
    Ok(cell)
}

/// Measures a pair of processes, the native one of which is asked about first.
fn measure(launcher: &Launcher, launch: u32, cell: &mut PredictionCell) -> Result<Counts> {
    let plan = launcher.plan();
    let workload = cell.workload;
    let work = Work { workload, launch, rounds: plan.rounds.div_ceil(LAUNCHES) };
    let mut sides = [Mode::Native, Mode::Ub]
        .map(|mode| Side::start(launcher, &work, mode))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let amount = rounds::pilot(launcher, &mut sides[0])?;
    let load = Load { operations: amount.operations, duration: amount.timed };
    cell.estimates.push(predict(launcher, &mut sides[0], &load, &["--estimate"])?);
    cell.predictions.push(predict(launcher, &mut sides[0], &load, &[])?);
    rounds::warm_up(launcher, &mut sides, &amount)?;
    let (mut native_ns, mut ub_ns) = (Vec::new(), Vec::new());
    for _ in 0..work.rounds {
        for side in &mut sides {
            let sample = side.sample(&load)?;
            let cpu_ns = sample.cpu_ns as f64 / sample.round.operations.max(1) as f64;
            match side.mode() {
                Mode::Native => native_ns.push(cpu_ns),
                Mode::Ub => ub_ns.push(cpu_ns),
            }
        }
        // The next round goes the other way: a machine that slowly gets faster
        // or slower favours nobody.
        sides.reverse();
    }
    tracing::info!("{workload}: CPU ns an operation, native {native_ns:.0?}, ub {ub_ns:.0?}");
    cell.launches.push(native_ns.into_iter().zip(ub_ns).collect());
    let ends = sides.into_iter().map(Side::finish).collect::<Result<Vec<_>>>()?;
    cell.faults.extend(ends.iter().flat_map(|(_, end)| end.faults.clone()));
    Ok(ends.into_iter().find_map(|(_, end)| end.counts).unwrap_or_default())
}

/// Keeps the load on the program until `ub predict` has seen enough of it.
fn predict(
    launcher: &Launcher,
    side: &mut Side,
    load: &Load,
    options: &[&str],
) -> Result<serde_json::Value> {
    let plan = launcher.plan();
    let path = plan.scratch.join("prediction.json");
    let failed = |error| Error::io("running ub predict")(error);
    let mut watcher = Killed(
        Command::new(&plan.programs.ub)
            .args(["predict", "--format", "json", "--duration", WATCHED, "--output"])
            .arg(&path)
            .arg("--pid")
            .arg(side.worker().to_string())
            .args(options)
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed)?,
    );
    wait_until_it_watches(&watcher.0)?;
    let start = Instant::now();
    let status = loop {
        side.sample(load)?;
        if let Some(status) = watcher.0.try_wait().map_err(failed)? {
            break status;
        }
        if start.elapsed() > PATIENCE {
            return Err(Error::output("ub predict", "it does not end"));
        }
    };
    if !status.success() {
        return Err(Error::output("ub predict", format!("it ended with {status}")));
    }
    read(&path)
}

/// Waits until it has measured the machine. The CPUs of an emulated guest take
/// turns: beside a load everything would seem to cost twice as much.
fn wait_until_it_watches(watcher: &Child) -> Result<()> {
    let path = format!("/proc/{}/syscall", watcher.id());
    let waits = format!("{} ", libc::SYS_poll);
    let start = Instant::now();
    while !fs::read_to_string(&path).is_ok_and(|call| call.starts_with(&waits)) {
        if start.elapsed() > PATIENCE {
            return Err(Error::output("ub predict", "it does not watch the program"));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

fn read(path: &Path) -> Result<serde_json::Value> {
    let text =
        fs::read_to_string(path).map_err(Error::io(format!("reading {}", path.display())))?;
    serde_json::from_str(&text).map_err(|error| Error::output("ub predict", error.to_string()))
}

/// Ends with its owner, whatever happens.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It has ended already if all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//! `ub-demo --predict`: what `ub predict` says of each workload beside what a
//! session then gains.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};

use super::boot::{Booted, Laboratory, Purpose};
use super::options::{Guest, Options};
use super::verdict::Verdict;
use crate::bootstrap::Interval;
use crate::plan::{Mode, Plan};
use crate::prediction::{PredictionCell, PredictionOutcome, median};
use crate::stats;

/// Largest error of a prediction, as a share of the predicted gain.
const PROMISED_ERROR: f64 = 0.3;

/// What is predicted is what a program gains once it is known: longer than the demo
/// waits for that, in milliseconds.
const SETTLE_MS: u64 = 90_000;

const COLUMNS: [&str; 11] = [
    "workload",
    "calls ridden: predicted",
    "measured",
    "bound",
    "CPU us/op: native",
    "ub",
    "gain: estimated",
    "with rides timed",
    "measured",
    "error: estimated",
    "with rides timed",
];

/// Boots a guest for each state of page-table isolation, prints the tables and
/// writes everything beside the report of the demo.
pub(super) fn run(options: &Options) -> Result<Verdict> {
    let folder = options.out.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let lab = Laboratory::prepare(options)?;
    let mut verdict = Verdict::default();
    for &kpti in options.kpti.states() {
        let guest = Guest { kernel: options.kernel, kpti, smoke: false };
        let plan = Plan {
            modes: vec![Mode::Native, Mode::Ub],
            settle_ms: options.settle_ms.max(SETTLE_MS),
            ..options.plan(&guest)
        };
        let booted: Booted<PredictionOutcome> = lab.boot(&guest, &plan, Purpose::Predict)?;
        let outcome = &booted.outcome;
        let path = folder.join(format!("prediction-{}.json", guest.file_name()));
        fs::write(&path, serde_json::to_vec_pretty(outcome)?)
            .with_context(|| format!("writing {}", path.display()))?;
        println!("{guest}, {}, accelerator {}", outcome.machine.cpu, booted.accelerator);
        if booted.accelerator == ub_report::host::EMULATED {
            println!("emulated: gains are not those of real hardware, errors may be");
        }
        println!("{}", table(outcome));
        println!("written to {}", path.display());
        judge(&guest, outcome, &mut verdict);
    }
    Ok(verdict)
}

fn table(outcome: &PredictionOutcome) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header(COLUMNS);
    for cell in &outcome.cells {
        table.add_row(row(cell));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn row(cell: &PredictionCell) -> Vec<String> {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let microseconds = |side: fn(&(f64, f64)) -> f64| {
        let ns: Vec<f64> = cell.launches.iter().flatten().map(side).collect();
        stats::median(&ns).map_or("-".into(), |ns| format!("{:.2}", ns / 1000.0))
    };
    let Interval { estimate, low, high } = cell.measured();
    let error = |said| cell.error(said).map_or_else(|| "not judged".into(), percent);
    vec![
        cell.workload.to_string(),
        percent(median(&cell.predictions, "ridden_share")),
        percent(cell.ridden_share),
        percent(median(&cell.predictions, "bound")),
        microseconds(|(native, _)| *native),
        microseconds(|(_, ub)| *ub),
        percent(median(&cell.estimates, "gain")),
        percent(median(&cell.predictions, "gain")),
        format!("{} [{}, {}]", percent(estimate), percent(low), percent(high)),
        error(&cell.estimates),
        error(&cell.predictions),
    ]
}

fn judge(guest: &Guest, outcome: &PredictionOutcome, verdict: &mut Verdict) {
    for cell in &outcome.cells {
        let name = format!("{guest}, {}", cell.workload);
        verdict.failures.extend(cell.faults.iter().map(|fault| format!("{name}: {fault}")));
        for (how, said) in
            [("estimated", &cell.estimates), ("predicted with rides timed", &cell.predictions)]
        {
            if cell.error(said).is_some_and(|error| error.abs() > PROMISED_ERROR) {
                let percent = |share: f64| format!("{:.0} %", 100.0 * share);
                let Interval { estimate, low, high } = cell.measured();
                verdict.shortfalls.push(format!(
                    "{name}: {how} {}, measured {} [{}, {}]",
                    percent(median(said, "gain")),
                    percent(estimate),
                    percent(low),
                    percent(high)
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Machine;
    use crate::plan::Workload;
    use ub_vm_lab::KernelVersion;

    fn cell(gain: f64, faults: &[&str]) -> PredictionCell {
        PredictionCell {
            estimates: vec![serde_json::json!({ "gain": 0.9 })],
            predictions: vec![
                serde_json::json!({ "gain": gain, "bound": 0.4, "ridden_share": 1.0 }),
            ],
            launches: vec![vec![(300.0, 200.0)]],
            ridden_share: 0.9,
            faults: faults.iter().map(|&fault| fault.into()).collect(),
            ..PredictionCell::new(Workload::Null)
        }
    }

    #[test]
    fn errors_beyond_the_promise_fall_short() {
        let outcome = PredictionOutcome {
            machine: Machine {
                kernel: "6.12.1".into(),
                cpu: "Some CPU".into(),
                cpus: 2,
                kpti: Some(true),
                vulnerabilities: [].into(),
            },
            cells: vec![cell(0.45, &[]), cell(0.2, &["lost"])],
        };
        let guest = Guest { kernel: KernelVersion::V6_12, kpti: true, smoke: false };
        let mut verdict = Verdict::default();
        judge(&guest, &outcome, &mut verdict);
        assert_eq!(verdict.failures, ["kernel 6.12, KPTI on, null: lost"]);
        assert_eq!(
            verdict.shortfalls,
            [
                "kernel 6.12, KPTI on, null: estimated 90 %, measured 50 % [50 %, 50 %]",
                "kernel 6.12, KPTI on, null: estimated 90 %, measured 50 % [50 %, 50 %]",
                "kernel 6.12, KPTI on, null: predicted with rides timed 20 %, measured 50 % [50 %, 50 %]",
            ]
        );
        let shown = table(&outcome).to_string();
        assert!(shown.contains("11.1 %") && shown.contains("-44.4 %"), "{shown}");
    }
}

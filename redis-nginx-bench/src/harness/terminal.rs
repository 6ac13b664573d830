//! A run as tables for the terminal.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use super::analysis::Figures;
use super::instructions;
use super::record::{Cell, Environment, MachineRecord, Record};
use crate::bootstrap::Interval;
use crate::outcome::top_exit;
use crate::report::LEVEL;

/// Draws all machines of `record`.
#[must_use]
pub fn draw(record: &Record) -> String {
    let mut text = String::new();
    for machine in &record.machines {
        match &machine.environment {
            Some(environment) => {
                let _ = writeln!(text, "{}\n{}", environment.label(), table(machine, environment));
                text.push_str(&remarks(machine));
                if let Some(table) = instructions::table(&machine.instructions) {
                    let _ = writeln!(text, "{}\n{table}", instructions::CAPTION);
                }
            }
            // A figure without its facts is not printed.
            None => {
                let _ = writeln!(text, "{}: nothing measured yet", machine.target);
            }
        }
        text.push('\n');
    }
    let _ = write!(
        text,
        "\"+-\" and the range of a gain: bootstrap, {:.0} % confidence, over all rounds. Gain is the \
         median over the rounds of ub's rate less the native one of the same round.",
        100.0 * LEVEL
    );
    text
}

/// The columns of which the figures depend on the time that passed.
const TIMED: [&str; 6] = [
    "native, module\nnot loaded, ops/s",
    "native ops/s",
    "ub ops/s",
    "gain",
    "CPU us/op",
    "p99 us",
];

fn table(machine: &MachineRecord, environment: &Environment) -> Table {
    let mut table = Table::new();
    let mark = if environment.is_emulated() { "\n(emulated)" } else { "" };
    let timed = TIMED.map(|name| format!("{name}{mark}"));
    let counted =
        ["calls/op", "transitions/op", "ridden", "top exit", "warm-up", "rounds", "results"];
    let header =
        std::iter::once("workload".to_owned()).chain(timed).chain(counted.map(str::to_owned));
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header(header);
    for cell in &machine.cells {
        if cell.rounds() > 0 {
            table.add_row(row(cell, &Figures::of(cell)));
        }
    }
    for column in table.column_iter_mut().skip(1).take(9) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn row(cell: &Cell, figures: &Figures) -> Vec<String> {
    let two = |values: [Option<f64>; 2]| match values {
        [Some(native), Some(ub)] => format!("{native:.1} / {ub:.1}"),
        [Some(native), None] => format!("{native:.1}"),
        _ => "-".into(),
    };
    let p99 = [0, 1].map(|index| {
        let known = figures.latency_us[index].iter();
        known.filter(|(percent, _)| *percent == 99).map(|(_, us)| *us).next()
    });
    let counted = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
    vec![
        cell.workload.to_string(),
        rate(figures.unloaded),
        rate(figures.native),
        rate(figures.ub),
        figures.gain.map_or("-".into(), percent),
        two(figures.cpu_us),
        two(p99),
        counted(figures.native_calls),
        counted(figures.ub_transitions()),
        figures.ridden_share().map_or("-".into(), |share| format!("{:.1} %", 100.0 * share)),
        figures.counts.as_ref().map_or("-".into(), |counts| top_exit(&counts.exits)),
        warm_up(figures),
        figures.rounds.to_string(),
        match (figures.results_match, figures.faults.is_empty()) {
            (true, _) => "match",
            (false, true) => "unchecked",
            (false, false) => "DIFFER",
        }
        .into(),
    ]
}

/// A rate with half the width of its interval.
pub(super) fn rate(interval: Option<Interval>) -> String {
    interval.map_or("-".into(), |Interval { estimate, low, high }| {
        let half = (high - low) / 2.0 / estimate;
        format!("{estimate:.0} +- {:.0} %", 100.0 * half)
    })
}

/// A ratio as the per cent by which it differs from 1, with its interval.
#[must_use]
pub fn percent(interval: Interval) -> String {
    let Interval { estimate, low, high } = interval;
    let [estimate, low, high] = [estimate, low, high].map(|ratio| 100.0 * (ratio - 1.0));
    format!("{estimate:+.1} % ({low:+.1} to {high:+.1})")
}

fn warm_up(figures: &Figures) -> String {
    let seconds = figures.settled.iter().map(|settled| settled.seconds).fold(0.0, f64::max);
    match figures.settled.iter().all(|settled| settled.stable) {
        _ if figures.settled.is_empty() => "-".into(),
        true => format!("stable, {seconds:.1} s"),
        false => format!("NOT STABLE, {seconds:.1} s"),
    }
}

/// What could not be measured, and what was wrong.
fn remarks(machine: &MachineRecord) -> String {
    let mut text = String::new();
    for cell in &machine.cells {
        if let Some(failure) = &cell.failure {
            let what = if failure.missing { "left out" } else { "FAILED" };
            let _ = writeln!(text, "{} {what}: {}", cell.workload, failure.error);
        }
        for fault in Figures::of(cell).faults {
            let _ = writeln!(text, "{}: {fault}", cell.workload);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::record::Failure;
    use crate::harness::record::tests::record;

    #[test]
    fn every_timed_column_of_an_emulated_machine_is_marked() {
        let mut record = record(3, 1.1);
        let text = draw(&record);
        assert_eq!(text.matches("(emulated)").count(), TIMED.len(), "{text}");
        for part in ["tcg", "KPTI on", "6.12.1", "Some CPU", "75.0 %", "poll 100 %", "match"] {
            assert!(text.contains(part), "{part} missing in\n{text}");
        }
        record.machines[0].environment.as_mut().unwrap().accelerator = "kvm".into();
        assert!(!draw(&record).contains("emulated"));
    }

    #[test]
    fn figures_without_facts_are_not_printed() {
        let mut record = record(3, 1.1);
        record.machines[0].environment = None;
        let text = draw(&record);
        assert!(text.contains("nothing measured yet") && !text.contains("redis"), "{text}");
    }

    #[test]
    fn failures_and_faults_are_told() {
        let mut record = record(1, 1.0);
        let cells = &mut record.machines[0].cells;
        cells[0].failure = Some(Failure { error: "it broke".into(), missing: false });
        cells[1].launches[0].ends[1].1.digest = "e".into();
        let text = draw(&record);
        assert!(text.contains("null FAILED: it broke") && text.contains("DIFFER"), "{text}");
    }

    #[test]
    fn gains_are_per_cent() {
        let interval = Interval { estimate: 1.105, low: 0.99, high: 1.2 };
        assert_eq!(percent(interval), "+10.5 % (-1.0 to +20.0)");
    }
}

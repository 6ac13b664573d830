//! The table that `make demo` ends with.

use std::collections::BTreeSet;

use comfy_table::{CellAlignment, Table, presets};

use crate::bootstrap::Interval;
use crate::cost::Settled;
use crate::outcome::{Machine, top_exit};
use crate::plan::Mode;
use crate::report::{Cell, Report};

const COLUMNS: [&str; 12] = [
    "kernel",
    "workload",
    "kpti",
    "mode",
    "ops/s",
    "ub/native",
    "cpu us/op",
    "syscalls/op",
    "ridden",
    "transitions/op",
    "top exit",
    "results",
];

/// Draws `report`. Figures of time are marked where the guest was emulated.
#[must_use]
pub fn draw(report: &Report) -> String {
    let emulated = is_emulated(report);
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header(COLUMNS);
    for cell in &report.cells {
        table.add_row(row(cell, emulated));
    }
    for column in 4..=9 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

fn row(cell: &Cell, emulated: bool) -> [String; COLUMNS.len()] {
    let mark = if emulated { " (emulated)" } else { "" };
    let per_op = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
    let ub = cell.mode == Mode::Ub;
    [
        upstream(&cell.kernel).to_owned(),
        cell.workload.to_string(),
        if cell.kpti { "on" } else { "off" }.into(),
        cell.mode.to_string(),
        format!("{:.0}{mark}", cell.ops_per_s),
        cell.speedup.map_or("-".into(), |speedup| format!("{}{mark}", times(&speedup))),
        format!("{:.2}{mark}", cell.cpu_us_per_op),
        per_op(cell.syscalls_per_op),
        if ub { format!("{:.1} %", cell.ridden_share * 100.0) } else { "-".into() },
        per_op(cell.transitions_per_op),
        top_exit(&cell.exits),
        if cell.results_match { "match" } else { "DIFFER" }.into(),
    ]
}

/// A ratio and its interval.
fn times(Interval { estimate, low, high }: &Interval) -> String {
    format!("{estimate:.2} [{low:.2}, {high:.2}]")
}

/// The upstream version at the front of a kernel release.
fn upstream(release: &str) -> &str {
    release.split(['+', '-']).next().unwrap_or(release)
}

/// The lines below the table: where nothing was to ride, and why; and how long
/// servers were loaded before the first figure, for what they do to be learned.
#[must_use]
pub fn notes(report: &Report) -> String {
    let place = |cell: &Cell| {
        format!("{}, KPTI {}", upstream(&cell.kernel), if cell.kpti { "on" } else { "off" })
    };
    let reasons: BTreeSet<String> = report
        .cells
        .iter()
        .filter_map(|cell| Some(format!("{}: {}\n", place(cell), cell.native_reason.as_ref()?)))
        .collect();
    let mark = if is_emulated(report) { " (emulated)" } else { "" };
    let servers = report
        .cells
        .iter()
        .filter(|cell| cell.native_reason.is_none() && !cell.workload.is_micro());
    let learned = servers.filter_map(|cell| {
        let (place, workload) = (place(cell), cell.workload);
        let Settled { seconds, stable, .. } = cell.settled?;
        let then = if stable { "" } else { ", and more was translated in the rounds" };
        Some(format!("{place}: {workload} was learned for {seconds:.0} s{mark}{then}\n"))
    });
    reasons.into_iter().chain(learned).collect()
}

/// Whether wall-clock figures of `report` come from an emulated CPU.
#[must_use]
pub fn is_emulated(report: &Report) -> bool {
    report.environment.accelerator == ub_report::host::EMULATED
}

/// The lines above the table: the facts that label every figure.
#[must_use]
pub fn environment(report: &Report, machine: &Machine) -> String {
    let facts = &report.environment;
    let mitigations = machine.mitigations();
    let mut text = format!(
        "accelerator {} | kernel {} | cpu {} | {} guest CPUs\nmitigations besides KPTI: {mitigations}",
        facts.accelerator, facts.kernel, facts.cpu, machine.cpus
    );
    if is_emulated(report) {
        text.push_str(
            "\nThe CPU is emulated: rates and ratios marked \"emulated\" say nothing about real \
             hardware. Counts do.",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::report::tests::outcome;
    use crate::report::{self, Environment, SCHEMA};

    fn report(accelerator: &str) -> Report {
        Report {
            schema: SCHEMA,
            environment: Environment {
                accelerator: accelerator.into(),
                kernel: "6.12.1".into(),
                cpu: "Some CPU".into(),
            },
            cells: report::cells(&outcome("x", "y"), true),
        }
    }

    #[test]
    fn every_rate_of_an_emulated_guest_is_marked() {
        let text = draw(&report("tcg"));
        assert_eq!(text.matches("200 (emulated)").count(), 2, "{text}");
        assert_eq!(text.matches("1.00 [1.00, 1.00] (emulated)").count(), 1, "{text}");
        assert_eq!(text.matches("0.50 (emulated)").count(), 2, "{text}");
        assert!(!draw(&report("kvm")).contains("emulated"));
    }

    #[test]
    fn rows_show_shares_and_mismatches() {
        let text = draw(&report("kvm"));
        for part in ["redis-get", "90.0 %", "0.200", "poll 100 %", "DIFFER", "match"] {
            assert!(text.contains(part), "{part} missing in\n{text}");
        }
    }

    #[test]
    fn where_nothing_was_to_ride_is_said_once() {
        let mut report = report("kvm");
        assert_eq!(notes(&report), "6.12.1, KPTI on: redis-get was learned for 12 s\n");
        for cell in &mut report.cells {
            cell.native_reason = Some("rides cost more".into());
        }
        assert_eq!(notes(&report), "6.12.1, KPTI on: rides cost more\n");
    }

    #[test]
    fn releases_are_cut_to_the_upstream_version() {
        assert_eq!(upstream("6.12.117+deb12-cloud-amd64"), "6.12.117");
        assert_eq!(upstream("6.1.0-56-cloud-amd64"), "6.1.0");
    }

    #[test]
    fn environment_names_the_four_facts_and_what_is_mitigated() {
        let mut machine = outcome("x", "x").machine;
        machine.vulnerabilities = BTreeMap::from([
            ("meltdown".into(), "Not affected".into()),
            ("mds".into(), "Mitigation: Clear CPU buffers".into()),
        ]);
        let text = environment(&report("tcg"), &machine);
        for part in ["tcg", "6.12.1", "Some CPU", "mds: Clear CPU buffers", "emulated"] {
            assert!(text.contains(part), "{part} missing in\n{text}");
        }
        assert!(!text.contains("meltdown"));
        assert!(!environment(&report("kvm"), &machine).contains("emulated"));
    }
}

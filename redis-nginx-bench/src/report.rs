//! `report.json`: what `make demo` writes for other programs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bootstrap::{self, Interval};
use crate::cost::Settled;
use crate::events::Sample;
use crate::outcome::{self, Outcome};
use crate::plan::{Mode, Workload};
use crate::stats;

/// Version of this layout; raised when a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;

/// Level of the intervals in reports.
pub const LEVEL: f64 = 0.95;

/// The report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What all cells have in common.
    pub environment: Environment,
    /// The figures.
    pub cells: Vec<Cell>,
}

/// What figures are labelled with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// "kvm" or "tcg". Under "tcg" every wall-clock figure is
    /// emulated: good for finding mistakes, no measure of speed.
    pub accelerator: String,
    /// Release of the kernel that the full set of cells ran on.
    pub kernel: String,
    /// CPU model, as the guest sees it.
    pub cpu: String,
}

/// One workload in one mode on one kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// What ran.
    pub workload: Workload,
    /// Whether page-table isolation was on, as the guest's kernel says.
    pub kpti: bool,
    /// Native or under `ub run`.
    pub mode: Mode,
    /// Kernel release.
    pub kernel: String,
    /// Median of the rounds.
    pub ops_per_s: f64,
    /// Throughput under ub in relation to the native one, 1.1 is 10 % faster:
    /// median over the rounds of what two loads next to each other did, and
    /// where that lies with a probability of 95 % ([`speedup`]). Absent in
    /// native cells and in reports of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speedup: Option<Interval>,
    /// CPU time of the measured program for each operation, in microseconds:
    /// median of the rounds. What `ub` itself takes is not in it.
    #[serde(default)]
    pub cpu_us_per_op: f64,
    /// How the translation came to rest before the rounds; absent where nothing
    /// is translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<Settled>,
    /// System calls of the measured program for each operation of the
    /// timed part.
    /// `null` if they were not counted.
    pub syscalls_per_op: Option<f64>,
    /// Share of the calls that were reached without leaving ring 0, 0 to 1.
    pub ridden_share: f64,
    /// Switches from ring 3 to ring 0 for system calls, for each operation.
    /// `null` if they were not counted.
    pub transitions_per_op: Option<f64>,
    /// Why rides ended, with counts; empty for native cells.
    pub exits: BTreeMap<String, u64>,
    /// Why nothing rode in a session, where riding was found not to pay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native_reason: Option<String>,
    /// What was computed is right and equals the native run of the same guest.
    pub results_match: bool,
}

/// The cells of one guest. `kpti` is the state that was asked for and that
/// the caller has compared with [`outcome::Machine::kpti`].
#[must_use]
pub fn cells(outcome: &Outcome, kpti: bool) -> Vec<Cell> {
    outcome.cells.iter().map(|cell| cell_of(outcome, cell, kpti)).collect()
}

fn cell_of(outcome: &Outcome, cell: &outcome::Cell, kpti: bool) -> Cell {
    let median = |figure: fn(&Sample) -> f64| {
        stats::median(&cell.rounds.iter().map(figure).collect::<Vec<_>>()).unwrap_or(0.0)
    };
    let counts = cell.counts.as_ref();
    let reference = outcome
        .cells
        .iter()
        .find(|other| other.workload == cell.workload && other.mode == Mode::Native);
    let results_match = cell.faults.is_empty()
        && !cell.rounds.is_empty()
        && reference.is_some_and(|native| {
            native.faults.is_empty() && !native.digest.is_empty() && native.digest == cell.digest
        });
    Cell {
        workload: cell.workload,
        kpti,
        mode: cell.mode,
        kernel: outcome.machine.kernel.clone(),
        ops_per_s: median(|sample| sample.round.ops_per_s()),
        speedup: reference
            .filter(|_| cell.mode == Mode::Ub)
            .and_then(|native| speedup(&[pairs(native, cell)])),
        cpu_us_per_op: median(|sample| stats::ratio(sample.cpu_ns, sample.round.operations) / 1e3),
        settled: cell.settled,
        syscalls_per_op: counts.map(outcome::Counts::syscalls_per_op),
        ridden_share: counts.map_or(0.0, outcome::Counts::ridden_share),
        transitions_per_op: counts.map(outcome::Counts::transitions_per_op),
        exits: match cell.mode {
            Mode::Native => BTreeMap::new(),
            Mode::Ub => counts.map(|counts| counts.exits.clone()).unwrap_or_default(),
        },
        native_reason: cell.session.as_ref().and_then(native_reason),
        results_match,
    }
}

/// What a session says about why nothing rode in it.
fn native_reason(session: &Value) -> Option<String> {
    Some(session.get("native_reason")?.as_str()?.to_owned())
}

/// The rates of the two loads of each round.
fn pairs(native: &outcome::Cell, ub: &outcome::Cell) -> Vec<(f64, f64)> {
    let rate = |sample: &Sample| sample.round.ops_per_s();
    let rounds = native.rounds.iter().zip(&ub.rounds);
    rounds.map(|(native, ub)| (rate(native), rate(ub))).collect()
}

/// How much faster ub is than native, from the rates (native, ub) of each round's
/// two loads, by pair of processes: the median, and where it lies with
/// probability [`LEVEL`]. `None` without rounds.
#[must_use]
pub fn speedup(pairs: &[Vec<(f64, f64)>]) -> Option<Interval> {
    bootstrap::interval(pairs, LEVEL, median_speedup)
}

/// The median of how much faster ub is than native.
pub(crate) fn median_speedup(pairs: &[(f64, f64)]) -> Option<f64> {
    stats::median(&pairs.iter().map(|(native, ub)| ub / native).collect::<Vec<_>>())
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::outcome::{Counts, Machine, Round};

    fn outcome_cell(mode: Mode, digest: &str) -> outcome::Cell {
        let ridden = if mode == Mode::Ub { 180 } else { 0 };
        let sample = |operations| Sample {
            round: Round { operations, seconds: 1.0 },
            cpu_ns: 500 * operations,
            user_ns: 0,
            latency: None,
        };
        let settled = Settled { loads: 6, seconds: 12.25, stable: true };
        outcome::Cell {
            settled: (mode == Mode::Ub).then_some(settled),
            rounds: [100, 300, 200].map(sample).to_vec(),
            counts: Some(Counts {
                operations: 100,
                syscalls: 200,
                ridden,
                rides: 20,
                exits: BTreeMap::from([("poll".into(), 20)]),
                ..Counts::default()
            }),
            digest: digest.into(),
            ..outcome::Cell::new(Workload::REDIS_GET, mode)
        }
    }

    /// A native and a ub cell with these digests.
    pub(crate) fn outcome(native: &str, ub: &str) -> Outcome {
        Outcome {
            machine: Machine {
                kernel: "6.12.1".into(),
                cpu: "Some CPU".into(),
                cpus: 2,
                kpti: Some(true),
                vulnerabilities: BTreeMap::new(),
            },
            cells: vec![outcome_cell(Mode::Native, native), outcome_cell(Mode::Ub, ub)],
        }
    }

    #[test]
    fn figures_come_from_rounds_and_counts() {
        let cells = cells(&outcome("x", "x"), true);
        let [native, ub] = &cells[..] else { panic!("two cells") };
        assert_eq!((native.ops_per_s, ub.ops_per_s), (200.0, 200.0));
        assert_eq!((native.syscalls_per_op, native.transitions_per_op), (Some(2.0), Some(2.0)));
        assert_eq!((ub.syscalls_per_op, ub.transitions_per_op), (Some(2.0), Some(0.2)));
        assert_eq!((native.ridden_share, ub.ridden_share), (0.0, 0.9));
        assert!(native.exits.is_empty());
        assert_eq!(ub.exits["poll"], 20);
        assert!(native.results_match && ub.results_match && ub.kpti);
        let none = Interval { estimate: 1.0, low: 1.0, high: 1.0 };
        assert_eq!((native.speedup, ub.speedup), (None, Some(none)));
    }

    #[test]
    fn rounds_are_compared_in_pairs() {
        // Twice as fast in every round, of which one was slow for both.
        let mut outcome = outcome("x", "x");
        for (round, operations) in [100, 10, 130].into_iter().enumerate() {
            outcome.cells[0].rounds[round].round.operations = operations;
            outcome.cells[1].rounds[round].round.operations = 2 * operations;
        }
        let speedup = cells(&outcome, true)[1].speedup.unwrap();
        assert_eq!(speedup, Interval { estimate: 2.0, low: 2.0, high: 2.0 });
    }

    #[test]
    fn results_match_only_if_everything_was_right() {
        let matches = |outcome: &Outcome| {
            cells(outcome, true).iter().map(|cell| cell.results_match).collect::<Vec<_>>()
        };
        assert_eq!(matches(&outcome("x", "y")), [true, false]);
        let mut faulty = outcome("x", "x");
        faulty.cells[1].faults.push("wrong".into());
        assert_eq!(matches(&faulty), [true, false]);
        let mut faulty = outcome("x", "x");
        faulty.cells[0].faults.push("wrong".into());
        assert_eq!(matches(&faulty), [false, false]);
        assert_eq!(matches(&outcome("", "")), [false, false]);
        let mut alone = outcome("x", "x");
        alone.cells.remove(0);
        assert_eq!(matches(&alone), [false]);
    }

    #[test]
    fn layout_is_the_published_one() {
        let report = Report {
            schema: SCHEMA,
            environment: Environment {
                accelerator: "tcg".into(),
                kernel: "6.12.1".into(),
                cpu: "Some CPU".into(),
            },
            cells: cells(&outcome("x", "x"), false).split_off(1),
        };
        let value: Value = serde_json::to_value(&report).unwrap();
        assert_eq!(
            value,
            json!({
                "schema": 1,
                "environment": {"accelerator": "tcg", "kernel": "6.12.1", "cpu": "Some CPU"},
                "cells": [{
                    "workload": "redis-get",
                    "kpti": false,
                    "mode": "ub",
                    "kernel": "6.12.1",
                    "ops_per_s": 200.0,
                    "speedup": {"estimate": 1.0, "low": 1.0, "high": 1.0},
                    "cpu_us_per_op": 0.5,
                    "settled": {"loads": 6, "seconds": 12.25, "stable": true},
                    "syscalls_per_op": 2.0,
                    "ridden_share": 0.9,
                    "transitions_per_op": 0.2,
                    "exits": {"poll": 20},
                    "results_match": true,
                }],
            })
        );
        assert_eq!(serde_json::from_value::<Report>(value).unwrap(), report);
    }
}

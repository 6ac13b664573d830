//! What the figures must be, and what they should be.

use std::fmt;

use crate::bootstrap::Interval;
use crate::events::Work;
use crate::outcome::Outcome;
use crate::plan::{Mode, Plan, Workload};
use crate::report::{Cell, Report};

/// What is wrong with a report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Wrong or missing results. Nothing else counts when there is one.
    pub failures: Vec<String>,
    /// Figures below what SPECIFICATION.md promises.
    pub shortfalls: Vec<String>,
}

/// Least speed of any program, as a share of the native one.
pub(super) const PROMISED_SPEED: f64 = 0.98;

/// Share of ridden calls that each workload must exceed, where one is promised.
fn promised_share(workload: Workload) -> Option<f64> {
    match workload {
        Workload::Null | Workload::Read { .. } => Some(0.95),
        Workload::Redis { .. } => Some(0.5),
        _ => None,
    }
}

/// Whether it is promised that the workload is faster under ub, even emulated.
fn promised_faster(workload: Workload) -> bool {
    [Workload::Null, Workload::read(64)].contains(&workload)
}

impl Verdict {
    /// Judges the cells of `report`.
    #[must_use]
    pub fn of(report: &Report) -> Self {
        let mut verdict = Self::default();
        for cell in &report.cells {
            let name = name(cell);
            if !cell.results_match {
                verdict.failures.push(format!("{name}: results differ from the native run"));
            }
            if cell.mode == Mode::Native {
                continue;
            }
            // Slower with confidence: a median of few rounds may be low by chance.
            if let Some(Interval { estimate, high, .. }) = cell.speedup
                && high < PROMISED_SPEED
            {
                verdict
                    .shortfalls
                    .push(format!("{name}: {estimate:.2} times native, at most {high:.2}"));
            }
            if cell.native_reason.is_some() {
                continue;
            }
            if let Some(promised) = promised_share(cell.workload)
                && cell.ridden_share <= promised
            {
                let share = cell.ridden_share;
                verdict
                    .shortfalls
                    .push(format!("{name}: ridden share {share:.3}, not over {promised}"));
            }
            if promised_faster(cell.workload)
                && let Some(Interval { estimate, low, .. }) = cell.speedup
                && low <= 1.0
            {
                verdict.shortfalls.push(format!("{name}: {estimate:.2} times native, not faster"));
            }
        }
        verdict
    }

    /// Adds what the guest itself found wrong, and what is missing of `plan`.
    pub fn add_guest(&mut self, guest: &str, plan: &Plan, outcome: &Outcome) {
        for workload in &plan.workloads {
            let work = Work { workload: *workload, launch: 0, rounds: plan.rounds };
            for mode in &work.modes(plan) {
                let found = outcome
                    .cells
                    .iter()
                    .any(|cell| cell.workload == *workload && cell.mode == *mode);
                if !found {
                    self.failures.push(format!("{guest}: {workload} {mode} was not measured"));
                }
            }
        }
        for cell in &outcome.cells {
            for fault in &cell.faults {
                self.failures.push(format!("{guest}: {} {}: {fault}", cell.workload, cell.mode));
            }
        }
    }
}

fn name(cell: &Cell) -> String {
    let kpti = if cell.kpti { "on" } else { "off" };
    format!("{} {} on {} with KPTI {kpti}", cell.workload, cell.mode, cell.kernel)
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failure in &self.failures {
            writeln!(f, "FAILED: {failure}")?;
        }
        for shortfall in &self.shortfalls {
            writeln!(f, "short of the promise: {shortfall}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::plan;
    use crate::report::tests::outcome;
    use crate::report::{self, Environment, SCHEMA};

    fn report() -> Report {
        Report {
            schema: SCHEMA,
            environment: Environment {
                accelerator: "tcg".into(),
                kernel: "6.12.1".into(),
                cpu: "Some CPU".into(),
            },
            cells: report::cells(&outcome("x", "x"), true),
        }
    }

    #[test]
    fn a_good_report_has_no_complaints() {
        assert_eq!(Verdict::of(&report()), Verdict::default());
        assert_eq!(Verdict::default().to_string(), "");
    }

    #[test]
    fn differing_results_fail() {
        let mut report = report();
        report.cells[1].results_match = false;
        let verdict = Verdict::of(&report);
        assert_eq!(verdict.failures.len(), 1);
        assert!(verdict.to_string().starts_with("FAILED: redis-get ub on 6.12.1 with KPTI on"));
    }

    #[test]
    fn low_shares_and_slow_micro_workloads_fall_short() {
        let mut report = report();
        report.cells[1].ridden_share = 0.5;
        assert_eq!(Verdict::of(&report).shortfalls.len(), 1);
        for cell in &mut report.cells {
            cell.workload = Workload::Null;
        }
        // Share not over 0.95, and as fast as native.
        assert_eq!(Verdict::of(&report).shortfalls.len(), 2);
        report.cells[1].ridden_share = 0.96;
        report.cells[1].speedup = Some(Interval { estimate: 1.1, low: 1.05, high: 1.2 });
        assert_eq!(Verdict::of(&report), Verdict::default());
    }

    #[test]
    fn nothing_may_be_slower_and_what_is_left_alone_need_not_ride() {
        let (by_chance, slower) = (
            Interval { estimate: 0.9, low: 0.8, high: 1.1 },
            Interval { estimate: 0.9, low: 0.85, high: 0.97 },
        );
        let mut report = report();
        for native_reason in [None, Some("rides cost more".into())] {
            report.cells[1].native_reason = native_reason;
            report.cells[1].speedup = Some(by_chance);
            assert_eq!(Verdict::of(&report), Verdict::default());
            report.cells[1].speedup = Some(slower);
            assert_eq!(Verdict::of(&report).shortfalls.len(), 1);
            report.cells[1].ridden_share = 0.0;
        }
    }

    #[test]
    fn faults_and_missing_cells_fail() {
        let mut plan = plan();
        plan.workloads = vec![Workload::REDIS_GET, Workload::Null];
        let mut outcome = outcome("x", "x");
        outcome.cells[1].faults.push("key 3 is gone".into());
        let mut verdict = Verdict::default();
        verdict.add_guest("kernel 6.12", &plan, &outcome);
        assert_eq!(verdict.failures.len(), 3, "{verdict}");
        assert!(verdict.to_string().contains("redis-get ub: key 3 is gone"));
        assert!(verdict.to_string().contains("null native was not measured"));
    }
}

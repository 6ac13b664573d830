//! What changed between two runs.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};

use super::analysis::pairs;
use super::record::{Cell, MachineRecord, Record, Target};
use super::terminal::percent;
use crate::bootstrap::{self, Interval};
use crate::plan::{Mode, Workload};
use crate::report::median_speedup;
use crate::stats::median;

/// Probability that any verdict of a comparison without a difference is
/// wrong. It is shared among all rows (Bonferroni), as among a hundred
/// independent 95 % intervals five would be wrong.
const FAMILY_ERROR: f64 = 0.05;
/// Differences below that are none: nobody would act on them.
const NEGLIGIBLE: f64 = 0.01;
/// Rounds below which the bootstrap says nothing.
const FEWEST_ROUNDS: usize = 4;

/// What became of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The whole interval is above.
    Faster,
    /// The whole interval is below.
    Slower,
    /// The interval contains no difference.
    NoDifference,
    /// Too few rounds for a verdict.
    TooFewRounds,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Faster => "faster",
            Self::Slower => "SLOWER",
            Self::NoDifference => "no difference",
            Self::TooFewRounds => "too few rounds",
        })
    }
}

/// A cell that both runs have.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Where.
    pub target: Target,
    /// What.
    pub workload: Workload,
    /// What the verdict is about: ub in relation to native, later in relation to
    /// earlier. Where only native was measured, its rate.
    pub change: Interval,
    /// The later native rate in relation to the earlier one: how much the
    /// machine itself changed.
    pub native: Option<f64>,
    /// The verdict.
    pub verdict: Verdict,
}

/// Two runs side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The cells.
    pub rows: Vec<Row>,
    /// The machines, and how they differ.
    pub notes: Vec<String>,
}

impl Comparison {
    /// Compares two runs.
    #[must_use]
    pub fn of(old: &Record, new: &Record) -> Self {
        let machines: Vec<(&MachineRecord, &MachineRecord)> = old
            .machines
            .iter()
            .filter_map(|machine| {
                let same = |other: &&MachineRecord| other.target == machine.target;
                Some((machine, new.machines.iter().find(same)?))
            })
            .collect();
        let cells: Vec<(&Target, &Cell, &Cell)> = machines
            .iter()
            .flat_map(|(old, new)| {
                old.cells.iter().filter_map(|cell| {
                    let same = |other: &&Cell| other.workload == cell.workload;
                    let other = new.cells.iter().find(same)?;
                    let both = cell.rounds() > 0 && other.rounds() > 0;
                    both.then_some((&old.target, cell, other))
                })
            })
            .collect();
        let level = 1.0 - FAMILY_ERROR / cells.len().max(1) as f64;
        let rows =
            cells.iter().filter_map(|(target, old, new)| row(target, old, new, level)).collect();
        Self { rows, notes: machines.iter().flat_map(|(old, new)| notes(old, new)).collect() }
    }

    /// Whether anything became slower.
    #[must_use]
    pub fn is_slower(&self) -> bool {
        self.rows.iter().any(|row| row.verdict == Verdict::Slower)
    }
}

fn row(target: &Target, old: &Cell, new: &Cell, level: f64) -> Option<Row> {
    let (old_pairs, new_pairs) = (pairs(old), pairs(new));
    let ratio = |new: Option<f64>, old: Option<f64>| Some(new? / old?);
    let change = if old_pairs.is_empty() || new_pairs.is_empty() {
        bootstrap::interval_of_two(&native(new), &native(old), level, |new, old| {
            ratio(median(new), median(old))
        })
    } else {
        bootstrap::interval_of_two(&new_pairs, &old_pairs, level, |new, old| {
            ratio(median_speedup(new), median_speedup(old))
        })
    }?;
    let rounds = old.rounds().min(new.rounds());
    Some(Row {
        target: target.clone(),
        workload: old.workload,
        change,
        native: ratio(median(&native(new).concat()), median(&native(old).concat())),
        verdict: verdict(&change, rounds),
    })
}

/// The native rates, by pair of processes.
fn native(cell: &Cell) -> Vec<Vec<f64>> {
    cell.launches
        .iter()
        .map(|launch| launch.samples(Mode::Native).map(|s| s.round.ops_per_s()).collect())
        .collect()
}

fn verdict(change: &Interval, rounds: usize) -> Verdict {
    if rounds < FEWEST_ROUNDS {
        return Verdict::TooFewRounds;
    }
    if change.low > 1.0 && change.estimate > 1.0 + NEGLIGIBLE {
        Verdict::Faster
    } else if change.high < 1.0 && change.estimate < 1.0 - NEGLIGIBLE {
        Verdict::Slower
    } else {
        Verdict::NoDifference
    }
}

fn notes(old: &MachineRecord, new: &MachineRecord) -> Vec<String> {
    let (Some(before), Some(now)) = (&old.environment, &new.environment) else {
        return vec![];
    };
    let mut notes = vec![format!("{}: {}", old.target, now.label())];
    if before != now {
        notes.push(format!(
            "{}: ANOTHER MACHINE before, so differences may not be the program's: {}",
            old.target,
            before.label()
        ));
    }
    notes
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY).set_header([
            "machine",
            "workload",
            "change of ub/native",
            "native alone",
            "verdict",
        ]);
        for row in &self.rows {
            table.add_row([
                row.target.to_string(),
                row.workload.to_string(),
                percent(row.change),
                row.native.map_or("-".into(), |ratio| format!("{:+.1} %", 100.0 * (ratio - 1.0))),
                row.verdict.to_string(),
            ]);
        }
        for column in table.column_iter_mut().skip(2).take(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{table}")?;
        write!(
            f,
            "A verdict needs the whole interval on one side of no change and at least {:.0} %. The \
             intervals are so wide that all of them hold with {:.0} % confidence. How much faster \
             the machine itself became cancels out, as ub is compared with native of the same round.",
            100.0 * NEGLIGIBLE,
            100.0 * (1.0 - FAMILY_ERROR)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::record::tests::record;

    fn verdicts(old: &Record, new: &Record) -> Vec<Verdict> {
        Comparison::of(old, new).rows.iter().map(|row| row.verdict).collect()
    }

    #[test]
    fn a_slower_ub_is_found_and_only_that() {
        let (old, same) = (record(8, 1.1), record(8, 1.1));
        assert_eq!(verdicts(&old, &same), [Verdict::NoDifference; 2]);
        assert_eq!(verdicts(&old, &record(8, 1.0)), [Verdict::Slower; 2]);
        assert_eq!(verdicts(&old, &record(8, 1.2)), [Verdict::Faster; 2]);
        assert!(Comparison::of(&old, &record(8, 1.0)).is_slower());
    }

    #[test]
    fn a_slower_machine_is_no_slower_ub() {
        let (old, mut new) = (record(8, 1.1), record(8, 1.1));
        for cell in &mut new.machines[0].cells {
            for (_, sample) in cell.launches.iter_mut().flat_map(|l| l.rounds.iter_mut().flatten())
            {
                sample.round.seconds *= 2.0;
            }
        }
        let comparison = Comparison::of(&old, &new);
        assert_eq!(comparison.rows[0].verdict, Verdict::NoDifference);
        assert!((comparison.rows[0].native.unwrap() - 0.5).abs() < 0.05);
    }

    #[test]
    fn few_rounds_give_no_verdict_and_tiny_changes_none_either() {
        assert_eq!(verdicts(&record(3, 1.1), &record(8, 0.5)), [Verdict::TooFewRounds; 2]);
        assert_eq!(verdicts(&record(8, 1.1), &record(8, 1.105)), [Verdict::NoDifference; 2]);
    }

    #[test]
    fn another_machine_is_said() {
        let (old, mut new) = (record(8, 1.1), record(8, 1.1));
        new.machines[0].environment.as_mut().unwrap().machine.cpu = "Other CPU".into();
        let text = Comparison::of(&old, &new).to_string();
        assert!(text.contains("ANOTHER MACHINE") && text.contains("no difference"), "{text}");
    }

    #[test]
    fn runs_without_common_cells_have_no_rows() {
        let mut new = record(8, 1.1);
        new.machines[0].target = Target::Here;
        assert!(Comparison::of(&record(8, 1.1), &new).rows.is_empty());
    }
}

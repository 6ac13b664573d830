//! What the counts of one run would mean on the CPU of another.
//!
//! Counts hold anywhere, times do not: so counts come from guests, times from
//! a native run on the real CPU, and what follows from both is a projection,
//! shown apart from everything measured.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};

use super::analysis::Figures;
use super::record::{Environment, MachineRecord, Record};
use crate::plan::Workload;

/// The formula, as it is printed.
const FORMULA: &str = "projected gain = t / (t - n * s + r * u * (q - 1)) - 1";

/// The inputs that are the same for all workloads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Inputs {
    /// Cost of one transition, in nanoseconds, if it was given.
    pub switch_ns: Option<f64>,
    /// How many times as long translated code takes as native code.
    pub translated_ratio: f64,
}

/// One workload.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Where the counts come from.
    pub counted: String,
    /// The workload.
    pub workload: Workload,
    /// CPU time per operation, natively, in nanoseconds: t.
    pub native_ns: f64,
    /// Of it, in user mode: u.
    pub user_ns: f64,
    /// Transitions saved per operation: n.
    pub saved: f64,
    /// Share of the calls that were ridden: r.
    pub ridden: f64,
    /// What follows: 0.1 is 10 % more operations per CPU second.
    pub gain: f64,
}

/// A projection.
#[derive(Debug, Clone, PartialEq)]
pub struct Projection {
    inputs: Inputs,
    switch_ns: f64,
    timed_on: String,
    counted_on: Vec<String>,
    /// The workloads that both runs have.
    pub rows: Vec<Row>,
}

impl Projection {
    /// Projects the counts of `counts` to the machine on which `here` was
    /// measured. `None` if `here` has no facts or nothing tells what a
    /// transition costs there.
    #[must_use]
    pub fn of(counts: &Record, here: &Record, inputs: Inputs) -> Option<Self> {
        let timed = here.machines.iter().find(|machine| machine.environment.is_some())?;
        let null = native_times(timed, Workload::Null).map(|(total, _)| total);
        let switch_ns = inputs.switch_ns.or(null)?;
        let rows = counts
            .machines
            .iter()
            .flat_map(|machine| machine.cells.iter().map(move |cell| (machine, cell)))
            // What the cost of a switch was taken from says nothing about it.
            .filter(|(_, cell)| inputs.switch_ns.is_some() || cell.workload != Workload::Null)
            .filter_map(|(machine, cell)| {
                let (native_ns, user_ns) = native_times(timed, cell.workload)?;
                let figures = Figures::of(cell);
                let ridden = figures.ridden_share()?;
                let saved = figures.native_calls? - figures.ub_transitions()?;
                let time = native_ns - saved * switch_ns
                    + ridden * user_ns * (inputs.translated_ratio - 1.0);
                let counted = machine.target.to_string();
                let workload = cell.workload;
                // A negative time means that the inputs do not fit together.
                (time > 0.0).then(|| Row {
                    counted,
                    workload,
                    native_ns,
                    user_ns,
                    saved,
                    ridden,
                    gain: native_ns / time - 1.0,
                })
            })
            .collect();
        let facts = |machine: &MachineRecord| machine.environment.as_ref().map(Environment::label);
        Some(Self {
            inputs,
            switch_ns,
            timed_on: facts(timed)?,
            counted_on: counts.machines.iter().filter_map(facts).collect(),
            rows,
        })
    }
}

/// Native CPU time per operation and its user part, in nanoseconds.
fn native_times(machine: &MachineRecord, workload: Workload) -> Option<(f64, f64)> {
    let cell = machine.cells.iter().find(|cell| cell.workload == workload)?;
    let figures = Figures::of(cell);
    Some((figures.cpu_us[0]? * 1e3, figures.user_us? * 1e3))
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "PROJECTION, nothing of it measured: {FORMULA}")?;
        writeln!(
            f,
            "t, u: native CPU time per operation and its user part, measured: {}",
            self.timed_on
        )?;
        for counted in &self.counted_on {
            writeln!(
                f,
                "n, r: transitions saved per operation and share ridden, counted: {counted}"
            )?;
        }
        let source = match self.inputs.switch_ns {
            Some(_) => "given with --switch-cost",
            None => {
                "CPU time of a null call where t was measured, which includes the call's own work"
            }
        };
        writeln!(f, "s = {:.0} ns, cost of a transition: {source}", self.switch_ns)?;
        writeln!(
            f,
            "q = {:.2}, translated against native code (--translated-ratio; make bench-code measures it)",
            self.inputs.translated_ratio
        )?;
        writeln!(f, "Not in it: what a ride itself costs in ring 0. So this is an upper bound.")?;
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY).set_header([
            "counted in",
            "workload",
            "t (ns)",
            "u (ns)",
            "n",
            "r",
            "PROJECTED gain",
        ]);
        for row in &self.rows {
            table.add_row([
                row.counted.clone(),
                row.workload.to_string(),
                format!("{:.0}", row.native_ns),
                format!("{:.0}", row.user_ns),
                format!("{:.3}", row.saved),
                format!("{:.3}", row.ridden),
                format!("{:+.1} %", 100.0 * row.gain),
            ]);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        write!(f, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::record::Target;
    use crate::harness::record::tests::record;

    fn here() -> Record {
        let mut here = record(3, 1.0);
        here.machines[0].target = Target::Here;
        for cell in &mut here.machines[0].cells {
            let samples = cell.launches.iter_mut().flat_map(|l| l.rounds.iter_mut().flatten());
            for (_, sample) in samples {
                // 5,000 ns an operation, of which 1,000 in user mode.
                sample.cpu_ns = sample.round.operations * 5_000;
                sample.user_ns = sample.round.operations * 1_000;
            }
        }
        here
    }

    #[test]
    fn the_formula_is_the_printed_one() {
        let inputs = Inputs { switch_ns: Some(200.0), translated_ratio: 1.2 };
        let projection = Projection::of(&record(3, 1.1), &here(), inputs).unwrap();
        // n = 1.5, r = 0.75: 5000 - 300 + 150.
        let expected = 5000.0 / 4850.0 - 1.0;
        assert_eq!(projection.rows.len(), 2);
        assert!((projection.rows[0].gain - expected).abs() < 1e-9, "{:?}", projection.rows);
        let text = projection.to_string();
        for part in ["PROJECTION", FORMULA, "200 ns", "--switch-cost", "1.20", "Some CPU"] {
            assert!(text.contains(part), "{part} missing in {text}");
        }
    }

    #[test]
    fn the_null_call_is_the_switch_unless_told() {
        let inputs = Inputs { switch_ns: None, translated_ratio: 1.0 };
        let projection = Projection::of(&record(3, 1.1), &here(), inputs).unwrap();
        // More than the whole time would be saved: no projection from that.
        assert!(projection.rows.is_empty() && projection.to_string().contains("5000 ns"));
    }
}

//! Instructions per operation, split by where they are executed.
//!
//! Counted in guests under QEMU's `-icount`, where they are the same every
//! time. A session that only watches says how many there are between the calls,
//! where the switch out of the kernel and back is part. What the switch is made of
//! is known from [`Workload::Bare`], whose own code for each call is four
//! instructions.

use comfy_table::{CellAlignment, Table, presets};

use crate::cost::{CostCell, CostRun, Spread, Way};
use crate::plan::Workload;
use crate::workload::Storage;

/// Instructions of [`Workload::Bare`] for each call.
const BARE_GAP: f64 = 4.0;

/// What is to be known of the figures.
pub const CAPTION: &str = "Guest instructions per operation, counted under QEMU's -icount on one \
                           CPU, every gap ridden (--eager). They say how much code is executed, \
                           not how long that takes.";

/// The workloads that can be counted on one CPU, with [`Workload::Bare`] first.
#[must_use]
pub fn countable(workloads: &[Workload]) -> Vec<Workload> {
    let counts = |workload: &&Workload| {
        let on_disk = matches!(
            workload,
            Workload::Read { from: Storage::Disk, .. } | Workload::Ring { from: Storage::Disk, .. }
        );
        // A receiver of packets needs the sender beside it.
        let beside = matches!(workload, Workload::Packets { .. });
        !on_disk && !beside && !workload.is_context() && **workload != Workload::Bare
    };
    std::iter::once(Workload::Bare).chain(workloads.iter().filter(counts).copied()).collect()
}

/// Instructions per operation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Split {
    /// In user mode; under ub also those of rides.
    pub user: f64,
    /// In system calls, and whatever else the kernel does for the program.
    pub kernel: f64,
    /// On the way out of the kernel and into it again.
    pub switch: f64,
    /// All of them, and how far the runs lie apart.
    pub total: Spread,
}

impl Split {
    /// That of `workload` run in one `way`, which is watched or ub: without a session
    /// only the total is known.
    #[must_use]
    pub fn of(cells: &[CostCell], workload: Workload, way: Way) -> Option<Self> {
        let find =
            |workload, way| cells.iter().find(|cell| cell.workload == workload && cell.way == way);
        let bare = find(Workload::Bare, Way::Watched)?;
        let per_call = bare.figure(CostRun::user_side)?.mean / bare.counts().syscalls_per_op();
        let cell = find(workload, way)?;
        let total = cell.figure(|run| Some(run.total()))?;
        let between = cell.figure(CostRun::user_side)?.mean;
        let switch = (per_call - BARE_GAP) * cell.counts().transitions_per_op();
        Some(Self { user: between - switch, kernel: total.mean - between, switch, total })
    }
}

/// The table for the terminal; `None` if nothing was counted.
#[must_use]
pub fn table(cells: &[CostCell]) -> Option<Table> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header([
        "workload",
        "run",
        "instructions/op",
        "user",
        "kernel",
        "switch",
        "between the runs",
    ]);
    for cell in cells {
        let total = cell.figure(|run| Some(run.total()));
        let split = Split::of(cells, cell.workload, cell.way);
        let count = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.1}"));
        table.add_row([
            cell.workload.to_string(),
            name(cell.way).to_owned(),
            count(total.map(|total| total.mean)),
            count(split.map(|split| split.user)),
            count(split.map(|split| split.kernel)),
            count(split.map(|split| split.switch)),
            total.map_or("-".into(), |total| format!("{:.2} %", 100.0 * total.spread)),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    (!cells.is_empty()).then_some(table)
}

/// What a way of running is called in reports.
#[must_use]
pub fn name(way: Way) -> &'static str {
    match way {
        Way::Native => "native",
        Way::Watched => "native, counted by a session",
        Way::Ub => "ub",
        Way::Plain => "ub, let go where rides do not pay",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Counts, Gaps};

    fn cell(workload: Workload, way: Way, cycles: u64, cpu_ns: u64, ridden: u64) -> CostCell {
        let counts = Counts {
            operations: 10,
            syscalls: 20,
            ridden,
            gaps: [("native".to_owned(), Gaps { count: 20, cycles })].into(),
            ..Counts::default()
        };
        let run = CostRun {
            requests: 10,
            cpu_ns,
            counts: Some(counts),
            settled: None,
            report: None,
            digest: String::new(),
            faults: vec![],
        };
        CostCell { workload, way, runs: vec![run] }
    }

    #[test]
    fn the_switch_is_what_a_bare_loop_has_beside_its_own_code() {
        let cells = [
            // 104 instructions between two calls: 100 are the switch.
            cell(Workload::Bare, Way::Watched, 20 * 104, 10_000, 0),
            cell(Workload::Null, Way::Watched, 20 * 150, 10_000, 0),
            cell(Workload::Null, Way::Ub, 20 * 80, 9_000, 15),
        ];
        let native = Split::of(&cells, Workload::Null, Way::Watched).unwrap();
        assert_eq!((native.user, native.switch, native.kernel), (100.0, 200.0, 700.0));
        let ub = Split::of(&cells, Workload::Null, Way::Ub).unwrap();
        assert_eq!((ub.user, ub.switch, ub.kernel), (110.0, 50.0, 740.0));
        assert_eq!(Split::of(&cells[1..], Workload::Null, Way::Ub), None);
        assert!(table(&cells).unwrap().to_string().contains("50.0"));
        assert!(table(&[]).is_none());
    }

    #[test]
    fn one_cpu_is_enough_for_what_is_counted() {
        let all = super::super::catalogue::quick();
        let counted = countable(&all);
        assert_eq!(counted[0], Workload::Bare);
        assert!(counted.len() > 5 && counted.len() < all.len());
        assert!(counted[1..].iter().all(|workload| !workload.is_context()));
    }
}

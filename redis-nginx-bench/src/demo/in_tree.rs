//! `ub-demo --in-tree FILE`: the hooks of `kernel-patch/linux-6.12` beside those
//! for stock kernels, counted in guests under QEMU's `-icount`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use ub_vm_lab::Variant;

use super::boot::{Booted, Laboratory, Purpose};
use super::options::{Guest, Options};
use super::user_cost;
use super::verdict::Verdict;
use crate::cost::{CostOutcome, CostRun, Way};
use crate::plan::{Mode, Plan, Workload};

/// Less than this, and what a call costs in a session says nothing of rides.
const LEAST_SHARE: f64 = 0.5;

/// A kernel with the hooks that its modules use.
struct Column {
    title: &'static str,
    kernel: Option<Variant>,
    /// For the modules' make.
    settings: &'static [&'static str],
}

const COLUMNS: [Column; 3] = [
    Column { title: "Debian's kernel, ftrace hook", kernel: None, settings: &[] },
    Column {
        title: "patched kernel, ftrace hook",
        kernel: Some(Variant::InTree),
        settings: &["UB_HOOKS=stock"],
    },
    Column { title: "patched kernel, its own hooks", kernel: Some(Variant::InTree), settings: &[] },
];

/// What came of one column.
struct Counted {
    kernel: String,
    cpu: String,
    /// Without any module.
    bare: CostOutcome,
    loaded: CostOutcome,
}

/// Boots two guests for each column and writes the table to `file`.
pub(super) fn run(options: &Options, file: &Path) -> Result<Verdict> {
    let guest = Guest { kernel: options.kernel, kpti: false, smoke: false };
    let mut plan = user_cost::plan(options, &guest);
    if options.workloads.is_empty() {
        plan.workloads = vec![Workload::Null, Workload::REDIS_GET];
    }
    plan.ways = Way::RIDE.to_vec();
    let bare = Plan {
        modes: vec![Mode::Native],
        ways: vec![Way::Native],
        workloads: vec![Workload::Null],
        ..plan.clone()
    };
    let mut verdict = Verdict::default();
    let mut counted = Vec::new();
    for column in &COLUMNS {
        tracing::info!("{}", column.title);
        let lab = Laboratory::prepare(options)?.on(column.kernel, column.settings);
        let count = |plan| -> Result<CostOutcome> {
            let booted: Booted<_> = lab.boot(&guest, plan, Purpose::CountInstructions)?;
            Ok(booted.outcome)
        };
        let (bare, loaded) = (count(&bare)?, count(&plan)?);
        verdict.failures.extend(
            user_cost::wrong_results(&loaded)
                .into_iter()
                .map(|failure| format!("{}: {failure}", column.title)),
        );
        let machine = &loaded.machine;
        counted.push(Counted {
            kernel: machine.kernel.clone(),
            cpu: machine.cpu.clone(),
            bare,
            loaded,
        });
    }
    let text = page(&plan.workloads, &counted);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    fs::write(file, &text).with_context(|| format!("writing {}", file.display()))?;
    print!("{text}");
    Ok(verdict)
}

fn page(workloads: &[Workload], counted: &[Counted]) -> String {
    let mut out = String::from(
        "# The in-tree variant beside the module for stock kernels\n\n\
         Made by `make results-intree`, not by hand. The same module source, built for the hooks of\n\
         `kernel-patch/linux-6.12` and for stock kernels. The column in the middle tells what the\n\
         hooks change from what the kernels' configurations do.\n\n",
    );
    let cpu = counted.first().map_or("?", |column| column.cpu.as_str());
    let _ = writeln!(
        out,
        "Counts of guest instructions, *emulated*: accelerator tcg with -icount, KPTI off, CPU {cpu}.\n\
         They tell how much code is executed, not how fast a CPU does it: neither the switch between\n\
         user mode and kernel nor what mitigations add to it is in them. In sessions every gap is timed\n\
         (`--time-gaps`), also where nothing rides, which other sessions do not pay for.\n"
    );
    let line = |out: &mut String, cells: Vec<String>| {
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    };
    let titles = COLUMNS.iter().zip(counted);
    let titles = titles.map(|(column, counted)| format!("{} ({})", column.title, counted.kernel));
    line(&mut out, std::iter::once("instructions".to_owned()).chain(titles).collect());
    line(&mut out, vec!["---".to_owned(); counted.len() + 1]);
    let mut row = |name: String, figure: &dyn Fn(&Counted) -> String| {
        line(&mut out, std::iter::once(name).chain(counted.iter().map(figure)).collect());
    };
    row("null call, no module loaded".to_owned(), &|column| {
        figure(&column.bare, Workload::Null, Way::Native)
    });
    for workload in workloads {
        for (way, text) in [
            (Way::Native, "modules loaded, no session"),
            (Way::Watched, "in a session, nothing translated"),
            (Way::Ub, "riding"),
        ] {
            row(format!("{workload}, {text}"), &|column| figure(&column.loaded, *workload, way));
        }
        row(format!("{workload}, share of calls ridden"), &|column| {
            let cell = user_cost::find(&column.loaded, *workload, Way::Ub);
            cell.map_or("-".to_owned(), |cell| {
                format!("{:.1} %", 100.0 * cell.counts().ridden_share())
            })
        });
    }
    out
}

/// Instructions for an operation of `workload`, and how much its runs differ.
fn figure(outcome: &CostOutcome, workload: Workload, way: Way) -> String {
    let cell = user_cost::find(outcome, workload, way);
    if cell.is_some_and(|cell| way == Way::Ub && cell.counts().ridden_share() < LEAST_SHARE) {
        return "too few calls rode".to_owned();
    }
    let spread = cell.and_then(|cell| cell.figure(|run: &CostRun| Some(run.total())));
    spread.map_or("-".to_owned(), |figure| {
        format!("{:.1} ± {:.1} %", figure.mean, 100.0 * figure.spread)
    })
}

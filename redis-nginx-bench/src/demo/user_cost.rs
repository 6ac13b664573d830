//! `ub-demo --user-cost`: what a request costs in instructions, natively and
//! under ub, counted in one guest under QEMU's `-icount`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};

use super::boot::{Booted, Laboratory, Purpose};
use super::options::{Guest, Options};
use super::verdict::{PROMISED_SPEED, Verdict};
use crate::cost::{CostCell, CostOutcome, CostRun, Spread, Way};
use crate::plan::{Mode, NEVER_NATIVE, Plan, Workload};

/// Share of the system calls that must be ridden by each server workload.
const PROMISED_SHARE: f64 = 0.95;
/// Requests of one run; several times what it takes to see every path.
const REQUESTS: u64 = 4000;
/// Limit for settling, in milliseconds of the guest's clock, which runs by
/// instructions: 1 ms is a million.
const SETTLE_MS: u64 = 28_000;
/// Looks without any new translation after which there is none to come.
const SETTLE_LOOKS: u32 = 2;
/// Reasons and refused entries that are printed of each cell.
const TOP: usize = 6;

const COLUMNS: [&str; 9] = [
    "workload",
    "way",
    "calls/req",
    "ridden",
    "instructions/req",
    "between calls/req",
    "in calls/req",
    "gaps ridden / left / native",
    "results",
];

/// Boots the guest, prints the tables and writes everything beside the
/// report of the demo.
pub(super) fn run(options: &Options) -> Result<Verdict> {
    let guest = Guest { kernel: options.kernel, kpti: false, smoke: false };
    let plan = plan(options, &guest);
    let folder = options.out.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let lab = Laboratory::prepare(options)?;
    let booted: Booted<CostOutcome> = lab.boot(&guest, &plan, Purpose::CountInstructions)?;
    let outcome = &booted.outcome;
    let path = folder.join("user-cost.json");
    fs::write(&path, serde_json::to_vec_pretty(outcome)?)
        .with_context(|| format!("writing {}", path.display()))?;
    println!("{}", legend(outcome));
    println!("{}", table(outcome));
    println!("{}", comparison(outcome));
    print!("{}", reasons(outcome));
    println!("written to {}", path.display());
    Ok(verdict(outcome))
}

/// The plan of the comparison; `null` shows what the way itself costs.
pub(super) fn plan(options: &Options, guest: &Guest) -> Plan {
    let mut plan = options.plan(guest);
    if options.workloads.is_empty() {
        plan.workloads = vec![Workload::Null, Workload::REDIS_SET, Workload::REDIS_GET];
    }
    plan.modes = vec![Mode::Native, Mode::Ub];
    plan.ways = Way::ALL.to_vec();
    plan.operations = (REQUESTS, REQUESTS);
    plan.settle_ms = SETTLE_MS;
    plan.settle_looks = SETTLE_LOOKS;
    // What every gap costs in a ride, also of those that do not pay.
    plan.add_ub_options(&["--ride-anyway", "--time-gaps", NEVER_NATIVE]);
    plan
}

fn legend(outcome: &CostOutcome) -> String {
    format!(
        "kernel {}, {}, accelerator tcg with -icount, KPTI off\n\
         Figures are counts of guest instructions, emulated: they tell how much code is executed, \n\
         not how fast a CPU does it. \"between calls\" is from the end of one system call to the\n\
         start of the next: the program's own code, with the way to user mode and back (watched) or\n\
         what a ride does in its place (ub, where all that can ride does). \"native\" is without any\n\
         session; in sessions every gap is timed, which costs some instructions itself. \"ub run\" is as a\n\
         user types it: where rides do not pay, it lets the program go. +- is the difference between the runs.",
        outcome.machine.kernel, outcome.machine.cpu,
    )
}

fn table(outcome: &CostOutcome) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header(COLUMNS);
    for cell in &outcome.cells {
        table.add_row(row(cell, matches(outcome, cell)));
    }
    for column in table.column_iter_mut().skip(2).take(6) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn row(cell: &CostCell, matches: bool) -> Vec<String> {
    let counts = cell.counts();
    // Nor is a program counted that was let go.
    let watched = counts.syscalls > 0;
    let when = |shown: bool, text: String| if shown { text } else { "-".to_owned() };
    let gaps = |kind: &str| counts.gaps.get(kind).map_or(0, |gaps| gaps.count);
    vec![
        cell.workload.to_string(),
        cell.way.name().to_owned(),
        when(watched, format!("{:.3}", counts.syscalls_per_op())),
        when(watched, format!("{:.1} %", 100.0 * counts.ridden_share())),
        figure(cell.figure(|run| Some(run.total()))),
        figure(cell.figure(CostRun::user_side)),
        figure(cell.figure(|run| Some(run.total() - run.user_side()?))),
        when(watched, format!("{} / {} / {}", gaps("ridden"), gaps("left"), gaps("native"))),
        if matches { "match" } else { "DIFFER" }.to_owned(),
    ]
}

fn figure(spread: Option<Spread>) -> String {
    spread.map_or("-".to_owned(), |Spread { mean, spread }| {
        format!("{mean:.0} +- {:.1} %", 100.0 * spread)
    })
}

/// The line for each workload that everything else is for.
fn comparison(outcome: &CostOutcome) -> String {
    let user = |workload, way| {
        let cell = find(outcome, workload, way)?;
        Some((cell.figure(CostRun::user_side)?.mean, cell.counts().syscalls_per_op()))
    };
    let mut lines = Vec::new();
    for workload in workloads(outcome) {
        let (Some(native), Some(ub)) = (user(workload, Way::Watched), user(workload, Way::Ub))
        else {
            continue;
        };
        let mut line = format!(
            "{workload}: user side {:.0} instructions a request natively, {:.0} under ub, {:.2} times",
            native.0,
            ub.0,
            ub.0 / native.0
        );
        let (crossing, ride) = (user(Workload::Null, Way::Watched), user(Workload::Null, Way::Ub));
        if let (Some(crossing), Some(ride), false) = (crossing, ride, workload.is_micro()) {
            let code = |side: (f64, f64), null: (f64, f64)| side.0 - side.1 * null.0 / null.1;
            let (native, ub) = (code(native, crossing), code(ub, ride));
            line.push_str(&format!(
                "; less what null has between two calls: {native:.0} and {ub:.0}, {:.2} times",
                ub / native
            ));
        }
        lines.push(line);
    }
    for cell in outcome.cells.iter().filter(|cell| cell.way == Way::Plain) {
        if let Some(speed) = speed(outcome, cell) {
            lines.push(format!(
                "{}, as a user runs it: {speed:.3} of the native speed",
                cell.workload
            ));
        }
    }
    lines.join("\n")
}

/// The native instructions as a share of those of `cell`.
fn speed(outcome: &CostOutcome, cell: &CostCell) -> Option<f64> {
    let native = find(outcome, cell.workload, Way::Native)?;
    let total = |cell: &CostCell| Some(cell.figure(|run| Some(run.total()))?.mean);
    Some(total(native)? / total(cell)?)
}

/// Why calls were not ridden, and what was not translated.
fn reasons(outcome: &CostOutcome) -> String {
    let mut text = String::new();
    for cell in outcome.cells.iter().filter(|cell| cell.way == Way::Ub) {
        let counts = cell.counts();
        let native = counts.syscalls - counts.ridden.min(counts.syscalls);
        text.push_str(&format!(
            "{}: {native} of {} calls not ridden; rides ended by: {}; did not begin for: {}\n",
            cell.workload,
            counts.syscalls,
            top(&counts.exits),
            top(&counts.refused)
        ));
        for (index, run) in cell.runs.iter().enumerate() {
            text.push_str(&format!("  run {}: {}\n", index + 1, translation(run)));
        }
        let refused = cell.runs.first().and_then(|run| run.report.as_ref());
        let refused = refused.and_then(|report| report["translations"]["refused"].as_array());
        for entry in refused.into_iter().flatten().take(TOP) {
            text.push_str(&format!("  refused: {}\n", entry["message"].as_str().unwrap_or("?")));
        }
    }
    text
}

/// The largest counts first.
fn top(counts: &BTreeMap<String, u64>) -> String {
    let mut counts: Vec<_> = counts.iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let words: Vec<_> =
        counts.iter().take(TOP).map(|(name, count)| format!("{name} {count}")).collect();
    if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
}

/// What it took to get there.
fn translation(run: &CostRun) -> String {
    let number = |path: &str| {
        let found = run.report.as_ref().and_then(|report| report.pointer(path));
        found.and_then(serde_json::Value::as_u64).unwrap_or(0)
    };
    let settled = run.settled.map(|settled| {
        let state = if settled.stable { "stable after" } else { "NOT STABLE within" };
        format!(", {state} {:.1} s and {} loads", settled.seconds, settled.loads)
    });
    format!(
        "{} translations of {} instructions in {} ms, {} fragments now, {} bytes of arena{}",
        number("/translations/attempted"),
        number("/translations/guest_instructions"),
        number("/translations/time_total_us") / 1000,
        number("/fragments_installed")
            - number("/fragments_retired").min(number("/fragments_installed")),
        number("/translations/code_bytes"),
        settled.unwrap_or_default()
    )
}

fn workloads(outcome: &CostOutcome) -> Vec<Workload> {
    let mut workloads: Vec<_> = outcome.cells.iter().map(|cell| cell.workload).collect();
    workloads.dedup();
    workloads
}

pub(super) fn find(outcome: &CostOutcome, workload: Workload, way: Way) -> Option<&CostCell> {
    outcome.cells.iter().find(|cell| cell.workload == workload && cell.way == way)
}

/// Whether every run computed what the native ones did, without a fault.
fn matches(outcome: &CostOutcome, cell: &CostCell) -> bool {
    let digest = find(outcome, cell.workload, Way::Native)
        .and_then(|native| native.runs.first())
        .map(|run| &run.digest);
    !cell.runs.is_empty()
        && cell.runs.iter().all(|run| run.faults.is_empty() && Some(&run.digest) == digest)
}

/// What did not compute what the native runs did.
pub(super) fn wrong_results(outcome: &CostOutcome) -> Vec<String> {
    let wrong = outcome.cells.iter().filter(|cell| !matches(outcome, cell));
    wrong
        .map(|cell| {
            let faults: Vec<_> =
                cell.runs.iter().flat_map(|run| &run.faults).map(String::as_str).collect();
            let name = cell.way.name();
            format!("{} {name}: wrong results {}", cell.workload, faults.join("; "))
        })
        .collect()
}

/// Wrong results and missing rides are failures here: both are promised.
fn verdict(outcome: &CostOutcome) -> Verdict {
    let mut verdict = Verdict { failures: wrong_results(outcome), ..Verdict::default() };
    for cell in outcome.cells.iter().filter(|cell| cell.way == Way::Plain) {
        if let Some(speed) = speed(outcome, cell).filter(|speed| *speed < PROMISED_SPEED) {
            verdict.failures.push(format!(
                "{} {}: {speed:.3} of the native speed, by instructions",
                cell.workload,
                cell.way.name()
            ));
        }
    }
    for cell in outcome.cells.iter().filter(|cell| cell.way == Way::Ub) {
        let share = cell.counts().ridden_share();
        if share < PROMISED_SHARE {
            let name = format!("{} {}", cell.workload, cell.way.name());
            verdict
                .failures
                .push(format!("{name}: ridden share {share:.3} under {PROMISED_SHARE}"));
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Settled;
    use crate::outcome::{Counts, Gaps, Machine};

    fn cell(workload: Workload, way: Way, ridden: u64, cycles: u64) -> CostCell {
        let kind = if way == Way::Ub { "ridden" } else { "native" };
        let counts = Counts {
            operations: 100,
            syscalls: 200,
            ridden,
            exits: BTreeMap::from([("guard".into(), 2), ("poll".into(), 7)]),
            gaps: BTreeMap::from([(kind.into(), Gaps { count: 200, cycles })]),
            ..Counts::default()
        };
        let run = CostRun {
            requests: 100,
            cpu_ns: 100_000,
            counts: matches!(way, Way::Watched | Way::Ub).then_some(counts),
            settled: Some(Settled { loads: 4, seconds: 2.0, stable: false }),
            report: None,
            digest: "d".into(),
            faults: vec![],
        };
        CostCell { workload, way, runs: vec![run.clone(), run] }
    }

    /// redis has 600 instructions a request natively and 900 under ub, of
    /// which 2 times 100 and 2 times 50 are the way there and back.
    fn outcome() -> CostOutcome {
        CostOutcome {
            machine: Machine {
                kernel: "6.12.1".into(),
                cpu: "Some CPU".into(),
                cpus: 1,
                kpti: Some(false),
                vulnerabilities: BTreeMap::new(),
            },
            cells: vec![
                cell(Workload::Null, Way::Native, 0, 0),
                cell(Workload::Null, Way::Watched, 0, 20_000),
                cell(Workload::Null, Way::Ub, 200, 10_000),
                cell(Workload::REDIS_GET, Way::Native, 0, 0),
                cell(Workload::REDIS_GET, Way::Watched, 0, 60_000),
                cell(Workload::REDIS_GET, Way::Ub, 190, 90_000),
                cell(Workload::REDIS_GET, Way::Plain, 0, 0),
            ],
        }
    }

    #[test]
    fn a_good_outcome_passes() {
        assert_eq!(verdict(&outcome()), Verdict::default());
    }

    #[test]
    fn low_shares_and_wrong_results_fail() {
        let mut outcome = outcome();
        for run in &mut outcome.cells[5].runs {
            run.counts.as_mut().unwrap().ridden = 189;
        }
        outcome.cells[4].runs[1].digest = "e".into();
        outcome.cells[1].runs[0].faults.push("lost".into());
        let failures = verdict(&outcome).failures;
        assert_eq!(failures.len(), 3, "{failures:?}");
        assert_eq!(failures[0], "null watched: wrong results lost");
        assert!(failures[2].starts_with("redis-get ub: ridden share 0.945"), "{failures:?}");
    }

    #[test]
    fn who_is_let_go_must_not_be_slower() {
        let mut outcome = outcome();
        for (cpu_ns, fails) in [(102_000, false), (102_100, true)] {
            for run in &mut outcome.cells[6].runs {
                run.cpu_ns = cpu_ns;
            }
            let failures = verdict(&outcome).failures;
            assert_eq!(!failures.is_empty(), fails, "{failures:?}");
        }
        assert!(
            comparison(&outcome)
                .ends_with("redis-get, as a user runs it: 0.979 of the native speed")
        );
    }

    #[test]
    fn the_way_itself_is_taken_off() {
        let text = comparison(&outcome());
        let redis = text.lines().find(|line| line.starts_with("redis-get:")).unwrap();
        assert!(redis.contains("600 instructions a request natively, 900 under ub, 1.50 times"));
        assert!(redis.ends_with("400 and 800, 2.00 times"), "{redis}");
    }

    #[test]
    fn reasons_come_with_their_counts() {
        let text = reasons(&outcome());
        assert!(text.contains("redis-get: 20 of 400 calls not ridden"), "{text}");
        assert!(text.contains("poll 14, guard 4; did not begin for: nothing"), "{text}");
        assert!(text.contains("NOT STABLE within 2.0 s and 4 loads"), "{text}");
    }
}

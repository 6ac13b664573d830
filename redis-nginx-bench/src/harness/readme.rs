//! The figures at the top of the README, from a run.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::analysis::Figures;
use super::record::{Environment, MachineRecord, Record, Settings};
use super::terminal::percent;
use crate::plan::Workload;

/// What stands before and behind the generated part.
const BEGIN: &str = "<!-- figures: made by `make results`, not by hand -->";
const END: &str = "<!-- end of figures -->";

/// The table, in Markdown: a row for each workload, a column for each machine.
/// Wall-clock figures of an emulated CPU are not in it: they are nobody's
/// headline.
#[must_use]
pub fn figures(record: &Record) -> String {
    let machines: Vec<(&MachineRecord, &Environment)> = record
        .machines
        .iter()
        .filter_map(|machine| Some((machine, machine.environment.as_ref()?)))
        .collect();
    let mut text = String::new();
    for (machine, environment) in &machines {
        let facts = environment.label();
        let _ = writeln!(text, "{}: {}\n", machine.target, facts.lines().next().unwrap_or(""));
    }
    let Settings { rounds, timed_ms, ref ub_options, .. } = record.settings;
    let _ = writeln!(text, "{rounds} rounds of {timed_ms} ms for each figure.");
    if !ub_options.is_empty() {
        let _ = writeln!(text, "Options of `ub run`: `{}`.", ub_options.join(" "));
    }
    let learning = machines.iter().flat_map(|(machine, _)| &machine.cells).filter(|cell| {
        cell.launches.iter().any(|launch| launch.settled.is_some_and(|settled| !settled.stable))
    });
    let learning = learning.count();
    if learning > 0 {
        let _ = writeln!(
            text,
            "Figures under ub that were taken before translation had come to rest: {learning}."
        );
    }
    text.push('\n');
    text.push_str("| workload | transitions per operation, native |");
    for (machine, environment) in &machines {
        let gain = if environment.is_emulated() { "" } else { ", gain" };
        let _ = write!(text, " ub, {}: transitions, calls ridden{gain} |", machine.target);
    }
    let _ = writeln!(text, "\n|---|--:|{}", "--:|".repeat(machines.len()));
    for workload in &record.settings.workloads {
        row(*workload, &machines, &mut text);
    }
    text
}

fn row(workload: Workload, machines: &[(&MachineRecord, &Environment)], text: &mut String) {
    let of = |machine: &MachineRecord| {
        let cell = machine.cells.iter().find(|cell| cell.workload == workload)?;
        Some(Figures::of(cell)).filter(|figures| figures.results_match)
    };
    let cells: Vec<Option<Figures>> = machines.iter().map(|(machine, _)| of(machine)).collect();
    // What has no counts under ub is shown for context elsewhere.
    if cells.iter().flatten().all(|figures| figures.counts.is_none()) {
        return;
    }
    let native = cells.iter().flatten().find_map(|figures| figures.native_calls);
    let native = native.map_or("-".into(), |calls| format!("{calls:.3}"));
    let _ = write!(text, "| `{workload}` | {native} |");
    for (figures, (_, environment)) in cells.iter().zip(machines) {
        let counts = figures.as_ref().and_then(|figures| {
            let (transitions, share) = (figures.ub_transitions()?, figures.ridden_share()?);
            Some(format!("{transitions:.3}, {:.1} %", 100.0 * share))
        });
        let _ = write!(text, " {}", counts.unwrap_or("-".into()));
        let gain = figures.as_ref().and_then(|figures| figures.gain);
        if let (Some(gain), false) = (gain, environment.is_emulated()) {
            let _ = write!(text, ", {}", percent(gain));
        }
        text.push_str(" |");
    }
    text.push('\n');
}

/// Replaces the generated part of the file `readme`.
///
/// # Errors
/// The file cannot be read or written, or lacks the place.
pub fn replace(readme: &Path, figures: &str) -> Result<()> {
    let name = readme.display();
    let text = fs::read_to_string(readme).with_context(|| format!("reading {name}"))?;
    let (before, rest) =
        text.split_once(BEGIN).with_context(|| format!("{name} has no line \"{BEGIN}\""))?;
    let (_, after) =
        rest.split_once(END).with_context(|| format!("{name} has no line \"{END}\""))?;
    let new = format!("{before}{BEGIN}\n{}\n{END}{after}", figures.trim());
    fs::write(readme, new).with_context(|| format!("writing {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::record::tests::record;

    #[test]
    fn emulated_times_are_no_headline() {
        let mut record = record(4, 1.5);
        let text = figures(&record);
        assert!(text.contains("| `null` | 2.000 | 0.500, 75.0 % |"), "{text}");
        assert!(!text.contains("come to rest"), "{text}");
        for launch in &mut record.machines[0].cells[0].launches {
            launch.settled.as_mut().unwrap().stable = false;
        }
        assert!(figures(&record).contains("come to rest: 1.\n"), "{}", figures(&record));
        assert!(!text.contains("gain") && text.contains("accelerator tcg"), "{text}");
        record.machines[0].environment.as_mut().unwrap().accelerator = "kvm".into();
        assert!(figures(&record).contains("gain"));
    }

    #[test]
    fn only_the_generated_part_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("README.md");
        fs::write(&path, format!("a\n{BEGIN}\nold\n{END}\nb\n")).unwrap();
        replace(&path, "new\n").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("a\n{BEGIN}\nnew\n{END}\nb\n"));
        fs::write(&path, "nothing").unwrap();
        assert!(replace(&path, "new").is_err());
    }
}

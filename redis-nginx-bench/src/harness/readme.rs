//! The figures at the top of the README, from a run.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::analysis::Figures;
use super::record::{MachineRecord, Record};
use super::terminal::{label, percent};

/// What stands before and behind the generated part.
const BEGIN: &str = "<!-- figures: made by `make results`, not by hand -->";
const END: &str = "<!-- end of figures -->";

/// The table, in Markdown. Wall-clock figures of an emulated CPU are not in
/// it: they are nobody's headline.
#[must_use]
pub fn figures(record: &Record) -> String {
    let mut text = String::new();
    for machine in &record.machines {
        let Some(environment) = &machine.environment else { continue };
        let gains = !environment.is_emulated();
        let _ = writeln!(text, "{}\n", one_line(&label(environment)));
        let (name, line) = if gains { (" gain |", " --: |") } else { ("", "") };
        let _ = writeln!(
            text,
            "| workload | transitions per operation, native | with ub | calls ridden |{name}\n\
             |---|--:|--:|--:|{line}"
        );
        rows(machine, gains, &mut text);
        text.push('\n');
    }
    text
}

fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn rows(machine: &MachineRecord, gains: bool, text: &mut String) {
    for cell in &machine.cells {
        let figures = Figures::of(cell);
        let (Some(native), Some(ub), Some(share), true) = (
            figures.native_calls,
            figures.ub_transitions(),
            figures.ridden_share(),
            figures.results_match,
        ) else {
            continue;
        };
        let _ = write!(
            text,
            "| `{}` | {native:.3} | {ub:.3} | {:.1} % |",
            cell.workload,
            100.0 * share
        );
        if gains {
            let gain = figures.gain.map_or("-".into(), percent);
            let _ = write!(text, " {gain} |");
        }
        text.push('\n');
    }
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
        assert!(text.contains("| `null` | 2.000 | 0.500 | 75.0 % |"), "{text}");
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

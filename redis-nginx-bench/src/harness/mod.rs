//! `ub bench`: measures in guests or on this machine, keeps raw samples,
//! compares runs and reports.
//!
//! | module | concern |
//! |---|---|
//! | [`catalogue`] | which workloads a full and a quick run have |
//! | [`record`] | `run.json` |
//! | [`analysis`] | figures from raw samples |
//! | [`instructions`] | instructions per operation, split by where |
//! | [`compare`] | what changed between two runs |
//! | [`project`] | what counts would mean on another CPU |
//! | [`terminal`] | tables |
//! | [`page`] | the HTML page, with [`published`] figures |
//! | [`readme`] | the figures at the top of the README |

pub mod analysis;
pub mod catalogue;
pub mod compare;
mod execute;
pub mod instructions;
mod options;
pub mod page;
pub mod project;
pub mod published;
pub mod readme;
pub mod record;
pub mod terminal;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use clap::{CommandFactory as _, Parser as _};

use analysis::Figures;
use execute::Place;
use options::{Command, Options, RunOptions};
use record::{FILE, Record, Target};

/// The device by which the module is reached.
const DEVICE: &str = "/dev/ub";

/// Name of the page in the folder of a run.
const PAGE: &str = "report.html";

/// What [`cli`] understands, for completions and manual pages.
#[must_use]
pub fn command() -> clap::Command {
    Options::command()
}

/// Runs the command line `arguments` (without a program name) and returns
/// the exit status.
///
/// Status 0: measured, and all results match. 1: not so, or `compare` found
/// something slower. 2: bad usage.
pub fn cli(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let words = std::iter::once(OsString::from("ub bench")).chain(arguments);
    let options = match Options::try_parse_from(words) {
        Ok(options) => options,
        Err(error) => {
            // A closed stdout or stderr is no reason to say something else.
            let _ = error.print();
            return if error.use_stderr() { 2 } else { 0 };
        }
    };
    crate::demo::log_to_stderr();
    let passed = match &options.command {
        None => run(&options.run),
        Some(Command::Show { run, html }) => show(run, html.as_deref()),
        Some(Command::Project { counts, here, switch_cost, translated_ratio }) => {
            let translated_ratio = *translated_ratio;
            let inputs = project::Inputs { switch_ns: *switch_cost, translated_ratio };
            show_projection(counts, here, inputs)
        }
        Some(Command::Readme { run, file }) => show_readme(run, file.as_deref()),
        Some(Command::Instructions { arguments }) => {
            let words = std::iter::once("--user-cost".into()).chain(arguments.iter().cloned());
            return crate::demo::cli(words);
        }
        Some(Command::Compare { old, new }) => compare_runs(old, new),
    };
    match passed {
        Ok(passed) => u8::from(!passed),
        Err(error) => {
            eprintln!("ub bench: {error:#}");
            1
        }
    }
}

fn show(run: &Path, html: Option<&Path>) -> Result<bool> {
    let record = Record::read(run)?;
    if let Some(path) = html {
        write_page(&record, path)?;
    }
    Ok(report(&record))
}

fn write_page(record: &Record, path: &Path) -> Result<()> {
    fs::write(path, page::render(record)).with_context(|| format!("writing {}", path.display()))
}

fn show_projection(counts: &Path, here: &Path, inputs: project::Inputs) -> Result<bool> {
    let (counts, here) = (Record::read(counts)?, Record::read(here)?);
    let projection = project::Projection::of(&counts, &here, inputs).context(
        "nothing tells what a transition costs: measure null there, or give --switch-cost",
    )?;
    println!("{projection}");
    ensure!(
        !projection.rows.is_empty(),
        "the runs have no workload in common that fits the inputs"
    );
    Ok(true)
}

fn show_readme(run: &Path, file: Option<&Path>) -> Result<bool> {
    let figures = readme::figures(&Record::read(run)?);
    match file {
        Some(file) => readme::replace(file, &figures)?,
        None => print!("{figures}"),
    }
    Ok(true)
}

fn compare_runs(old: &Path, new: &Path) -> Result<bool> {
    let comparison = compare::Comparison::of(&Record::read(old)?, &Record::read(new)?);
    println!("{comparison}");
    ensure!(!comparison.rows.is_empty(), "the runs have no measured cell in common");
    Ok(!comparison.is_slower())
}

/// Measures; returns whether everything was right.
fn run(options: &RunOptions) -> Result<bool> {
    let (mut record, place, folder) = match &options.resume {
        Some(folder) => resume(options, folder)?,
        None => begin(options)?,
    };
    tracing::info!("the run is in {}", folder.display());
    let result = execute::run(&mut record, &place, &folder);
    let right = report(&record);
    write_page(&record, &folder.join(PAGE))?;
    println!("written to {} and {PAGE} beside it", folder.join(FILE).display());
    result.with_context(|| {
        format!("the run is not complete; go on with: ub bench --resume {}", folder.display())
    })?;
    if let Place::Here { .. } = place {
        println!("{}", advice(&record));
    }
    Ok(right)
}

fn begin(options: &RunOptions) -> Result<(Record, Place, PathBuf)> {
    let folder = match &options.out {
        Some(folder) => folder.clone(),
        None => {
            let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            PathBuf::from(format!("target/bench/{seconds}"))
        }
    };
    ensure!(
        !folder.join(FILE).exists(),
        "{} holds a run already; --resume goes on with it",
        folder.display()
    );
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let targets = options.targets();
    let with_ub = !options.native_only && (!options.here || Path::new(DEVICE).exists());
    // What emulation changes is known only with the laboratory at hand.
    let provisional = options.settings(false, with_ub);
    let place = Place::prepare(&targets, &provisional, options.bin_dir.as_deref())?;
    let first = targets.first().context("no machine was asked for")?;
    let emulated = place.accelerator(first)? == ub_report::host::EMULATED;
    let record = Record::new(options.settings(emulated, with_ub), &targets);
    Ok((record, place, folder))
}

fn resume(options: &RunOptions, folder: &Path) -> Result<(Record, Place, PathBuf)> {
    let record = Record::read(folder)?;
    let targets: Vec<Target> =
        record.machines.iter().map(|machine| machine.target.clone()).collect();
    let place = Place::prepare(&targets, &record.settings, options.bin_dir.as_deref())?;
    Ok((record, place, folder.to_owned()))
}

/// Prints the tables; returns whether everything that was measured is right.
fn report(record: &Record) -> bool {
    println!("{}", terminal::draw(record));
    let cells = || record.machines.iter().flat_map(|machine| &machine.cells);
    let wrong = cells().filter(|cell| !Figures::of(cell).faults.is_empty()).count();
    let failed = cells()
        .filter(|cell| cell.failure.as_ref().is_some_and(|failure| !failure.missing))
        .count();
    if wrong + failed > 0 {
        eprintln!("FAILED: {wrong} cells with wrong results, {failed} that could not be measured");
    }
    wrong + failed == 0
}

/// What a measurement on this machine lacks, and how to get it.
fn advice(record: &Record) -> String {
    let mut lines = Vec::new();
    if !record.settings.modes.contains(&crate::plan::Mode::Ub) {
        lines.push(format!(
            "{DEVICE} does not exist: only native figures. `ub doctor` says whether the module can \
             be used here; without --here the comparison runs in guests."
        ));
    }
    let environment = record.machines.first().and_then(|machine| machine.environment.as_ref());
    let other = match environment.and_then(|environment| environment.machine.kpti) {
        Some(true) => "pti=off",
        Some(false) | None => "pti=on",
    };
    lines.push(format!(
        "For the other state of page-table isolation boot once with \"{other}\" on the kernel's \
         command line (press e in the boot loader's menu) and measure again; nothing here changes \
         the boot loader."
    ));
    lines.join("\n")
}

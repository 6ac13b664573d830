//! The host side: boots guests, runs the driver in them, shows the figures.
//!
//! `make demo` runs `ub-demo`, which is [`cli`]: a short pass of what
//! [`harness`](crate::harness) measures at length.

pub(crate) mod boot;
mod in_tree;
pub(crate) mod options;
mod predict;
mod programs;
mod user_cost;
mod verdict;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use crate::outcome::{Machine, Outcome};
use crate::report::{Environment, Report, SCHEMA};
use crate::{report, table};
use boot::Booted;
use options::{Guest, Options};

pub use programs::{find_program, server_folder};
pub use verdict::Verdict;

/// Runs the command line `arguments` (without a program name) and returns
/// the exit status.
///
/// Status 0: measured, all results match and no guest's kernel complained.
/// 1: not so, with the reason on stderr. 2: bad usage.
pub fn cli(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let words = std::iter::once(OsString::from("ub-demo")).chain(arguments);
    let options = match Options::try_parse_from(words) {
        Ok(options) => options,
        Err(error) => {
            // A closed stdout or stderr is no reason to say something else.
            let _ = error.print();
            return if error.use_stderr() { 2 } else { 0 };
        }
    };
    log_to_stderr();
    let result = if options.build_only {
        boot::build_modules(&options).map(|()| Verdict::default())
    } else if let Some(file) = &options.in_tree {
        in_tree::run(&options, file)
    } else if options.predict {
        predict::run(&options)
    } else if options.user_cost {
        user_cost::run(&options)
    } else {
        run(&options)
    };
    match result {
        Ok(verdict) => {
            eprint!("{verdict}");
            let passed =
                verdict.failures.is_empty() && (!options.strict || verdict.shortfalls.is_empty());
            u8::from(!passed)
        }
        Err(error) => {
            eprintln!("demo failed: {error:#}");
            1
        }
    }
}

/// Sends the log to stderr. Whoever calls this as a library may have done so.
pub(crate) fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .without_time()
        .try_init();
}

/// Boots all guests, writes the report and prints the table.
fn run(options: &Options) -> Result<Verdict> {
    let start = Instant::now();
    let folder = options.out.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let lab = boot::Laboratory::prepare(options)?;
    let guests = options.guests();
    let mut all = Vec::new();
    for (index, guest) in guests.iter().enumerate() {
        let passed = start.elapsed().as_secs();
        tracing::info!("guest {} of {}: {guest} ({passed} s so far)", index + 1, guests.len());
        let plan = options.plan(guest);
        let booted = lab.run(guest, &plan).with_context(|| format!("guest with {guest}"))?;
        keep(folder, guest, &booted)?;
        all.push((*guest, plan, booted));
    }
    let (report, machine) = assemble(&all).context("no guest was asked for")?;
    let text = serde_json::to_vec_pretty(&report)?;
    fs::write(&options.out, text).with_context(|| format!("writing {}", options.out.display()))?;
    println!("{}", table::environment(&report, &machine));
    println!("{}", table::draw(&report));
    print!("{}", table::notes(&report));
    println!("written to {}", options.out.display());
    let mut verdict = Verdict::of(&report);
    for (guest, plan, booted) in &all {
        verdict.add_guest(&guest.to_string(), plan, &booted.outcome);
    }
    tracing::info!("{} s in all", start.elapsed().as_secs());
    Ok(verdict)
}

/// The report over all guests, and the machine that its environment describes:
/// the first guest with the full set.
fn assemble(all: &[(Guest, crate::plan::Plan, Booted)]) -> Option<(Report, Machine)> {
    let (_, _, main) = all.iter().find(|(guest, ..)| !guest.smoke).or(all.first())?;
    let machine = main.outcome.machine.clone();
    let environment = Environment {
        accelerator: main.accelerator.clone(),
        kernel: machine.kernel.clone(),
        cpu: machine.cpu.clone(),
    };
    let cells = all
        .iter()
        .flat_map(|(guest, _, booted)| report::cells(&booted.outcome, guest.kpti))
        .collect();
    Some((Report { schema: SCHEMA, environment, cells }, machine))
}

/// Leaves everything a guest said beside the report, for whoever asks why.
fn keep(folder: &Path, guest: &Guest, booted: &Booted) -> Result<()> {
    let write = |name: String, data: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, data).with_context(|| format!("writing {}", path.display()))
    };
    let name = guest.file_name();
    let outcome: &Outcome = &booted.outcome;
    write(format!("{name}.json"), &serde_json::to_vec_pretty(outcome)?)?;
    write(format!("{name}.log"), booted.log.as_bytes())
}

//! The guest driver: runs a plan inside the guest and writes what came out.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ub_bench::guest;

/// Runs workloads natively and under `ub run` and writes the results as JSON.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a plan.
    Run {
        /// The plan, JSON.
        #[arg(long)]
        plan: PathBuf,
        /// Where the outcome goes, JSON.
        #[arg(long)]
        out: PathBuf,
    },
    /// Run a plan in rounds and print what happens, a line of JSON each.
    Rounds {
        /// The plan, JSON.
        #[arg(long)]
        plan: PathBuf,
    },
    /// Count the instructions of a plan's workloads, under -icount.
    Cost {
        /// The plan, JSON.
        #[arg(long)]
        plan: PathBuf,
        /// Where the outcome goes, JSON.
        #[arg(long)]
        out: PathBuf,
    },
    /// Compare what `ub predict` says of a plan's workloads with what comes.
    Predict {
        /// The plan, JSON.
        #[arg(long)]
        plan: PathBuf,
        /// Where the outcome goes, JSON.
        #[arg(long)]
        out: PathBuf,
    },
    /// Move to a CPU and become PROGRAM. The driver starts everything like that.
    Pin {
        /// Which of the allowed CPUs, from 0.
        cpu: usize,
        /// The program, looked up in PATH.
        program: OsString,
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).with_target(false).without_time().init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ub-bench-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Arguments::parse().command {
        Command::Run { plan, out } => write(&out, &guest::run(&read(&plan)?)?),
        Command::Rounds { plan } => Ok(guest::run_rounds(&read(&plan)?)?),
        Command::Cost { plan, out } => write(&out, &guest::run_cost(&read(&plan)?)?),
        Command::Predict { plan, out } => write(&out, &guest::run_predict(&read(&plan)?)?),
        Command::Pin { cpu, program, arguments } => {
            match guest::pin_and_exec(cpu, &program, &arguments)? {}
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
}

fn write(path: &Path, outcome: &impl Serialize) -> Result<()> {
    fs::write(path, serde_json::to_vec(outcome)?)
        .with_context(|| format!("writing {}", path.display()))
}

//! `ub report`: shows a recorded or a running session.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use ub_report::{Report, html, text};

use super::{complain, print};
use crate::exec::EXIT_UB;
use crate::inspect;

/// Show a session as text, JSON, or one HTML page with plots
///
/// FILE is what `ub run --report FILE` or `ub stat --json FILE` wrote. The page
/// needs no other file and no network.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The recorded session
    #[arg(value_name = "FILE", required_unless_present = "pid")]
    file: Option<PathBuf>,
    /// Show the running session of process PID
    #[arg(short, long, value_name = "PID", conflicts_with = "file")]
    pid: Option<u32>,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Write to FILE instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    Html,
}

/// Runs the command; returns the exit status.
pub(super) fn main(arguments: &Arguments) -> u8 {
    match report(arguments).and_then(|report| show(arguments, &report)) {
        Ok(()) => 0,
        Err(message) => {
            complain(message);
            EXIT_UB
        }
    }
}

fn report(arguments: &Arguments) -> Result<Report, String> {
    if let Some(pid) = arguments.pid {
        let found = inspect::of_process(pid).map_err(|error| error.to_string())?;
        return Ok(found.report);
    }
    // clap sees to it that there is one of the two.
    let file = arguments.file.as_deref().unwrap_or(Path::new(""));
    ub_report::read(file).map_err(|error| error.to_string())
}

fn show(arguments: &Arguments, report: &Report) -> Result<(), String> {
    let shown = match arguments.format {
        Format::Text => text::render(report, usize::MAX),
        Format::Json => String::from_utf8_lossy(&report.to_json()).into_owned(),
        Format::Html => html::render(report),
    };
    match &arguments.output {
        None => print(&shown),
        Some(path) => ub_report::write(path, shown.as_bytes())
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?,
    }
    Ok(())
}

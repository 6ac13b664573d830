//! `ub report`: shows a recorded or a running session.

use std::path::{Path, PathBuf};

use clap::Args;
use ub_report::Report;

use super::complain;
use super::output::{Output, ReportFormat, Stream};
use crate::exec::EXIT_UB;
use crate::inspect;

/// Show a session as text, JSON, or one HTML page with plots
///
/// FILE is what `--report FILE` of `ub run`, `ub stat` or `ub attach` wrote.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The recorded session
    #[arg(value_name = "FILE", required_unless_present = "pid")]
    file: Option<PathBuf>,
    /// Show the running session of process PID
    #[arg(short, long, value_name = "PID", conflicts_with = "file")]
    pid: Option<u32>,
    #[command(flatten)]
    output: Output<ReportFormat>,
}

/// Runs the command; returns the exit status.
pub(super) fn main(arguments: &Arguments) -> u8 {
    match report(arguments) {
        Ok(report) => {
            let shown = arguments.output.format.render(&report, usize::MAX);
            arguments.output.put(&shown, Stream::Standard)
        }
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

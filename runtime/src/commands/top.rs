//! `ub top`: sessions and their gaps, live.

mod rates;
mod screen;
mod terminal;

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::complain;
use super::output::{Format, Output, Stream, json};
use crate::exec::EXIT_UB;
use crate::inspect::{self, NotFound};
use rates::{Column, Rates, SCHEMA, View};

/// Show running sessions and their gaps, live
///
/// --once prints the same as plain text and ends, and so does a result that is JSON
/// or written to a file.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Seconds from one screen to the next
    #[arg(short, long, value_name = "S", default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// Measure for one interval, print, and end
    #[arg(long)]
    once: bool,
    /// Column to sort gaps by
    #[arg(short, long, value_enum, default_value_t = Column::Rate)]
    sort: Column,
    #[command(flatten)]
    output: Output,
}

/// One screen for programs.
#[derive(Debug, Serialize)]
struct Screen<'a> {
    schema: u32,
    #[serde(flatten)]
    view: &'a View,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "expected 0.1 to 3600 seconds".to_owned())
}

/// Runs the command; returns the exit status.
pub(super) fn main(arguments: &Arguments) -> u8 {
    let Arguments { interval, sort, output, .. } = arguments;
    let once = arguments.once || output.is_file() || output.format == Format::Json;
    let sessions = inspect::all();
    if sessions.found.is_empty() {
        let reason = sessions.why_none();
        // A live screen shows what comes, unless nothing can.
        let nothing_comes =
            matches!(reason, NotFound::NoSession(Some(_)) | NotFound::DoesNotPay(_));
        if once || nothing_comes {
            complain(reason);
            return EXIT_UB;
        }
    }
    let mut rates = Rates::default();
    rates.update(sessions.found);
    if once {
        std::thread::sleep(*interval);
        rates.update(inspect::all().found);
        let view = rates.view(*sort, false);
        let shown = match output.format {
            Format::Text => screen::plain(&view),
            Format::Json => json(&Screen { schema: SCHEMA, view: &view }),
        };
        return output.put(&shown, Stream::Standard);
    }
    match terminal::run(rates, *sort, *interval) {
        Ok(()) => 0,
        Err(error) => {
            complain(error);
            EXIT_UB
        }
    }
}

//! `ub top`: sessions and their gaps, live.

mod rates;
mod screen;
mod terminal;

use std::time::Duration;

use clap::Args;

use super::{complain, print};
use crate::exec::EXIT_UB;
use crate::inspect::{self, NotFound};
use rates::{Column, Rates};

/// Show running sessions and their gaps, live
///
/// For scripts, --once prints the same as plain text and ends.
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
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "expected 0.1 to 3600 seconds".to_owned())
}

/// Runs the command; returns the exit status.
pub(super) fn main(arguments: &Arguments) -> u8 {
    let sessions = inspect::all();
    if sessions.found.is_empty() {
        let reason = sessions.why_none();
        // A live screen shows what comes, unless nothing can.
        if arguments.once || matches!(reason, NotFound::NoSession(Some(_))) {
            complain(reason);
            return EXIT_UB;
        }
    }
    let mut rates = Rates::default();
    rates.update(sessions.found);
    if arguments.once {
        std::thread::sleep(arguments.interval);
        rates.update(inspect::all().found);
        print(&screen::plain(&rates.view(arguments.sort, false)));
        return 0;
    }
    match terminal::run(rates, arguments.sort, arguments.interval) {
        Ok(()) => 0,
        Err(error) => {
            complain(error);
            EXIT_UB
        }
    }
}

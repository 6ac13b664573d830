//! `ub top`: sessions and their gaps, live.

mod rates;
mod screen;
mod terminal;

use std::time::Duration;

use clap::Args;

use super::{complain, print};
use crate::exec::EXIT_UB;
use crate::inspect;
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
    let mut rates = Rates::default();
    rates.update(inspect::all());
    if rates.is_empty()
        && let Some(reason) = inspect::no_device()
    {
        // There will be none either.
        complain(reason);
        return EXIT_UB;
    }
    if arguments.once {
        if rates.is_empty() {
            complain(inspect::NotFound::NoSession(None));
            return EXIT_UB;
        }
        std::thread::sleep(arguments.interval);
        rates.update(inspect::all());
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

//! `ub stat`: runs a program in a session and says how it went.

mod child;
mod summary;

use std::path::PathBuf;

use clap::Args;

use super::complain;
use super::session::{self, Options};
use crate::exec::{EXIT_UB, exec};
use crate::logging;
use child::{Child, Event};

/// Run a program like `ub run` and print its counters afterwards
///
/// ub stays the parent of the program, passes signals on and ends as the
/// program does. Counting ends with the program even if it leaves others
/// running.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Also write the counters to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

/// Runs the command; returns the exit status.
pub(super) fn main(arguments: &Arguments) -> u8 {
    let command = &arguments.options.command;
    if session::disabled() {
        let error = exec(command);
        complain(&error);
        return error.exit_code();
    }
    let mut plan = match arguments.options.plan(arguments.json.as_deref()) {
        Ok(plan) => plan,
        Err(error) => {
            complain(error);
            return EXIT_UB;
        }
    };
    let mut supervision = match plan.open() {
        Ok(supervision) => Some(supervision),
        Err(reason) => {
            let _ = plan.write_inactive(&reason.to_string());
            if arguments.options.require {
                complain(reason);
                return EXIT_UB;
            }
            complain(format_args!("{reason}; running natively, nothing is counted"));
            None
        }
    };
    let session = supervision.as_ref().map(|supervision| supervision.session());
    let child = match Child::start(command, session, arguments.options.require) {
        Ok(child) => child,
        Err(error) => {
            complain(format_args!("cannot start a process: {error}"));
            return EXIT_UB;
        }
    };
    logging::init(plan.log.take(), plan.level);

    let status = loop {
        if let Some(active) = &mut supervision {
            match active.until(Some(child.events())) {
                Ok(crate::session::Wake::Caller) => {}
                // Over before the program is: it left the session by failing
                // to start, or something in it went wrong. Only waiting is left.
                Ok(crate::session::Wake::Ended) => {
                    break child.wait();
                }
                Err(error) => {
                    tracing::error!(%error, "session lost; the program goes on natively");
                    supervision = None;
                }
            }
        } else {
            break child.wait();
        }
        if let Event::Ended(status) = child.event() {
            break status;
        }
    };
    if let Some(mut supervision) = supervision {
        supervision.finish();
        match supervision.figures() {
            Ok((stats, counters)) => {
                use std::io::Write;
                let text = summary::text(command, &stats, counters);
                let _ = std::io::stderr().write_all(text.as_bytes());
            }
            Err(error) => complain(format_args!("no counters: {error}")),
        }
    }
    status.imitate()
}

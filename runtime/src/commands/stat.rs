//! `ub stat`: counters of a program, at its end or while it runs.

use std::path::PathBuf;

use clap::Args;
use ub_report::{Report, text};

use super::child::{Child, Event, Status};
use super::output::{Output, ReportFormat, Stream};
use super::session::{Decision, Options};
use super::{become_program, complain};
use crate::device::Session;
use crate::exec::EXIT_UB;
use crate::inspect;
use crate::logging;
use crate::session::{Supervision, Wake};

/// Print the counters of a program: of CMD at its end, or of a running one now
///
/// With CMD, ub runs it like `ub run`, stays its parent, passes signals on and
/// ends as the program does. Counting ends with the program even if it leaves
/// others running. With -p, it prints how the session of a process stands. What is
/// printed of CMD goes to standard error, as standard output is the program's.
#[derive(Debug, Args)]
#[command(mut_arg("command", |arg| arg.required(false).required_unless_present("pid")))]
pub(super) struct Arguments {
    /// Look into the running session of process PID
    #[arg(short, long, value_name = "PID", conflicts_with = "command")]
    pid: Option<u32>,
    /// Also write counters to FILE as JSON, every second and at the end
    #[arg(long, value_name = "FILE", conflicts_with = "pid")]
    report: Option<PathBuf>,
    #[command(flatten)]
    output: Output<ReportFormat>,
    /// Gaps shown in text
    #[arg(long, value_name = "N", default_value_t = text::GAPS)]
    gaps: usize,
    #[command(flatten)]
    options: Options,
}

/// Runs the command; returns the exit status.
pub(super) fn main(arguments: &Arguments) -> u8 {
    match arguments.pid {
        Some(pid) => look(arguments, pid),
        None => run(arguments),
    }
}

/// How the session of the process `pid` stands.
fn look(arguments: &Arguments, pid: u32) -> u8 {
    match inspect::of_process(pid) {
        Ok(found) => show(arguments, &found.report, Stream::Standard),
        Err(error) => {
            complain(error);
            EXIT_UB
        }
    }
}

/// Tells the counters; returns the exit status.
fn show(arguments: &Arguments, report: &Report, stream: Stream) -> u8 {
    let shown = arguments.output.format.render(report, arguments.gaps);
    arguments.output.put(&shown, stream)
}

/// Runs the program and prints its counters at the end.
fn run(arguments: &Arguments) -> u8 {
    let command = &arguments.options.command;
    let mut plan = match arguments.options.decide(arguments.report.as_deref()) {
        Ok(Decision::Session(plan)) => plan,
        Ok(Decision::Native(notice)) => {
            if let Some(notice) = notice {
                complain(notice);
            }
            return become_program(command);
        }
        Err(error) => {
            complain(error);
            return EXIT_UB;
        }
    };
    // What to tell if nothing is counted, where a line is not all that is wanted.
    let mut inactive = None;
    let is_asked_for = arguments.output.is_file() || arguments.output.format != ReportFormat::Text;
    let mut supervision = match plan.open() {
        Ok(supervision) => Some(supervision),
        Err(reason) => {
            inactive = is_asked_for.then(|| plan.inactive(&reason.to_string()));
            let _ = plan.write_inactive(&reason.to_string());
            if plan.require {
                complain(reason);
                return EXIT_UB;
            }
            complain(format_args!("{reason}; running natively, nothing is counted"));
            None
        }
    };
    let session = supervision.as_ref().map(|supervision| supervision.session());
    let require = plan.require;
    let enroll = || match session.map(Session::enroll) {
        Some(Err(error)) if require => {
            complain(error);
            Err(EXIT_UB)
        }
        Some(Err(error)) => {
            complain(format_args!("{error}; running natively, nothing is counted"));
            Ok(())
        }
        _ => Ok(()),
    };
    let child = match Child::start(command, enroll) {
        Ok(child) => child,
        Err(error) => {
            complain(format_args!("cannot start a process: {error}"));
            return EXIT_UB;
        }
    };
    logging::init(plan.log.take(), plan.level);
    if let Some(active) = &mut supervision {
        active.started(child.pid());
        active.listen();
    }

    let status = supervise_until_end(&child, &mut supervision);
    let failure = if let Some(mut supervision) = supervision {
        supervision.finish();
        match supervision.report() {
            Ok(report) => show(arguments, report, Stream::Aside),
            Err(error) => {
                complain(format_args!("no counters: {error}"));
                0
            }
        }
    } else {
        inactive.map_or(0, |report| show(arguments, &report, Stream::Aside))
    };
    let status = status.imitate();
    if status == 0 { failure } else { status }
}

/// Handles the session's reports, if there is one, until the program ends. A session
/// that is lost meanwhile is taken away.
fn supervise_until_end(child: &Child, supervision: &mut Option<Supervision>) -> Status {
    while let Some(active) = supervision {
        match active.until(Some(child.events())) {
            Ok(Wake::Caller) => {
                if let Event::Ended(status) = child.event() {
                    return status;
                }
            }
            // Counting is what was asked for.
            Ok(Wake::Native) => {}
            // Over before the program is: it left the session by failing
            // to start, or something in it went wrong. Only waiting is left.
            Ok(Wake::Ended) => break,
            Err(error) => {
                tracing::error!(%error, "session lost; the program goes on natively");
                *supervision = None;
            }
        }
    }
    child.wait()
}

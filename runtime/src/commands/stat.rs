//! `ub stat`: counters of a program, at its end or while it runs.

use std::path::{Path, PathBuf};

use clap::Args;
use ub_report::text;

use super::child::{Child, Event};
use super::session::{Decision, Options};
use super::{become_program, complain, print, print_aside};
use crate::device::Session;
use crate::exec::EXIT_UB;
use crate::inspect;
use crate::logging;

/// Print the counters of a program: of CMD at its end, or of a running one now
///
/// With CMD, ub runs it like `ub run`, stays its parent, passes signals on and
/// ends as the program does. Counting ends with the program even if it leaves
/// others running. With -p, it prints how the session of a process stands.
#[derive(Debug, Args)]
#[command(mut_arg("command", |arg| arg.required(false).required_unless_present("pid")))]
pub(super) struct Arguments {
    /// Look into the running session of process PID
    #[arg(short, long, value_name = "PID", conflicts_with = "command")]
    pid: Option<u32>,
    /// Also write the counters to FILE as JSON; with -p and - as FILE, print
    /// nothing but JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many gaps to print
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
    let report = match inspect::of_process(pid) {
        Ok(found) => found.report,
        Err(error) => {
            complain(error);
            return EXIT_UB;
        }
    };
    match arguments.json.as_deref() {
        Some(path) if path == Path::new("-") => {
            print(&String::from_utf8_lossy(&report.to_json()));
            return 0;
        }
        Some(path) => {
            if let Err(error) = ub_report::write(path, &report.to_json()) {
                complain(format_args!("cannot write {}: {error}", path.display()));
                return EXIT_UB;
            }
        }
        None => {}
    }
    print(&text::render(&report, arguments.gaps));
    0
}

/// Runs the program and prints its counters at the end.
fn run(arguments: &Arguments) -> u8 {
    let command = &arguments.options.command;
    let mut plan = match arguments.options.decide(arguments.json.as_deref()) {
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
    let mut supervision = match plan.open() {
        Ok(supervision) => Some(supervision),
        Err(reason) => {
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
        match supervision.report() {
            Ok(report) => print_aside(&text::render(report, arguments.gaps)),
            Err(error) => complain(format_args!("no counters: {error}")),
        }
    }
    status.imitate()
}

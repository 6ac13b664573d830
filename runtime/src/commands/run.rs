//! `ub run`: becomes the program, with a supervisor beside it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ub_ebpf_fallback::packet_filter;

use super::session::{Decision, Options, Plan};
use super::{become_program, complain};
use crate::exec::EXIT_UB;
use crate::launch::{self, Log};

/// Run a program with its hot gaps executed inside the kernel
///
/// A gap is the code that a program runs between one system call and the next;
/// it is hot if it is short and run often. Hot gaps are translated into
/// fragments, which the kernel module runs, so that the program goes from call
/// to call without leaving the kernel.
///
/// The program keeps this process: pid, terminal, signals, exit status. If
/// there can be no session, or rides were found not to pay on this machine, it
/// runs natively after one line on stderr. With
/// UB_DISABLE=1 in the environment it always runs natively. Options can also be
/// set in files and in the environment: see `ub config show --origin`.
///
/// Exit status: that of the program; 125 if ub itself fails, 126 if the
/// program cannot be executed, 127 if it is not found.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Write counters to FILE as JSON, every second and at the end
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// What saves crossings into the kernel
    #[arg(long, value_enum, default_value_t)]
    backend: Backend,
    #[command(flatten)]
    options: Options,
}

/// What can save crossings into the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// The kernel module where it works, else nothing; never BPF, whose filters
    /// show in the socket's counters
    #[default]
    Auto,
    /// The kernel module
    Kmod,
    /// BPF: packets that the program would only throw away are dropped
    /// before they wake it
    Bpf,
    /// Nothing: the program runs natively
    None,
}

/// Runs the command; returns only if the program was not executed.
pub(super) fn main(arguments: &Arguments) -> u8 {
    if arguments.backend != Backend::None {
        match arguments.options.decide(arguments.report.as_deref()) {
            Err(error) => {
                complain(error);
                return EXIT_UB;
            }
            Ok(Decision::Native(notice)) => {
                if let Some(notice) = notice {
                    complain(notice);
                }
            }
            Ok(Decision::Session(mut plan)) => {
                if let Err(reason) = join(&mut plan, arguments.backend) {
                    // It was writable a moment ago; the program matters more.
                    let _ = plan.write_inactive(&reason);
                    if plan.require {
                        complain(reason);
                        return EXIT_UB;
                    }
                    complain(format_args!("{reason}; running natively"));
                }
            }
        }
    }
    become_program(&arguments.options.command)
}

/// Makes this process the first member of a session.
fn join(plan: &mut Plan, backend: Backend) -> Result<(), String> {
    let no_supervisor = |error| format!("no supervisor: {error}");
    if backend == Backend::Bpf {
        packet_filter::permitted().map_err(|reason| reason.to_string())?;
        let log = Log { file: plan.log.take(), level: plan.level };
        launch::packet_filter(log, plan.filter_record()).map_err(no_supervisor)?.begin();
        return Ok(());
    }
    let mut supervision = plan.open().map_err(|error| error.to_string())?;
    if let Some(reason) = supervision.native_reason() {
        complain(format_args!("{reason}; running natively"));
        supervision.finish();
        return Ok(());
    }
    let log = Log { file: plan.log.take(), level: plan.level };
    let link = launch::supervisor(supervision, log).map_err(no_supervisor)?;
    link.enroll().map_err(|error| error.to_string())
}

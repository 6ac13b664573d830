//! `ub profile`: the gaps of programs, without the kernel module.

use clap::{Args, ValueEnum};
use serde::Serialize;
use ub_ebpf_fallback::Profile;
use ub_report::{Report, text};

use super::observe::{Target, Watching};
use super::output::{Output, ReportFormat, json};
use crate::host::Environment;

/// Show where a program spends its time between system calls
///
/// Needs no kernel module: BPF programs count in the kernel. Needs root, or
/// CAP_BPF and CAP_PERFMON. If that cannot be, the program runs natively after
/// one line on stderr. Standard error gets the result if a program is run,
/// else standard output.
///
/// Exit status: that of the program; 125 if ub itself fails.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    output: Output<Format>,
    /// Gaps shown in text
    #[arg(long, value_name = "N", default_value_t = text::GAPS)]
    gaps: usize,
    #[command(flatten)]
    target: Target,
}

/// Forms of the result.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Text,
    /// For programs: the report of `ub stat`, with the gaps of every thread
    Json,
    /// One page that needs no other file and no network
    Html,
    /// Stacks with nanoseconds, for flame graphs
    Folded,
}

/// The report with what only the profiler knows.
#[derive(Debug, Serialize)]
struct Detailed<'a> {
    #[serde(flatten)]
    report: Report,
    profile: &'a Profile,
}

/// Runs the command; returns the exit status.
pub(super) fn main(arguments: &Arguments) -> u8 {
    let environment = Environment::detect();
    arguments.target.observe(Watching::Timing, |profile| {
        let shown = rendered(arguments, profile, environment);
        arguments.output.put(&shown, arguments.target.stream())
    })
}

fn rendered(arguments: &Arguments, profile: &Profile, environment: Environment) -> String {
    let report = profile.report(arguments.target.words(), environment);
    match arguments.output.format {
        Format::Text => {
            let mut text = ReportFormat::Text.render(&report, arguments.gaps);
            if !profile.lost.nothing() {
                text += &format!(" not counted for want of room: {}\n\n", profile.lost);
            }
            text
        }
        Format::Json => json(&Detailed { report, profile }),
        Format::Html => ReportFormat::Html.render(&report, arguments.gaps),
        Format::Folded => profile.folded(),
    }
}

//! `ub profile`: the gaps of programs, without the kernel module.

use std::io;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;
use ub_ebpf_fallback::Profile;
use ub_report::{Report, html, text};

use super::observe::{Target, put};
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
    /// Form of the result
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
    /// Write the result to FILE
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Gaps shown in text
    #[arg(long, value_name = "N", default_value_t = text::GAPS)]
    gaps: usize,
    #[command(flatten)]
    target: Target,
}

/// Forms of the result.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Format {
    /// For terminals
    #[default]
    Text,
    /// The report of `ub stat`, with the gaps of every thread
    Json,
    /// One page that needs nothing else
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
    arguments.target.observe(|profile| {
        let text = rendered(arguments, profile, environment)?;
        put(&arguments.target, arguments.output.as_deref(), &text)
    })
}

fn rendered(
    arguments: &Arguments,
    profile: &Profile,
    environment: Environment,
) -> io::Result<String> {
    let report = profile.report(arguments.target.words(), environment);
    Ok(match arguments.format {
        Format::Text => {
            let mut text = text::render(&report, arguments.gaps);
            if !profile.lost.nothing() {
                text += &format!(" not counted for want of room: {}\n\n", profile.lost);
            }
            text
        }
        Format::Json => serde_json::to_string(&Detailed { report, profile })? + "\n",
        Format::Html => html::render(&report),
        Format::Folded => profile.folded(),
    })
}

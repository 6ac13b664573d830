//! `ub explain`: what became of the gaps of a process, and how their code was
//! translated.

mod listing;
mod targets;

use std::fmt::Write;

use clap::Args;
use serde::Serialize;
use ub_report::symbols::{Mappings, Symbolizer};
use ub_report::text::{mean, outcome};
use ub_report::units::{duration, grouped, percent};
use ub_report::{GapRow, Report};

use super::complain;
use super::output::{Format, Output, Stream, json};
use crate::exec::EXIT_UB;
use crate::inspect::{self, Found, FragmentDump};

/// Say what became of the gaps of a process, and why
///
/// Without ADDR, every gap that was seen: what became of it and why. With
/// ADDR, also the code that starts there, the program's and its translation
/// side by side.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A process in a session
    #[arg(short, long, value_name = "PID")]
    pid: u32,
    /// Address of a gap, or of any code in a fragment, like 0x7f0012345678
    #[arg(value_name = "ADDR", value_parser = address)]
    address: Option<u64>,
    #[command(flatten)]
    output: Output,
}

fn address(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16)
        .map_err(|_| "expected an address like 0x7f0012345678".to_owned())
}

/// What is known of a process, or of an address of it.
#[derive(Debug, Serialize)]
struct Known {
    /// Version of this form.
    schema: u32,
    gaps: Vec<GapRow>,
    /// The fragment that stands for the address or contains it.
    fragment: Option<FragmentDump>,
}

/// Runs the command; returns the exit status.
pub(super) fn main(arguments: &Arguments) -> u8 {
    let Arguments { pid, address, output } = arguments;
    let known = inspect::of_process(*pid)
        .map_err(|error| error.to_string())
        .and_then(|found| known(&found, *pid, *address));
    match known {
        Ok(known) => {
            let shown = match (output.format, address) {
                (Format::Json, _) => json(&known),
                (Format::Text, None) => gaps(&known),
                (Format::Text, Some(_)) => code(&known, *pid),
            };
            output.put(&shown, Stream::Standard)
        }
        Err(message) => {
            complain(message);
            EXIT_UB
        }
    }
}

/// What the supervisor knows.
fn known(found: &Found, pid: u32, address: Option<u64>) -> Result<Known, String> {
    let spaces = spaces(&found.report, pid);
    let is_meant = |gap: &&GapRow| {
        spaces.contains(&gap.space) && address.is_none_or(|address| gap.address == address)
    };
    let gaps: Vec<_> = found.report.hot_gaps.iter().filter(is_meant).cloned().collect();
    let mut fragment = None;
    if let Some(address) = address {
        for space in spaces {
            fragment = found.peer.fragment(space, address).map_err(|error| error.to_string())?;
            if fragment.is_some() {
                break;
            }
        }
        if gaps.is_empty() && fragment.is_none() {
            return Err(format!(
                "nothing is known about {address:#x}; `ub explain -p {pid}` lists what is"
            ));
        }
    }
    Ok(Known { schema: 1, gaps, fragment })
}

/// Address spaces of the process; all of them for one that the session knows
/// by its parents only.
fn spaces(report: &Report, pid: u32) -> Vec<u64> {
    let own = |process: &&ub_report::Process| process.pid == Some(pid);
    let known = report.processes.iter().any(|process| own(&process));
    report.processes.iter().filter(|p| !known || own(p)).map(|process| process.space).collect()
}

/// All gaps of the process.
fn gaps(known: &Known) -> String {
    let mut out = String::new();
    for gap in &known.gaps {
        let _ = writeln!(out, "{:#x}  {}", gap.address, gap.label());
        let _ = writeln!(out, "    {}", figures(gap));
        let _ = writeln!(out, "    {}", outcome(gap));
    }
    if out.is_empty() {
        out.push_str("no gap of this process was sampled yet: its threads make few system calls\n");
    }
    out
}

fn figures(gap: &GapRow) -> String {
    let mut text = format!("{} passages", grouped(gap.count));
    if gap.count > 0 {
        let _ = write!(text, ", {} ridden", percent(gap.ridden, gap.count));
    }
    let _ = write!(text, ", native {}, ride {}", mean(&gap.native), mean(&gap.ride));
    if let Some(gain) = gap.gain() {
        let _ = write!(text, ", a ride saves {}", duration(gain.ns));
        if let Some(error) = gain.error_ns {
            let _ = write!(text, " (standard error {})", duration(error));
        }
    }
    text
}

/// The gap at an address and its fragment.
fn code(known: &Known, pid: u32) -> String {
    let mappings = Mappings::of(pid).unwrap_or_default();
    let mut symbols = Symbolizer::default();
    let mut name = |address| symbols.name(&mappings, address).map(|name| name.to_string());
    let mut out = String::new();
    for gap in &known.gaps {
        let _ = writeln!(out, "gap {:#x}  {}", gap.address, gap.label());
        let _ = writeln!(out, "    {}\n    {}\n", figures(gap), outcome(gap));
    }
    match &known.fragment {
        Some(fragment) => out += &listing::render(fragment, &mut name),
        None => out.push_str("there is no fragment for this address\n"),
    }
    out
}

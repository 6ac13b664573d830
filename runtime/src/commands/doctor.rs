//! `ub doctor`: what this machine supports and what blocks it.

use std::fmt::Write as _;

use clap::Args;

use super::output::{Format, Output, Stream, json};
use crate::doctor::{Check, Diagnosis, State, Unit};

/// Say what this machine supports and what blocks it
///
/// Exit status: 0 if programs (the unit, where one is named) can ride now, even if
/// that does not pay, 1 if not, 125 if ub itself fails.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    output: Output,
    /// Measure what rides cost on this machine, unless that was done since it
    /// was booted: takes some seconds
    #[arg(long)]
    measure: bool,
    /// Also look at this systemd service, and say what in its unit decides
    /// whether it rides
    #[arg(long, value_name = "NAME")]
    unit: Option<String>,
}

/// Runs the command; returns the exit status.
pub(super) fn main(arguments: &Arguments) -> u8 {
    let mut diagnosis = Diagnosis::make(arguments.measure);
    diagnosis.unit = arguments.unit.as_deref().map(Unit::look);
    let shown = match arguments.output.format {
        Format::Text => text(&diagnosis),
        Format::Json => json(&diagnosis),
    };
    let failure = arguments.output.put(&shown, Stream::Standard);
    if failure != 0 {
        return failure;
    }
    let unit_rides = diagnosis.unit.as_ref().is_none_or(Unit::rides_possible);
    u8::from(!(diagnosis.rides_possible && unit_rides))
}

fn add_checks(out: &mut String, checks: &[Check]) {
    for check in checks {
        let mark = match check.state {
            State::Ok => "ok    ",
            State::Note => "note  ",
            State::Blocks => "BLOCKS",
        };
        let _ = writeln!(out, "{mark}  {:<18} {}", check.name, check.found);
        if let Some(remedy) = &check.remedy {
            let _ = writeln!(out, "{:27}-> {remedy}", "");
        }
    }
}

/// The finding in one sentence.
fn verdict(diagnosis: &Diagnosis) -> &'static str {
    match (diagnosis.rides_possible, diagnosis.rides_pay) {
        (true, Some(false)) => {
            "programs can ride on this machine, but are let go, as rides do not pay here"
        }
        (true, _) => "programs can ride on this machine",
        (false, _) => "no rides on this machine now; `ub run` runs programs natively",
    }
}

fn text(diagnosis: &Diagnosis) -> String {
    let mut out = String::new();
    let environment = &diagnosis.environment;
    let _ = writeln!(out, "machine      {}, {}", environment.accelerator, environment.cpu);
    add_checks(&mut out, &diagnosis.checks);
    out.push_str("\nbackends:\n");
    for backend in &diagnosis.backends {
        let found = match &backend.missing {
            None => "available".to_owned(),
            Some(missing) => format!("unavailable ({missing})"),
        };
        let _ = writeln!(out, "  {:<12} {}: {found}", backend.name, backend.description);
    }
    let _ = writeln!(out, "\nmitigation policy ({}):", diagnosis.policy_source);
    for line in &diagnosis.policy {
        let applies = if line.applies { "yes" } else { "no" };
        let _ =
            writeln!(out, "  {:<6} {:<14} {applies:<4} {}", line.kind, line.name, line.description);
    }
    let _ = writeln!(out, "\nby vulnerability, where the processor has it (SECURITY.md):");
    for vulnerability in diagnosis.vulnerabilities.iter().filter(|entry| entry.affects()) {
        let _ = writeln!(out, "  {}: {}", vulnerability.name, vulnerability.state);
        let Some(policy) = vulnerability.policy else {
            let _ = writeln!(out, "      no policy: unknown to this version");
            continue;
        };
        for (place, what) in [
            ("before a fragment", policy.entry),
            ("around a call", policy.calls),
            ("after a fragment", policy.exit),
            ("no rides", policy.refused),
        ] {
            let _ = writeln!(out, "      {place:<18} {what}");
        }
    }
    let _ = writeln!(out, "\n{}", verdict(diagnosis));
    if let Some(unit) = &diagnosis.unit {
        let _ = writeln!(out, "\nunit {}:", unit.name);
        add_checks(&mut out, &unit.checks);
        let can = if unit.rides_possible() { "can ride" } else { "runs natively" };
        let _ = writeln!(out, "{} {can}, as far as the unit is concerned", unit.name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_does_not_promise_rides_that_do_not_pay() {
        let mut diagnosis = Diagnosis::make(false);
        let mut verdict = |possible, pay| {
            (diagnosis.rides_possible, diagnosis.rides_pay) = (possible, pay);
            let text = text(&diagnosis);
            text.lines().last().unwrap_or_default().to_owned()
        };
        let can = "programs can ride on this machine";
        assert_eq!(verdict(true, None), can);
        assert_eq!(verdict(true, Some(true)), can);
        assert_eq!(
            verdict(true, Some(false)),
            format!("{can}, but are let go, as rides do not pay here")
        );
        assert!(verdict(false, None).starts_with("no rides on this machine"));
    }
}

//! `ub predict`: what riding would gain, before anything is installed.

use clap::Args;
use ub_ebpf_fallback::predict::{self, Limits, RideCosts};
use ub_report::text;

use super::observe::{Target, Watching};
use super::output::{Format, Output, json};
use crate::config::{self, Origin, Places, Settings};
use crate::machine;

/// Predict what a program would gain on this machine
///
/// Profiles it like `ub profile`, without the kernel module, and sets the
/// measured cost of a switch against the time between the switches. Where the
/// module is loaded and may be used, a process of ub's own rides for some
/// seconds first, which tells what rides cost here; elsewhere that is estimated.
///
/// Exit status: that of the program; 125 if ub itself fails.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    output: Output,
    /// Gaps shown in text
    #[arg(long, value_name = "N", default_value_t = text::GAPS)]
    gaps: usize,
    /// Estimate what rides cost, even where the module could tell
    #[arg(long)]
    estimate: bool,
    /// Time of translated code over that of the original, within a fragment;
    /// `make bench-code` measures it. For estimates
    #[arg(long, value_name = "RATIO", default_value_t = RideCosts::default().translated)]
    translated_cost: f64,
    /// The same of long gaps, which lead through several fragments; `ub bench
    /// instructions` measures it
    #[arg(long, value_name = "RATIO", default_value_t = RideCosts::default().linked)]
    linked_cost: f64,
    /// Instructions of a ridden system call that does nothing. For estimates
    #[arg(long, value_name = "N", default_value_t = RideCosts::default().call_instructions)]
    call_cost: f64,
    #[command(flatten)]
    target: Target,
}

/// Runs the command; returns the exit status.
pub(super) fn main(arguments: &Arguments) -> u8 {
    // Before anything is watched: what is traced does not ride.
    let measured = (!arguments.estimate && config::disabled_by_environment() != Some(true))
        .then(machine::measure)
        .and_then(Result::ok);
    let costs = RideCosts {
        measured,
        translated: arguments.translated_cost,
        linked: arguments.linked_cost,
        call_instructions: arguments.call_cost,
        ..RideCosts::default()
    };
    // Settings that cannot be read keep nobody from predicting.
    let origins = Places::default().origins(&Settings::default()).unwrap_or_default();
    let limits = limits(&origins);
    arguments.target.observe(Watching::InTurns, |profile| {
        let prediction = predict::predict(profile, costs, limits);
        let shown = match arguments.output.format {
            Format::Text => {
                let command = arguments.target.words().join(" ");
                let text = prediction.text(arguments.gaps);
                format!("\n ub: prediction for '{command}':\n\n{text}")
            }
            Format::Json => json(&prediction),
        };
        arguments.output.put(&shown, arguments.target.stream())
    })
}

/// What a session would leave alone here, as it is set.
fn limits(origins: &[Origin]) -> Limits {
    let number = |name: &str| -> Option<f64> {
        let origin = origins.iter().find(|origin| origin.name == name)?;
        origin.value.as_ref()?.parse().ok()
    };
    let default = Limits::default();
    Limits {
        min_rate: number("min_rate").map_or(default.min_rate, |rate| rate as u32),
        gap_max_ns: number("gap_max_us")
            .map_or(default.gap_max_ns, |microseconds| 1e3 * microseconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_settings() {
        let origin = |name: &str, value: Option<&str>| Origin {
            name: name.to_owned(),
            value: value.map(str::to_owned),
            origin: "somewhere".to_owned(),
        };
        let origins = [origin("min_rate", Some("1000")), origin("gap_max_us", None)];
        let expected = Limits { min_rate: 1000, ..Limits::default() };
        assert_eq!(limits(&origins), expected);
        assert_eq!(limits(&[origin("gap_max_us", Some("32.5"))]).gap_max_ns, 32_500.0);
    }
}

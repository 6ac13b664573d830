//! Where something is measured, and the facts about that machine.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::outcome::Machine;

/// Where something is measured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Target {
    /// On the machine that the harness itself runs on.
    Here,
    /// In a guest.
    Guest {
        /// Line of the stock kernel, such as "6.12".
        kernel: String,
        /// Page-table isolation.
        kpti: bool,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here => f.pad("here"),
            Self::Guest { kernel, kpti } => {
                f.pad(&format!("{kernel}-kpti-{}", if *kpti { "on" } else { "off" }))
            }
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if name == "here" {
            return Ok(Self::Here);
        }
        let guest = |kernel: &str, kpti| Self::Guest { kernel: kernel.into(), kpti };
        let on = name.strip_suffix("-kpti-on").map(|kernel| guest(kernel, true));
        on.or_else(|| name.strip_suffix("-kpti-off").map(|kernel| guest(kernel, false)))
            .ok_or_else(|| format!("\"{name}\" is not a machine of a run"))
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

/// The facts that label every figure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// As [`ub_report::host::Environment::accelerator`].
    pub accelerator: String,
    /// What the kernel under test says.
    pub machine: Machine,
}

impl Environment {
    /// Whether wall-clock figures are emulated.
    #[must_use]
    pub fn is_emulated(&self) -> bool {
        self.accelerator == ub_report::host::EMULATED
    }

    /// The facts as a line for people, with a second one where the CPU is emulated.
    #[must_use]
    pub fn label(&self) -> String {
        let Self { accelerator, machine } = self;
        let kpti = match machine.kpti {
            Some(true) => "on",
            Some(false) => "off",
            None => "unknown",
        };
        let mut text = format!(
            "accelerator {accelerator} | KPTI {kpti} | kernel {} | CPU {} ({} used) | mitigations: {}",
            machine.kernel,
            machine.cpu,
            machine.cpus,
            machine.mitigations()
        );
        if self.is_emulated() {
            text.push_str(
                "\nThe CPU is emulated: rates, times and gains say nothing about real hardware. Counts do.",
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_parse_back() {
        let guest = Target::Guest { kernel: "6.12".into(), kpti: true };
        for target in [guest, Target::Here] {
            assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
        }
        assert!("6.12".parse::<Target>().is_err());
    }
}

//! What `ub predict` said and what then came: the outcome of `ub-bench-guest
//! predict`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::outcome::Machine;
use crate::plan::Workload;
use crate::stats;

/// Gains up to this share are within what a measurement of so short a time can
/// tell, and are not judged.
pub const JUDGED_GAIN: f64 = 0.1;

/// Everything of one guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PredictionOutcome {
    /// Facts about the machine.
    pub machine: Machine,
    /// One for each workload.
    pub cells: Vec<PredictionCell>,
}

/// One workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PredictionCell {
    /// What was run.
    pub workload: Workload,
    /// What `ub predict --json` wrote while the native program had load.
    pub prediction: Value,
    /// CPU nanoseconds of the native program for each operation, by round.
    pub native_ns: Vec<f64>,
    /// The same under `ub run`, in the same rounds.
    pub ub_ns: Vec<f64>,
    /// Share of the calls that were ridden.
    pub ridden_share: f64,
    /// What was wrong with the data.
    pub faults: Vec<String>,
}

impl PredictionCell {
    /// More work in the same CPU time, as predicted: 0.1 is 10 % more.
    #[must_use]
    pub fn predicted(&self) -> f64 {
        self.number("gain")
    }

    /// The same as measured: of the medians.
    #[must_use]
    pub fn measured(&self) -> f64 {
        let ratio = stats::median(&self.native_ns).zip(stats::median(&self.ub_ns));
        ratio.map_or(0.0, |(native, ub)| native / ub - 1.0)
    }

    /// How far the prediction is off, as a share of itself.
    #[must_use]
    pub fn error(&self) -> f64 {
        (self.measured() - self.predicted()) / self.predicted().abs().max(f64::EPSILON)
    }

    /// Whether the gain is large enough to be judged.
    #[must_use]
    pub fn is_judged(&self) -> bool {
        self.predicted() > JUDGED_GAIN
    }

    /// A number of the prediction; 0 if it is not there.
    #[must_use]
    pub fn number(&self, name: &str) -> f64 {
        self.prediction[name].as_f64().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_a_share_of_the_predicted_gain() {
        let cell = |gain: f64| PredictionCell {
            workload: Workload::Null,
            prediction: serde_json::json!({ "gain": gain }),
            native_ns: vec![300.0, 310.0, 290.0],
            ub_ns: vec![200.0, 90.0, 250.0],
            ridden_share: 1.0,
            faults: vec![],
        };
        assert!((cell(0.4).measured() - 0.5).abs() < 1e-9);
        assert!((cell(0.4).error() - 0.25).abs() < 1e-9);
        assert!(cell(0.4).is_judged() && !cell(0.1).is_judged());
    }
}

//! What `ub predict` said and what then came: the outcome of `ub-bench-guest
//! predict`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bootstrap::Interval;
use crate::outcome::Machine;
use crate::plan::Workload;
use crate::report;

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
    /// What `ub predict --estimate` wrote while the native program had load: what
    /// can be said without the module.
    pub estimate: Value,
    /// The same without `--estimate`: what rides cost was measured.
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
    /// More work in the same CPU time, as measured: 0.1 is 10 % more. The median
    /// over the rounds, and where it lies with a probability of 95 %.
    #[must_use]
    pub fn measured(&self) -> Interval {
        let rounds = self.native_ns.iter().zip(&self.ub_ns);
        let rates = rounds.map(|(native, ub)| (native.recip(), ub.recip())).collect();
        let none = Interval { estimate: 1.0, low: 1.0, high: 1.0 };
        let Interval { estimate, low, high } = report::speedup(&[rates]).unwrap_or(none);
        Interval { estimate: estimate - 1.0, low: low - 1.0, high: high - 1.0 }
    }

    /// How far the gain that `said` promises is off, as a share of itself; `None`
    /// if it is too small to be judged.
    #[must_use]
    pub fn error(&self, said: &Value) -> Option<f64> {
        let gain = number(said, "gain");
        (gain > JUDGED_GAIN).then(|| (self.measured().estimate - gain) / gain)
    }
}

/// A number of a prediction; 0 if it is not there.
#[must_use]
pub fn number(prediction: &Value, name: &str) -> f64 {
    prediction[name].as_f64().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_a_share_of_the_predicted_gain() {
        let cell = PredictionCell {
            workload: Workload::Null,
            estimate: serde_json::json!({ "gain": 0.1 }),
            prediction: serde_json::json!({ "gain": 0.4 }),
            native_ns: vec![300.0, 310.0, 290.0],
            ub_ns: vec![200.0, 90.0, 250.0],
            ridden_share: 1.0,
            faults: vec![],
        };
        let measured = cell.measured();
        assert!((measured.estimate - 0.5).abs() < 1e-9 && measured.contains(0.5), "{measured:?}");
        assert!(measured.low < 0.2 && measured.high > 2.0, "three rounds say little: {measured:?}");
        assert!(cell.error(&cell.prediction).is_some_and(|error| (error - 0.25).abs() < 1e-9));
        assert_eq!(cell.error(&cell.estimate), None);
    }
}

//! What `ub predict` said and what then came: the outcome of `ub-bench-guest
//! predict`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bootstrap::Interval;
use crate::outcome::Machine;
use crate::plan::Workload;
use crate::report;
use crate::stats;

/// Pairs of processes that are measured: under an emulator one process is faster than
/// another of the same program for as long as they live.
pub const LAUNCHES: u32 = 3;

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
    /// What `ub predict --estimate` wrote of the native program of each pair, while
    /// that had load: what can be said without the module.
    pub estimates: Vec<Value>,
    /// The same without `--estimate`: what rides cost was measured.
    pub predictions: Vec<Value>,
    /// CPU nanoseconds for each operation, of the native program and of the one
    /// under `ub run`, by pair of processes and round.
    pub launches: Vec<Vec<(f64, f64)>>,
    /// Share of the calls that were ridden.
    pub ridden_share: f64,
    /// What was wrong with the data.
    pub faults: Vec<String>,
}

impl PredictionCell {
    /// A cell of which nothing is known yet.
    #[must_use]
    pub fn new(workload: Workload) -> Self {
        Self {
            workload,
            estimates: Vec::new(),
            predictions: Vec::new(),
            launches: Vec::new(),
            ridden_share: 0.0,
            faults: Vec::new(),
        }
    }

    /// More work in the same CPU time, as measured: 0.1 is 10 % more. The median
    /// over the rounds, and where it lies with a probability of 95 %.
    #[must_use]
    pub fn measured(&self) -> Interval {
        let rate = |(native, ub): &(f64, f64)| (native.recip(), ub.recip());
        let rates = |rounds: &Vec<(f64, f64)>| rounds.iter().map(rate).collect();
        let launches: Vec<_> = self.launches.iter().map(rates).collect();
        let none = Interval { estimate: 1.0, low: 1.0, high: 1.0 };
        let Interval { estimate, low, high } = report::speedup(&launches).unwrap_or(none);
        Interval { estimate: estimate - 1.0, low: low - 1.0, high: high - 1.0 }
    }

    /// How far the gain that was said ([`median`]) is off, as a share of itself, or of the
    /// least gain that is judged where less was said. `None` if neither it nor, with
    /// confidence, what was measured is large enough to be judged.
    #[must_use]
    pub fn error(&self, said: &[Value]) -> Option<f64> {
        let (gain, measured) = (median(said, "gain"), self.measured());
        let judged = gain > JUDGED_GAIN || measured.low > JUDGED_GAIN;
        judged.then(|| (measured.estimate - gain) / gain.max(JUDGED_GAIN))
    }
}

/// The median of a number of the predictions; 0 if none has it.
#[must_use]
pub fn median(predictions: &[Value], name: &str) -> f64 {
    let numbers: Vec<f64> = predictions.iter().filter_map(|said| said[name].as_f64()).collect();
    stats::median(&numbers).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_a_share_of_the_predicted_gain() {
        let cell = PredictionCell {
            workload: Workload::Null,
            estimates: vec![serde_json::json!({ "gain": 0.1 })],
            predictions: [0.4, 9.0, 0.1].map(|gain| serde_json::json!({ "gain": gain })).to_vec(),
            launches: vec![vec![(300.0, 200.0), (310.0, 90.0), (290.0, 250.0)]],
            ridden_share: 1.0,
            faults: vec![],
        };
        let measured = cell.measured();
        assert!((measured.estimate - 0.5).abs() < 1e-9 && measured.contains(0.5), "{measured:?}");
        assert!(measured.low < 0.2 && measured.high > 2.0, "three rounds say little: {measured:?}");
        assert!(cell.error(&cell.predictions).is_some_and(|error| (error - 0.25).abs() < 1e-9));
        // Neither said nor, for certain, measured.
        let unsure = PredictionCell {
            launches: vec![vec![(300.0, 200.0), (310.0, 90.0), (290.0, 290.0)]],
            ..cell.clone()
        };
        assert_eq!(unsure.error(&cell.estimates), None);
        assert!(cell.error(&cell.estimates).is_some_and(|error| (error - 4.0).abs() < 1e-9));
    }
}

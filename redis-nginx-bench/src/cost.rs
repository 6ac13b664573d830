//! What a request costs in instructions: the outcome of `ub-bench-guest cost`.
//!
//! The guest runs under QEMU's `-icount`, where a nanosecond of CPU time and a
//! tick of the cycle counter are one instruction each. So the figures are
//! counts: they depend on the code that is executed and neither on the host
//! nor on what a real CPU makes of it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::outcome::{Counts, Machine};
use crate::plan::Workload;
use crate::stats;

/// Everything that was measured in one guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CostOutcome {
    /// Facts about the machine.
    pub machine: Machine,
    /// One for each workload and way of running it.
    pub cells: Vec<CostCell>,
}

/// How a program was run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// As it is, in no session.
    Native,
    /// In a session that counts and times gaps but translates nothing. What
    /// is between two system calls then runs in user mode.
    Watched,
    /// In a session in which all that can ride does, whether it pays or not.
    Ub,
    /// Under `ub run` without options: where rides do not pay, the program is
    /// let go and in no session then.
    Plain,
}

impl Way {
    /// What a ride is compared with, and the ride.
    pub const RIDE: [Self; 3] = [Self::Native, Self::Watched, Self::Ub];
    /// All of them, in the order of the table.
    pub const ALL: [Self; 4] = [Self::Native, Self::Watched, Self::Ub, Self::Plain];

    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Watched => "watched",
            Self::Ub => "ub",
            Self::Plain => "ub run",
        }
    }
}

/// One workload, run in one way, several times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CostCell {
    /// What ran.
    pub workload: Workload,
    /// How.
    pub way: Way,
    /// The runs, each of a fresh process.
    pub runs: Vec<CostRun>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CostRun {
    /// Requests of the timed part.
    pub requests: u64,
    /// CPU time of the program in it, in nanoseconds: instructions, under
    /// `-icount` with shift 0.
    pub cpu_ns: u64,
    /// What the session counted in the timed part; `None` for [`Way::Native`].
    pub counts: Option<Counts>,
    /// How translation came to rest before it; only for servers under
    /// [`Way::Ub`].
    pub settled: Option<Settled>,
    /// The session's report at its end.
    pub report: Option<Value>,
    /// Digest of what was computed.
    pub digest: String,
    /// What was wrong with the data.
    pub faults: Vec<String>,
}

/// How the translation of a program came to rest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Settled {
    /// How often the load was repeated for it.
    pub loads: u32,
    /// How long that took, in seconds of the guest's clock.
    pub seconds: f64,
    /// Whether it did; otherwise the time was up.
    pub stable: bool,
}

impl CostRun {
    /// Instructions of the program, user and kernel, per request.
    #[must_use]
    pub fn total(&self) -> f64 {
        stats::ratio(self.cpu_ns, self.requests)
    }

    /// Instructions between system calls per request, with the way to user mode and
    /// back or what a ride does in its place.
    #[must_use]
    pub fn user_side(&self) -> Option<f64> {
        self.counts.as_ref().and_then(Counts::gap_cycles_per_op)
    }
}

impl CostCell {
    /// Mean of `figure` over the runs, and the difference of the largest and
    /// the smallest in relation to it.
    #[must_use]
    pub fn figure(&self, figure: impl Fn(&CostRun) -> Option<f64>) -> Option<Spread> {
        let values: Vec<f64> = self.runs.iter().map(figure).collect::<Option<_>>()?;
        Spread::of(&values)
    }

    /// Counts of all runs.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for counts in self.runs.iter().filter_map(|run| run.counts.as_ref()) {
            sum.add(counts);
        }
        sum
    }
}

/// Several measurements of one figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Their mean.
    pub mean: f64,
    /// Largest less smallest, as a share of the mean.
    pub spread: f64,
}

impl Spread {
    /// `None` without values, or of a mean that is not positive.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (mean > 0.0).then(|| Self { mean, spread: (largest - smallest) / mean })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_relative_to_the_mean() {
        assert_eq!(Spread::of(&[90.0, 110.0]), Some(Spread { mean: 100.0, spread: 0.2 }));
        assert_eq!(Spread::of(&[5.0]), Some(Spread { mean: 5.0, spread: 0.0 }));
        assert_eq!((Spread::of(&[]), Spread::of(&[0.0])), (None, None));
    }
}

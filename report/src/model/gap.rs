//! What is known of a gap, and what riding it saves.

use serde::{Deserialize, Serialize};

/// Standard errors on each side of a mean within which the true value lies
/// with 95 % confidence, for the many samples that a gap has.
const CONFIDENCE_95: f64 = 1.96;

/// What became of a gap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapState {
    /// Runs natively and is only counted.
    #[default]
    Native,
    /// Worth a fragment; there is none yet.
    Hot,
    /// A fragment is installed.
    Riding,
    /// No fragment can be made of it.
    Refused,
    /// Its fragment did not pay and was removed.
    Retired,
}

impl GapState {
    /// Name for people and for the JSON form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Hot => "hot",
            Self::Riding => "riding",
            Self::Refused => "refused",
            Self::Retired => "retired",
        }
    }
}

/// A mean of time samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timing {
    /// How many passages were timed.
    pub samples: u64,
    /// Their mean, in nanoseconds.
    pub mean_ns: f64,
    /// Standard error of the mean in nanoseconds, where the spread is known.
    pub error_ns: Option<f64>,
}

impl Timing {
    /// The mean, if there is a sample.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.samples > 0).then_some(self.mean_ns)
    }
}

/// What riding one passage of a gap saves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gain {
    /// Nanoseconds; negative if riding loses time.
    pub ns: f64,
    /// Standard error in nanoseconds, where the spread is known.
    pub error_ns: Option<f64>,
}

/// One gap: the user code from a return of the kernel to the next call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GapRow {
    /// The address space; see [`Process::space`](super::Process::space).
    pub space: u64,
    /// User address at which the gap starts.
    pub address: u64,
    /// Name of the code there, e.g. `redis-server!writeToClient+0x52`.
    pub from: Option<String>,
    /// Name of what it goes to, e.g. `libc!write`.
    pub to: Option<String>,
    /// Passages.
    pub count: u64,
    /// Of these, ridden.
    pub ridden: u64,
    /// Time of native passages, both switches included.
    pub native: Timing,
    /// Time of ridden passages.
    pub ride: Timing,
    /// Nanoseconds that a ridden passage saves, where that was judged.
    pub gain: Option<Gain>,
    /// What became of it.
    pub state: GapState,
    /// Why, for people.
    pub reason: Option<String>,
}

impl GapRow {
    /// `FROM -> TO`, with the address where no name is known.
    #[must_use]
    pub fn label(&self) -> String {
        let from = self.from.clone().unwrap_or_else(|| format!("{:#x}", self.address));
        match &self.to {
            Some(to) => format!("{from} -> {to}"),
            None => from,
        }
    }

    /// What a ridden passage saves: as judged, or else the difference of the
    /// two means; `None` if it was not timed both ways.
    #[must_use]
    pub fn gain(&self) -> Option<Gain> {
        self.gain.or_else(|| {
            let (native, ride) = (self.native.mean()?, self.ride.mean()?);
            let errors = self.native.error_ns.zip(self.ride.error_ns);
            Some(Gain { ns: native - ride, error_ns: errors.map(|(a, b)| a.hypot(b)) })
        })
    }

    /// Time that riding this gap has saved, if both ways of passing it were
    /// timed.
    #[must_use]
    pub fn saved(&self) -> Option<TimeSaved> {
        let Gain { ns, error_ns } = self.gain()?;
        let count = self.ridden as f64;
        Some(TimeSaved {
            ns: count * ns,
            margin_ns: error_ns.map(|error| CONFIDENCE_95 * count * error),
            measured_share: 1.0,
        })
    }
}

/// An estimate: ridden passages times the difference of two means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimeSaved {
    /// Nanoseconds saved; negative if riding lost time.
    pub ns: f64,
    /// Nanoseconds to either side within which the true value lies with 95 %
    /// confidence, where the spread of the samples is known.
    pub margin_ns: Option<f64>,
    /// Share of the ridden passages that the estimate covers.
    pub measured_share: f64,
}

impl TimeSaved {
    /// The sum over gaps, whose errors are independent; `None` if no gap was
    /// timed both ways. `ridden` is the number of all ridden passages.
    #[must_use]
    pub fn of(gaps: &[GapRow], ridden: u64) -> Option<Self> {
        let timed: Vec<_> =
            gaps.iter().filter_map(|gap| gap.saved().map(|saved| (gap.ridden, saved))).collect();
        if timed.iter().all(|(ridden, _)| *ridden == 0) {
            return None;
        }
        let covered: u64 = timed.iter().map(|(ridden, _)| ridden).sum();
        let squares: Option<f64> =
            timed.iter().map(|(_, saved)| saved.margin_ns.map(|margin| margin * margin)).sum();
        Some(Self {
            ns: timed.iter().map(|(_, saved)| saved.ns).sum(),
            margin_ns: squares.map(f64::sqrt),
            measured_share: (covered as f64 / ridden.max(1) as f64).min(1.0),
        })
    }
}

/// How many values fell between two powers of two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Histogram {
    /// Element `n` counts values in nanoseconds from `2^n` to below
    /// `2^(n+1)`; the first one also counts 0.
    pub log2_ns: Vec<u64>,
}

impl Histogram {
    /// Counts `times` values of `ns` nanoseconds.
    pub fn add(&mut self, ns: u64, times: u64) {
        let bucket = ns.max(1).ilog2() as usize;
        if self.log2_ns.len() <= bucket {
            self.log2_ns.resize(bucket + 1, 0);
        }
        self.log2_ns[bucket] += times;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(ridden: u64, native: f64, ride: f64, error: Option<f64>) -> GapRow {
        let timing = |mean_ns| Timing { samples: 9, mean_ns, error_ns: error };
        GapRow { ridden, native: timing(native), ride: timing(ride), ..Default::default() }
    }

    #[test]
    fn the_estimate_is_the_sum_over_gaps() {
        let gaps = [gap(1000, 50.0, 20.0, Some(0.0)), gap(3000, 20.0, 25.0, Some(0.0))];
        let saved = TimeSaved::of(&gaps, 8000).unwrap();
        assert_eq!(saved, TimeSaved { ns: 15_000.0, margin_ns: Some(0.0), measured_share: 0.5 });
    }

    #[test]
    fn errors_of_independent_gaps_add_as_squares() {
        let mut gaps = [gap(3, 9.0, 1.0, Some(1.0)), gap(4, 9.0, 1.0, Some(1.0))];
        for gap in &mut gaps {
            gap.ride.error_ns = Some(0.0);
        }
        let margin = TimeSaved::of(&gaps, 7).unwrap().margin_ns.unwrap();
        assert!((margin - CONFIDENCE_95 * 5.0).abs() < 1e-9, "{margin}");
        gaps[0].native.error_ns = None;
        assert_eq!(TimeSaved::of(&gaps, 7).unwrap().margin_ns, None);
    }

    #[test]
    fn without_both_timings_there_is_no_estimate() {
        let mut one = gap(1000, 50.0, 20.0, None);
        one.ride.samples = 0;
        assert_eq!(TimeSaved::of(&[one], 1000), None);
        assert_eq!(TimeSaved::of(&[gap(0, 50.0, 20.0, None)], 0), None);
        assert_eq!(TimeSaved::of(&[], 0), None);
    }

    #[test]
    fn lengths_are_counted_between_powers_of_two() {
        let mut lengths = Histogram::default();
        for (ns, times) in [(0, 1), (1, 1), (2, 10), (3, 10), (1024, 5)] {
            lengths.add(ns, times);
        }
        assert_eq!(lengths.log2_ns[..3], [2, 20, 0]);
        assert_eq!((lengths.log2_ns.len(), lengths.log2_ns[10]), (11, 5));
    }
}

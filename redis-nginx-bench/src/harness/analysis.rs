//! From raw samples to figures.

use crate::bootstrap::{self, Interval};
use crate::cost::Settled;
use crate::events::Sample;
use crate::outcome::{Counts, Round};
use crate::plan::Mode;
use crate::report::{LEVEL, speedup};
use crate::stats::median;

use super::record::{Cell, Launch};

/// The figures of one cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// Rounds with both modes (or with the native one, where it is alone).
    pub rounds: usize,
    /// Operations per second, natively.
    pub native: Option<Interval>,
    /// The same while the modules under test were not loaded.
    pub unloaded: Option<Interval>,
    /// Operations per second under ub.
    pub ub: Option<Interval>,
    /// Median over the rounds of ub's rate in relation to the native one of the same
    /// round: 1.1 is 10 % faster.
    pub gain: Option<Interval>,
    /// CPU time of the server per operation, in microseconds: native, ub.
    pub cpu_us: [Option<f64>; 2],
    /// Time of the native server in user mode per operation, in microseconds.
    pub user_us: Option<f64>,
    /// Median latency percentiles in microseconds: native, ub.
    pub latency_us: [Vec<(u32, f64)>; 2],
    /// Mean latency in microseconds: native, ub.
    pub latency_mean_us: [Option<f64>; 2],
    /// System calls per operation of the native program. Each is a transition.
    pub native_calls: Option<f64>,
    /// What the session of ub counted.
    pub counts: Option<Counts>,
    /// How the translation of each pair of processes came to rest.
    pub settled: Vec<Settled>,
    /// What was wrong with the data; empty when all is right or nothing is known.
    pub faults: Vec<String>,
    /// Whether checked results of both modes are there and the same.
    pub results_match: bool,
}

impl Figures {
    /// The figures of `cell`.
    #[must_use]
    pub fn of(cell: &Cell) -> Self {
        let rates = |of: &dyn Fn(&Launch) -> Vec<f64>| {
            let clusters: Vec<Vec<f64>> = cell.launches.iter().map(of).collect();
            bootstrap::interval(&clusters, LEVEL, median)
        };
        let rate = |sample: &Sample| Round::ops_per_s(&sample.round);
        let in_mode = |mode| rates(&|launch| launch.samples(mode).map(rate).collect());
        let both = [Mode::Native, Mode::Ub];
        let mut counts: Option<Counts> = None;
        for launch in &cell.launches {
            if let Some(own) = launch.end(Mode::Ub).and_then(|end| end.counts.as_ref()) {
                counts.get_or_insert_default().add(own);
            }
        }
        let faults = faults(cell);
        let native_calls = cell.native_counts.as_ref().or(counts.as_ref());
        Self {
            rounds: cell.rounds(),
            native: in_mode(Mode::Native),
            unloaded: rates(&|launch| launch.unloaded.iter().map(rate).collect()),
            ub: in_mode(Mode::Ub),
            gain: speedup(&pairs(cell)),
            cpu_us: both.map(|mode| median_us(cell, mode, |sample| sample.cpu_ns)),
            user_us: median_us(cell, Mode::Native, |sample| sample.user_ns),
            latency_us: both.map(|mode| percentiles(cell, mode)),
            latency_mean_us: both.map(|mode| {
                let means: Vec<f64> =
                    latencies(cell, mode).map(|latency| latency.mean_us).collect();
                median(&means)
            }),
            native_calls: native_calls.map(Counts::syscalls_per_op),
            counts,
            settled: cell.launches.iter().filter_map(|launch| launch.settled).collect(),
            results_match: faults.is_empty()
                && cell.launches.iter().any(|launch| !launch.ends.is_empty()),
            faults,
        }
    }

    /// Transitions per operation under ub.
    #[must_use]
    pub fn ub_transitions(&self) -> Option<f64> {
        self.counts.as_ref().map(Counts::transitions_per_op)
    }

    /// Share of the calls that were ridden, 0 to 1.
    #[must_use]
    pub fn ridden_share(&self) -> Option<f64> {
        self.counts.as_ref().map(Counts::ridden_share)
    }
}

/// The rounds' rates, by pair of processes.
pub(super) fn pairs(cell: &Cell) -> Vec<Vec<(f64, f64)>> {
    let all = cell.launches.iter().map(Launch::pairs);
    all.filter(|pairs| !pairs.is_empty()).collect()
}

/// Median of a time in nanoseconds, in microseconds per operation.
fn median_us(cell: &Cell, mode: Mode, time: impl Fn(&Sample) -> u64) -> Option<f64> {
    let values: Vec<f64> = cell
        .launches
        .iter()
        .flat_map(|launch| launch.samples(mode))
        .filter(|sample| sample.round.operations > 0)
        .map(|sample| time(sample) as f64 / 1e3 / sample.round.operations as f64)
        .collect();
    median(&values)
}

fn latencies(cell: &Cell, mode: Mode) -> impl Iterator<Item = &crate::outcome::Latency> {
    cell.launches
        .iter()
        .flat_map(move |launch| launch.samples(mode))
        .filter_map(|sample| sample.latency.as_ref())
}

fn percentiles(cell: &Cell, mode: Mode) -> Vec<(u32, f64)> {
    let mut known: Vec<u32> =
        latencies(cell, mode).flat_map(|latency| latency.percentiles_us.keys().copied()).collect();
    known.sort_unstable();
    known.dedup();
    known
        .into_iter()
        .filter_map(|percent| {
            let values: Vec<f64> = latencies(cell, mode)
                .filter_map(|latency| latency.percentiles_us.get(&percent).copied())
                .collect();
            Some((percent, median(&values)?))
        })
        .collect()
}

fn faults(cell: &Cell) -> Vec<String> {
    let mut faults = Vec::new();
    for launch in &cell.launches {
        for (mode, end) in &launch.ends {
            faults.extend(end.faults.iter().map(|fault| format!("{mode}: {fault}")));
        }
        if let (Some(native), Some(ub)) = (launch.end(Mode::Native), launch.end(Mode::Ub))
            && native.digest != ub.digest
        {
            faults.push("ub computed something else than native".into());
        }
    }
    faults.sort_unstable();
    faults.dedup();
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::record::tests::record;

    #[test]
    fn figures_come_from_the_rounds() {
        let record = record(5, 1.2);
        let figures = Figures::of(&record.machines[0].cells[0]);
        let gain = figures.gain.unwrap();
        assert!(gain.low >= 1.2 && gain.high <= 1.24, "{gain:?}");
        assert_eq!(figures.rounds, 5);
        assert_eq!((figures.native_calls, figures.ub_transitions()), (Some(2.0), Some(0.5)));
        assert_eq!(figures.ridden_share(), Some(0.75));
        // Half a second of CPU for a little over 100,000 operations.
        assert!((4.5..5.0).contains(&figures.cpu_us[0].unwrap()));
        assert!(figures.results_match && figures.settled.len() == 1);
    }

    #[test]
    fn differing_results_are_faults() {
        let mut record = record(2, 1.0);
        let cell = &mut record.machines[0].cells[0];
        cell.launches[0].ends[1].1.digest = "e".into();
        let figures = Figures::of(cell);
        assert!(!figures.results_match);
        assert_eq!(figures.faults, ["ub computed something else than native"]);
        cell.launches[0].ends[1].1.digest = "d".into();
        cell.launches[0].ends[0].1.faults = vec!["lost".into(); 2];
        assert_eq!(Figures::of(cell).faults, ["native: lost"]);
    }

    #[test]
    fn an_unfinished_cell_has_figures_and_no_verdict() {
        let mut record = record(2, 1.0);
        let cell = &mut record.machines[0].cells[0];
        cell.launches[0].ends.clear();
        let figures = Figures::of(cell);
        assert!(figures.gain.is_some() && !figures.results_match && figures.faults.is_empty());
    }
}

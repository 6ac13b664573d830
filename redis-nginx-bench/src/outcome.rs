//! What the guest driver measured; it writes this as JSON for the host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cost::Settled;
use crate::events::Sample;
use crate::plan::{Mode, Workload};

/// Everything that came out of one plan in one guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Facts about the machine that every figure is labelled with.
    pub machine: Machine,
    /// One for each workload and mode.
    pub cells: Vec<Cell>,
}

/// The machine as the kernel under test describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `uname -r`.
    pub kernel: String,
    /// Model name from `/proc/cpuinfo`.
    pub cpu: String,
    /// Number of CPUs the driver may use.
    pub cpus: usize,
    /// Whether the kernel runs with page-table isolation. `None`: the kernel
    /// does not say (no `/sys`, or no Meltdown entry).
    pub kpti: Option<bool>,
    /// `/sys/devices/system/cpu/vulnerabilities`: name to state.
    pub vulnerabilities: BTreeMap<String, String>,
}

impl Machine {
    /// What the kernel does about the CPU's vulnerabilities, in short.
    #[must_use]
    pub fn mitigations(&self) -> String {
        let active: Vec<String> = self
            .vulnerabilities
            .iter()
            .filter(|(_, state)| *state != "Not affected")
            .map(|(name, state)| format!("{name}: {}", state.trim_start_matches("Mitigation: ")))
            .collect();
        if active.is_empty() { "none needed".to_owned() } else { active.join("; ") }
    }
}

/// One workload in one mode.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// What ran.
    pub workload: Workload,
    /// How.
    pub mode: Mode,
    /// How the translation came to rest before them; `None` where nothing is
    /// translated.
    pub settled: Option<Settled>,
    /// The timed loads of one process, in the order they were taken.
    pub rounds: Vec<Sample>,
    /// What the enrolled threads did in them. For [`Mode::Native`] this comes
    /// from one extra session that counts and never translates, so the calls
    /// are counted by the same hook. `None`: no counts, as `ub` mode was not in
    /// the plan.
    pub counts: Option<Counts>,
    /// The session's last report, whole, for whoever looks for the reason of a
    /// figure.
    pub session: Option<Value>,
    /// Digest of what the workload computed.
    pub digest: String,
    /// What was wrong with the data; empty when everything was right.
    pub faults: Vec<String>,
}

impl Cell {
    /// A cell of which nothing is measured yet.
    #[must_use]
    pub fn new(workload: Workload, mode: Mode) -> Self {
        Self {
            workload,
            mode,
            settled: None,
            rounds: Vec::new(),
            counts: None,
            session: None,
            digest: String::new(),
            faults: Vec::new(),
        }
    }
}

/// The timed part of one measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Operations done.
    pub operations: u64,
    /// How long they took, in seconds.
    pub seconds: f64,
}

impl Round {
    /// Operations per second; 0 for an empty round.
    #[must_use]
    pub fn ops_per_s(&self) -> f64 {
        if self.seconds > 0.0 { self.operations as f64 / self.seconds } else { 0.0 }
    }
}

/// How long single operations took, as a load generator saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Mean, in microseconds.
    pub mean_us: f64,
    /// Percentile (50, 90, 99 ...) to microseconds.
    pub percentiles_us: BTreeMap<u32, f64>,
}

/// Counts of one or more sessions and the operations they served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Operations.
    pub operations: u64,
    /// System calls of the enrolled threads.
    pub syscalls: u64,
    /// Of these, reached without leaving ring 0.
    pub ridden: u64,
    /// Stays in ring 0 with at least one fragment.
    pub rides: u64,
    /// Why rides ended.
    pub exits: BTreeMap<String, u64>,
    /// Calls behind which no ride began, by reason.
    #[serde(default)]
    pub refused: BTreeMap<String, u64>,
    /// How the program got from one call to the next ("native", "ridden",
    /// "left"); empty unless the session timed that.
    #[serde(default)]
    pub gaps: BTreeMap<String, Gaps>,
}

/// Gaps of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gaps {
    /// How many.
    pub count: u64,
    /// Their cycles in sum.
    pub cycles: u64,
}

impl Counts {
    /// Adds another session.
    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.syscalls += other.syscalls;
        self.ridden += other.ridden;
        self.rides += other.rides;
        for (reason, count) in &other.exits {
            *self.exits.entry(reason.clone()).or_default() += count;
        }
        for (reason, count) in &other.refused {
            *self.refused.entry(reason.clone()).or_default() += count;
        }
        for (kind, gaps) in &other.gaps {
            let sum = self.gaps.entry(kind.clone()).or_default();
            sum.count += gaps.count;
            sum.cycles += gaps.cycles;
        }
    }

    /// What was added after `earlier`, a state of the same session, for
    /// `operations`.
    #[must_use]
    pub fn since(&self, earlier: &Self, operations: u64) -> Self {
        let difference = |late: &BTreeMap<String, u64>, early: &BTreeMap<String, u64>| {
            late.iter()
                .map(|(reason, count)| {
                    let before = early.get(reason).copied().unwrap_or(0);
                    (reason.clone(), count.saturating_sub(before))
                })
                .filter(|(_, count)| *count > 0)
                .collect()
        };
        Self {
            operations,
            syscalls: self.syscalls.saturating_sub(earlier.syscalls),
            ridden: self.ridden.saturating_sub(earlier.ridden),
            rides: self.rides.saturating_sub(earlier.rides),
            exits: difference(&self.exits, &earlier.exits),
            refused: difference(&self.refused, &earlier.refused),
            gaps: self
                .gaps
                .iter()
                .map(|(kind, gaps)| {
                    let before = earlier.gaps.get(kind).copied().unwrap_or_default();
                    let since = Gaps {
                        count: gaps.count.saturating_sub(before.count),
                        cycles: gaps.cycles.saturating_sub(before.cycles),
                    };
                    (kind.clone(), since)
                })
                .collect(),
        }
    }

    /// Cycles between system calls per operation: the user's side, with the
    /// way there and back. `None` if the session did not time gaps.
    #[must_use]
    pub fn gap_cycles_per_op(&self) -> Option<f64> {
        let cycles = self.gaps.values().map(|gaps| gaps.cycles).sum();
        (cycles > 0).then(|| crate::stats::ratio(cycles, self.operations))
    }

    /// System calls per operation.
    #[must_use]
    pub fn syscalls_per_op(&self) -> f64 {
        crate::stats::ratio(self.syscalls, self.operations)
    }

    /// Share of the calls that needed no transition, 0 to 1.
    #[must_use]
    pub fn ridden_share(&self) -> f64 {
        crate::stats::ratio(self.ridden, self.syscalls)
    }

    /// Switches from ring 3 to ring 0 for a system call, per operation.
    #[must_use]
    pub fn transitions_per_op(&self) -> f64 {
        crate::stats::ratio(self.syscalls.saturating_sub(self.ridden), self.operations)
    }
}

/// The commonest of `exits`, counts by reason, with its share of all, as tables show it;
/// "-" without any.
pub(crate) fn top_exit(exits: &BTreeMap<String, u64>) -> String {
    let total: u64 = exits.values().sum();
    exits.iter().max_by_key(|(_, count)| **count).map_or("-".into(), |(reason, count)| {
        format!("{reason} {:.0} %", 100.0 * crate::stats::ratio(*count, total))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_by_reason() {
        let one = Counts {
            operations: 10,
            syscalls: 20,
            ridden: 15,
            rides: 5,
            exits: BTreeMap::from([("poll".into(), 1), ("fault".into(), 2)]),
            refused: BTreeMap::from([("poll".into(), 5)]),
            gaps: BTreeMap::from([("native".into(), Gaps { count: 3, cycles: 40 })]),
        };
        let mut sum = one.clone();
        sum.add(&Counts { exits: BTreeMap::from([("poll".into(), 4)]), ..one.clone() });
        assert_eq!((sum.operations, sum.syscalls, sum.ridden, sum.rides), (20, 40, 30, 10));
        assert_eq!(sum.exits, BTreeMap::from([("poll".into(), 5), ("fault".into(), 2)]));
        assert_eq!(sum.refused["poll"], 10);
        assert_eq!(sum.gaps["native"], Gaps { count: 6, cycles: 80 });
        assert_eq!(sum.gap_cycles_per_op(), Some(4.0));
        assert_eq!(sum.syscalls_per_op(), 2.0);
        assert_eq!(sum.ridden_share(), 0.75);
        assert_eq!(sum.transitions_per_op(), 0.5);
    }

    #[test]
    fn difference_of_two_states() {
        let early = Counts {
            operations: 0,
            syscalls: 20,
            ridden: 2,
            rides: 1,
            exits: BTreeMap::from([("poll".into(), 1), ("fault".into(), 2)]),
            refused: BTreeMap::from([("poll".into(), 5)]),
            gaps: BTreeMap::from([("ridden".into(), Gaps { count: 3, cycles: 40 })]),
        };
        let late = Counts {
            operations: 0,
            syscalls: 120,
            ridden: 101,
            rides: 4,
            exits: BTreeMap::from([("poll".into(), 4), ("fault".into(), 2), ("guard".into(), 1)]),
            refused: BTreeMap::from([("poll".into(), 6)]),
            gaps: BTreeMap::from([
                ("ridden".into(), Gaps { count: 13, cycles: 140 }),
                ("left".into(), Gaps { count: 1, cycles: 50 }),
            ]),
        };
        let between = late.since(&early, 50);
        assert_eq!((between.operations, between.syscalls, between.ridden), (50, 100, 99));
        assert_eq!(between.rides, 3);
        assert_eq!(between.refused, BTreeMap::from([("poll".into(), 1)]));
        assert_eq!(between.gaps["ridden"], Gaps { count: 10, cycles: 100 });
        assert_eq!(between.gap_cycles_per_op(), Some(3.0));
        assert_eq!(between.exits, BTreeMap::from([("poll".into(), 3), ("guard".into(), 1)]));
    }

    #[test]
    fn the_commonest_exit_comes_with_its_share() {
        let exits = BTreeMap::from([("fault".into(), 1), ("poll".into(), 3)]);
        assert_eq!(top_exit(&exits), "poll 75 %");
        assert_eq!(top_exit(&BTreeMap::new()), "-");
    }

    #[test]
    fn empty_counts_have_no_share() {
        let none = Counts::default();
        assert_eq!((none.syscalls_per_op(), none.ridden_share()), (0.0, 0.0));
        assert_eq!(none.gap_cycles_per_op(), None);
    }
}

//! The report as data. Its JSON form is versioned by [`SCHEMA`]: fields may
//! be added under the same number, and one that is missing reads as its
//! default; any other change raises it.

mod gap;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::host::Environment;
use crate::packet_filter::PacketFilters;
pub use gap::{Gain, GapRow, GapState, Histogram, TimeSaved, Timing};

/// Version of the JSON form; a reader must refuse others.
pub const SCHEMA: u32 = 1;

/// Samples kept; beyond that every second one is dropped.
const SAMPLES: usize = 512;

/// Who made a report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A session with the kernel module: system calls may be ridden.
    #[default]
    Session,
    /// The profiler: everything ran natively.
    Profile,
}

/// Everything that was seen of one program and what it started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Who made it.
    pub source: Source,
    /// What was run or watched.
    pub command: Vec<String>,
    /// The process that was started or watched.
    pub pid: Option<u32>,
    /// Whether anything was observed; if not, everything below counts nothing.
    pub active: bool,
    /// Why nothing was.
    pub inactive_reason: Option<String>,
    /// Why nothing rode, although it was counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub native_reason: Option<String>,
    /// Whether the session had ended when this was written; one that was
    /// killed leaves what was known at most a second earlier.
    pub ended: bool,
    /// Where it ran.
    pub environment: Environment,
    /// Nanoseconds from the start of the observation to this report.
    pub elapsed_ns: u64,
    /// The counters.
    #[serde(flatten)]
    pub totals: Totals,
    /// The supervisor's counters.
    pub translations: Translations,
    /// Time saved by riding, where it was measured.
    pub time_saved: Option<TimeSaved>,
    /// The observed processes, as far as anything was seen of them.
    pub processes: Vec<Process>,
    /// Processes that were taken in while they ran, whether or not anything was
    /// seen of them yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attached: Vec<u32>,
    /// What packet filters did, in a session that has them instead of rides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_filters: Option<PacketFilters>,
    /// The gaps, the one with most passages first.
    pub hot_gaps: Vec<GapRow>,
    /// Lengths of all gaps, if they were recorded.
    pub gap_lengths: Option<Histogram>,
    /// Counters over time, oldest first.
    pub samples: Vec<Sample>,
}

/// The module's counters with what follows from them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// System calls.
    pub syscalls: u64,
    /// Of these, reached without leaving ring 0.
    pub ridden: u64,
    /// `ridden / syscalls`, 0 if there were none.
    pub ridden_share: f64,
    /// System calls that entered ring 0: `syscalls - ridden`.
    pub transitions: u64,
    /// Stays in ring 0 with at least one fragment.
    pub rides: u64,
    /// Fragments executed.
    pub fragments_run: u64,
    /// Ends of rides by reason.
    pub exits: BTreeMap<String, u64>,
    /// System calls behind which no ride began, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Threads enrolled so far.
    pub threads: u64,
    /// Threads enrolled now.
    pub threads_now: u64,
    /// Address spaces so far.
    pub address_spaces: u64,
    /// Fragments installed now.
    pub fragments: u64,
    /// Fragments installed so far.
    pub fragments_installed: u64,
    /// Fragments retired so far.
    pub fragments_retired: u64,
    /// Of these, to make room for others.
    pub fragments_evicted: u64,
    /// Installs rejected because the code had changed.
    pub installs_stale: u64,
    /// Arena bytes in use now.
    pub arena_bytes: u64,
    /// Reports made by the module.
    pub reports: u64,
    /// Reports lost because the supervisor was too slow.
    pub reports_dropped: u64,
    /// Passages of gaps that were sampled; those that went native for it are
    /// `measured` among `exits` and `refused`.
    pub sampled: u64,
    /// Gaps between two system calls by how they were passed; zeros unless
    /// the session times them (`--time-gaps`).
    pub gaps: BTreeMap<String, u64>,
    /// Cycles in these gaps, without those in which the thread did not run.
    pub gap_cycles: BTreeMap<String, u64>,
}

/// The supervisor's counters.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Translations {
    /// Translations begun, repetitions included.
    pub attempted: u64,
    /// Fragments installed.
    pub installed: u64,
    /// Installs repeated because the code had changed.
    pub stale_retries: u64,
    /// Reports passed over for want of room.
    pub passed_over: u64,
    /// Reports that led to nothing, by reason.
    pub failed: BTreeMap<String, u64>,
    /// The first addresses of which no fragment was made, and why.
    pub refused: Vec<RefusedEntry>,
    /// Time spent translating and verifying, in microseconds.
    pub time_total_us: u64,
    /// Median time of one translation with verification, in microseconds.
    pub time_median_us: Option<u64>,
    /// Code bytes installed.
    pub code_bytes: u64,
    /// User instructions in the installed fragments.
    pub guest_instructions: u64,
}

/// An address of which no fragment was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedEntry {
    /// The user address.
    pub address: u64,
    /// The reason, for counting.
    pub failure: String,
    /// The reason, for people.
    pub message: String,
}

/// One observed address space.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Its number within the report; [`GapRow::space`] refers to it.
    pub space: u64,
    /// A process that has or had it.
    pub pid: Option<u32>,
    /// Name of the program, as `ps` prints it.
    pub name: String,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Nanoseconds since the start of the observation.
    pub at_ns: u64,
    /// System calls so far.
    pub syscalls: u64,
    /// Of these, ridden.
    pub ridden: u64,
    /// Rides so far.
    pub rides: u64,
    /// Fragments installed at that moment.
    pub fragments: u64,
}

impl Report {
    /// An empty report of `command`, observed in `environment`.
    #[must_use]
    pub fn new(source: Source, command: Vec<String>, environment: Environment) -> Self {
        Self { schema: SCHEMA, source, command, active: true, environment, ..Self::default() }
    }

    /// The same for a program of which nothing was observed because of
    /// `reason`.
    #[must_use]
    pub fn inactive(command: Vec<String>, environment: Environment, reason: &str) -> Self {
        Self {
            active: false,
            inactive_reason: Some(reason.to_owned()),
            ..Self::new(Source::Session, command, environment)
        }
    }

    /// Appends the present counters to the samples. The number of samples is
    /// bounded: a long observation is remembered more coarsely.
    pub fn sample(&mut self) {
        let last = self.samples.last().map_or(0, |sample| sample.at_ns);
        if self.elapsed_ns <= last && !self.samples.is_empty() {
            return;
        }
        if self.samples.len() >= SAMPLES {
            let mut index = 0;
            self.samples.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
        self.samples.push(Sample {
            at_ns: self.elapsed_ns,
            syscalls: self.totals.syscalls,
            ridden: self.totals.ridden,
            rides: self.totals.rides,
            fragments: self.totals.fragments,
        });
    }

    /// Sorts the gaps and computes what follows from them.
    pub fn settle(&mut self) {
        self.hot_gaps.sort_by(|a, b| b.count.cmp(&a.count).then(a.address.cmp(&b.address)));
        self.time_saved = TimeSaved::of(&self.hot_gaps, self.totals.ridden);
    }

    /// The command as one would type it.
    #[must_use]
    pub fn command_line(&self) -> String {
        let words = self.command.iter().map(String::as_str);
        // Only a NUL cannot be quoted, and no argument has one.
        shlex::try_join(words).unwrap_or_else(|_| self.command.join(" "))
    }

    /// The process of a gap.
    #[must_use]
    pub fn process(&self, gap: &GapRow) -> Option<&Process> {
        self.processes.iter().find(|process| process.space == gap.space)
    }
}

impl Totals {
    /// Computes what follows from [`Self::syscalls`] and [`Self::ridden`].
    pub fn settle(&mut self) {
        self.transitions = self.syscalls.saturating_sub(self.ridden);
        self.ridden_share =
            if self.syscalls == 0 { 0.0 } else { self.ridden as f64 / self.syscalls as f64 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_bounded_and_keep_their_ends() {
        let mut report = Report::default();
        for second in 0..10 * SAMPLES as u64 {
            report.elapsed_ns = second;
            report.sample();
            assert!(report.samples.len() <= SAMPLES);
        }
        assert_eq!(report.samples[0].at_ns, 0);
        assert_eq!(report.samples.last().unwrap().at_ns, 10 * SAMPLES as u64 - 1);
        assert!(report.samples.is_sorted_by_key(|sample| sample.at_ns));
    }
}

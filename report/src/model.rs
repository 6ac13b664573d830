//! The report as data. Its JSON form is versioned by [`SCHEMA`]: fields may
//! be added under the same number, and one that is missing reads as its
//! default; any other change raises it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::host::Environment;
use crate::packet_filter::PacketFilters;

/// Version of the JSON form; a reader must refuse others.
pub const SCHEMA: u32 = 1;

/// Standard errors on each side of a mean within which the true value lies
/// with 95 % confidence, for the many samples that a gap has.
const CONFIDENCE_95: f64 = 1.96;

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
    /// The address space; see [`Process::space`].
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

//! What the profiler counted, and the forms in which people get it.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use serde::Serialize;
use ub_report::host::Environment;
use ub_report::model::Histogram;
use ub_report::symbols::Name;
use ub_report::{GapRow, Process, Report, Source, Timing};

use crate::costs::Costs;

/// Everything that was counted of the watched threads.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Profile {
    /// For how long calls were timed, in nanoseconds.
    pub elapsed_ns: u64,
    /// CPU time of the watched threads meanwhile, in nanoseconds, what the
    /// profiler itself used of it included.
    pub cpu_ns: u64,
    /// What was seen while calls were only counted, in turn with their being timed.
    #[serde(skip)]
    pub counted: Counted,
    /// What was measured before.
    pub costs: Costs,
    /// What could not be counted.
    pub lost: Lost,
    /// The address spaces.
    #[serde(skip)]
    pub processes: Vec<Process>,
    /// The gaps of each thread, the one with most passages first.
    pub gaps: Vec<ProfiledGap>,
}

/// Calls that were only counted, since timing them takes longer than many of them do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// For how long, in nanoseconds.
    pub elapsed_ns: u64,
    /// How many.
    pub calls: u64,
    /// CPU time of the watched threads meanwhile, in nanoseconds, what counting
    /// used of it included.
    pub cpu_ns: u64,
}

impl Counted {
    /// From how many calls on, and in how long a time in nanoseconds, they say something of the
    /// program: its CPU time is known to some milliseconds.
    const ENOUGH: (u64, u64) = (1000, 100_000_000);

    /// Whether they are enough to say something of the program.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        self.calls >= Self::ENOUGH.0 && self.elapsed_ns >= Self::ENOUGH.1
    }
}

/// What could not be counted for want of room in the kernel's tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Addresses and address spaces without a name.
    pub events: u64,
    /// Passages.
    pub passages: u64,
    /// Threads that were not watched.
    pub threads: u64,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, passages, threads } = self;
        write!(f, "{passages} passages, {threads} threads, the names of {events} addresses")
    }
}

impl Lost {
    /// Whether the figures are complete.
    #[must_use]
    pub fn nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A gap as one thread passes it: the way from a system call to the next.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ProfiledGap {
    /// The address space; see [`Process::space`].
    pub space: u64,
    /// The thread.
    pub thread: u32,
    /// Where it resumes; 0 at its start and after signal handlers.
    pub resume: u64,
    /// Where the function around `resume` returns to; 0 if unknown.
    pub caller: u64,
    /// Name of `resume`.
    #[serde(serialize_with = "as_text")]
    pub function: Option<Name>,
    /// Name of `caller`.
    #[serde(serialize_with = "as_text")]
    pub calling: Option<Name>,
    /// The call before the gap; none at the start of a thread.
    pub call: Option<String>,
    /// The call after it.
    pub next: String,
    /// Passages.
    pub count: u64,
    /// Time from the end of the call to the beginning of the next, summed, in
    /// nanoseconds: both switches and the profiler's own work included.
    pub gap_ns: u64,
    /// Time in the calls before, summed, in nanoseconds; waiting included.
    pub call_ns: u64,
    /// Bytes that these calls transferred.
    pub bytes: u64,
    /// Passages by the length of the gap: element `n` counts those of `2^n`
    /// to below `2^(n+1)` nanoseconds, the last one also longer ones.
    pub gap_log2: Vec<u64>,
    /// The same for the calls before.
    pub call_log2: Vec<u64>,
}

fn as_text<S: serde::Serializer>(name: &Option<Name>, to: S) -> Result<S::Ok, S::Error> {
    name.as_ref().map(ToString::to_string).serialize(to)
}

impl ProfiledGap {
    /// Passages of which the time is known: all but the first call of a
    /// thread.
    #[must_use]
    pub fn timed(&self) -> u64 {
        self.gap_log2.iter().sum()
    }

    /// Passages of which the call before is timed as well: its beginning was seen.
    #[must_use]
    pub fn timed_calls(&self) -> u64 {
        self.call_log2.iter().sum()
    }

    /// Where the call before the gap is made:
    /// `redis-server!writeToClient+0x52 -> libc!write`.
    #[must_use]
    pub fn from(&self) -> Option<String> {
        let Some(call) = &self.call else {
            return Some("start".to_owned());
        };
        let function = match &self.function {
            Some(name) => name.place(),
            None if self.resume == 0 => return Some(format!("after {call}")),
            None => format!("{:#x} ({call})", self.resume),
        };
        Some(match &self.calling {
            Some(calling) => format!("{calling} -> {function}"),
            None => function,
        })
    }
}

impl Profile {
    /// System calls.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.gaps.iter().map(|gap| gap.count).sum()
    }

    /// The same in the shape of every other report; gaps are those of an
    /// address space, whichever thread passed them.
    #[must_use]
    pub fn report(&self, command: Vec<String>, environment: Environment) -> Report {
        let mut report = Report::new(Source::Profile, command, environment);
        report.ended = true;
        report.elapsed_ns = self.elapsed_ns;
        report.totals.syscalls = self.calls();
        report.totals.settle();
        let mut threads: Vec<_> = self.gaps.iter().map(|gap| (gap.space, gap.thread)).collect();
        threads.sort_unstable();
        threads.dedup();
        report.totals.threads = threads.len() as u64;
        report.totals.address_spaces = self.processes.len() as u64;
        report.processes.clone_from(&self.processes);
        let mut rows: BTreeMap<_, (GapRow, u64)> = BTreeMap::new();
        let mut lengths = Histogram::default();
        for gap in &self.gaps {
            let key = (gap.space, gap.resume, gap.caller, &gap.call, &gap.next);
            let (row, time) = rows.entry(key).or_default();
            row.space = gap.space;
            row.address = gap.resume;
            row.from = gap.from();
            row.to = Some(gap.next.clone());
            row.count += gap.count;
            row.native.samples += gap.timed();
            *time += gap.gap_ns;
            for (power, count) in gap.gap_log2.iter().enumerate().filter(|(_, count)| **count > 0) {
                lengths.add(1 << power, *count);
            }
        }
        report.hot_gaps = rows
            .into_values()
            .map(|(mut row, time)| {
                let samples = row.native.samples;
                let mean_ns = if samples == 0 { 0.0 } else { time as f64 / samples as f64 };
                row.native = Timing { samples, mean_ns, error_ns: None };
                row
            })
            .collect();
        report.gap_lengths = Some(lengths);
        report.settle();
        report
    }

    /// Folded stacks with nanoseconds, as flame graph tools take them: below
    /// each place, the time in the call that is made there and in the gap
    /// after it.
    #[must_use]
    pub fn folded(&self) -> String {
        let mut stacks: BTreeMap<String, u64> = BTreeMap::new();
        for gap in self.gaps.iter().filter(|gap| gap.resume != 0) {
            let program = self.processes.iter().find(|process| process.space == gap.space);
            let program = program.map_or("unknown", |process| process.name.as_str());
            let mut stack = frame(program);
            let places = [gap.calling.as_ref(), gap.function.as_ref()];
            if places == [None, None] {
                let _ = write!(stack, ";{:#x}", gap.resume);
            }
            for place in places.into_iter().flatten() {
                let _ = write!(stack, ";{}", frame(&place.place()));
            }
            let call = gap.call.as_deref().unwrap_or("start");
            *stacks.entry(format!("{stack};[{call}]")).or_default() += gap.call_ns;
            *stacks.entry(format!("{stack};[gap to {}]", gap.next)).or_default() += gap.gap_ns;
        }
        stacks.into_iter().map(|(stack, time)| format!("{stack} {time}\n")).collect()
    }
}

/// A name as a frame: semicolons would end it.
fn frame(name: &str) -> String {
    name.replace(';', ":").replace('\n', " ")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A gap of one thread with `count` passages of `gap_ns` each.
    pub(crate) fn gap(
        call: &str,
        next: &str,
        count: u64,
        gap_ns: u64,
        call_ns: u64,
    ) -> ProfiledGap {
        let mut gap_log2 = vec![0; 32];
        gap_log2[gap_ns.ilog2() as usize] = count;
        let mut call_log2 = vec![0; 32];
        call_log2[call_ns.ilog2() as usize] = count;
        let name = |object: &str, function: &str, offset| {
            Some(Name { object: object.into(), function: Some(function.into()), offset })
        };
        ProfiledGap {
            space: 2,
            thread: 7,
            resume: 0x1000,
            caller: 0x2000,
            function: name("libc", call, 0x14),
            calling: name("server", "reply", 0x52),
            call: Some(call.into()),
            next: next.into(),
            count,
            gap_ns: gap_ns * count,
            call_ns: call_ns * count,
            bytes: 0,
            gap_log2,
            call_log2,
        }
    }

    fn profile() -> Profile {
        let other = ProfiledGap { thread: 8, ..gap("write", "read", 10, 300, 1000) };
        Profile {
            elapsed_ns: 1_000_000,
            processes: vec![Process { space: 2, pid: Some(7), name: "ser;ver".into() }],
            gaps: vec![gap("write", "read", 30, 100, 1000), other],
            ..Profile::default()
        }
    }

    #[test]
    fn threads_are_merged_in_the_report() {
        let report = profile().report(vec!["server".into()], Environment::default());
        assert_eq!(report.totals.syscalls, 40);
        assert_eq!(report.totals.threads, 2);
        assert_eq!(report.hot_gaps.len(), 1);
        let row = &report.hot_gaps[0];
        assert_eq!(row.label(), "server!reply+0x52 -> libc!write -> read");
        assert_eq!((row.count, row.native.mean_ns), (40, 150.0));
        assert_eq!(report.gap_lengths.unwrap().log2_ns[6..9], [30, 0, 10]);
    }

    #[test]
    fn stacks_fold_with_time() {
        assert_eq!(
            profile().folded(),
            "ser:ver;server!reply;libc!write;[gap to read] 6000\n\
             ser:ver;server!reply;libc!write;[write] 40000\n"
        );
    }

    #[test]
    fn json_has_names_as_text() {
        let json = serde_json::to_value(profile()).unwrap();
        assert_eq!(json["gaps"][0]["calling"], "server!reply+0x52");
        assert_eq!(json["gaps"][0]["call"], "write");
    }

    #[test]
    fn places_without_names_show_what_is_known() {
        let bare = ProfiledGap { function: None, calling: None, ..gap("write", "read", 1, 1, 1) };
        assert_eq!(bare.from().unwrap(), "0x1000 (write)");
        assert_eq!(ProfiledGap { call: None, ..bare.clone() }.from().unwrap(), "start");
        let signal = ProfiledGap { resume: 0, call: Some("rt_sigreturn".into()), ..bare };
        assert_eq!(signal.from().unwrap(), "after rt_sigreturn");
    }
}

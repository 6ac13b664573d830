//! What a session leaves behind: the counters of module and supervisor in the
//! form of [`ub_report`].

mod gaps;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use ub_report::host::{Environment, ProcessStatus, read_line};
use ub_report::model::{RefusedEntry, Translations};
use ub_report::symbols::{Mappings, Symbolizer};
use ub_report::{GapRow, GapState, Process, Report, Source, Totals};

use crate::abi::{Gap, GapInfo, Stats, Stop};
use crate::kernel::Btc;
use crate::supervisor::Counters;

/// Gaps remembered: a bound for sessions that start process after process.
const GAPS: usize = 4096;
/// Attached processes remembered, for the same reason.
const ATTACHED: usize = 4096;

/// Collects the report of one session.
#[derive(Debug)]
pub struct Recorder {
    report: Report,
    start: Instant,
    spaces: BTreeMap<Btc, Space>,
    symbols: Symbolizer,
    /// Gaps by address space and address, those of ended processes included.
    gaps: BTreeMap<(u64, u64), GapRow>,
}

/// An address space that was seen.
#[derive(Debug, Default)]
struct Space {
    pid: Option<u32>,
    name: String,
    mappings: Mappings,
}

impl Space {
    /// Looks at the process of `thread` while there is one: names are wanted
    /// after it has ended, too.
    fn of(thread: Option<u32>) -> Self {
        let Some(pid) = thread.and_then(process_of) else { return Self::default() };
        Self {
            pid: Some(pid),
            name: read_line(format!("/proc/{pid}/comm")).unwrap_or_default(),
            mappings: Mappings::of(pid).unwrap_or_default(),
        }
    }

    /// Looks at the process again if the file around `address` was mapped later.
    fn look_for(&mut self, address: u64) {
        if self.mappings.find(address).is_none()
            && let Some(mappings) = self.pid.and_then(|pid| Mappings::of(pid).ok())
        {
            self.mappings = mappings;
        }
    }
}

/// The process that a thread belongs to.
fn process_of(thread: u32) -> Option<u32> {
    ProcessStatus::read(thread)?.field("Tgid")
}

impl Recorder {
    /// Starts with nothing counted, for a program that this process becomes.
    #[must_use]
    pub fn new(command: &[OsString], environment: &Environment) -> Self {
        let mut report = Report::new(Source::Session, words(command), environment.clone());
        report.pid = Some(std::process::id());
        Self {
            report,
            start: Instant::now(),
            spaces: BTreeMap::new(),
            symbols: Symbolizer::default(),
            gaps: BTreeMap::new(),
        }
    }

    /// The program runs as the process `pid`.
    pub fn started(&mut self, pid: u32) {
        self.report.pid = Some(pid);
    }

    /// Nothing is to ride, because of `reason`.
    pub fn stays_native(&mut self, reason: String) {
        self.report.native_reason = Some(reason);
    }

    /// The process `pid` was attached.
    pub fn attached(&mut self, pid: u32) {
        let attached = &mut self.report.attached;
        if attached.len() < ATTACHED && !attached.contains(&pid) {
            attached.push(pid);
        }
    }

    /// Remembers the address spaces of the session.
    pub fn observe(&mut self, spaces: impl Iterator<Item = (Btc, Option<u32>)>) {
        for (btc, thread) in spaces {
            if self.spaces.get(&btc).is_none_or(|space| space.pid.is_none() && thread.is_some()) {
                self.spaces.insert(btc, Space::of(thread));
            }
        }
        let process = |(btc, space): (&Btc, &Space)| Process {
            space: btc.0,
            pid: space.pid,
            name: space.name.clone(),
        };
        self.report.processes = self.spaces.iter().map(process).collect();
    }

    /// Remembers how gaps stand. `khz` is the frequency of the module's clock,
    /// [`Info::cycles_khz`](crate::abi::Info::cycles_khz). New ones have no names before
    /// [`name_gaps`](Self::name_gaps).
    pub fn gaps(&mut self, infos: &[GapInfo], khz: u32, counters: &Counters) {
        for info in infos.iter().filter(|info| gaps::has_a_story(info)) {
            let key = (info.btc, info.address);
            if self.gaps.len() >= GAPS && !self.gaps.contains_key(&key) {
                continue;
            }
            let mut row = gaps::row(info, khz);
            row.from = self.gaps.get(&key).and_then(|known| known.from.clone());
            if row.from.is_none()
                && let Some(space) = self.spaces.get_mut(&Btc(info.btc))
            {
                space.look_for(info.address);
            }
            if row.state == GapState::Refused {
                let refused = counters.refused().iter().find(|entry| entry.address == info.address);
                row.reason = refused.map(|entry| entry.message.clone()).or(row.reason);
            }
            self.gaps.insert(key, row);
        }
        self.show_gaps();
    }

    /// Gives names to the gaps that have none, also to those of processes that
    /// ended. This reads the symbol tables of programs and libraries, which takes as
    /// long as many translations.
    pub fn name_gaps(&mut self) {
        for ((btc, address), row) in &mut self.gaps {
            if row.from.is_none()
                && let Some(space) = self.spaces.get(&Btc(*btc))
            {
                let name = self.symbols.name(&space.mappings, *address);
                row.from = name.map(|name| name.to_string());
            }
        }
        self.show_gaps();
    }

    fn show_gaps(&mut self) {
        self.report.hot_gaps = self.gaps.values().cloned().collect();
        self.report.settle();
    }

    /// Takes over the present counters.
    pub fn update(&mut self, stats: &Stats, counters: &Counters, ended: bool) {
        let report = &mut self.report;
        report.totals = stats.into();
        report.translations = counters.into();
        report.ended = ended;
        report.elapsed_ns = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        report.sample();
        report.settle();
    }

    /// What was collected.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Writes the report to `path` so that a reader sees a whole one, old or
    /// new, at any moment.
    ///
    /// # Errors
    /// What the file system answers; `path` is unchanged then.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        ub_report::write(path, &self.report.to_json())
    }
}

/// The words of a command, for reports.
pub(crate) fn words(command: &[OsString]) -> Vec<String> {
    command.iter().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// Numbers of the module by the names of what they count.
fn by_name<T: Copy>(
    all: &[T],
    name: fn(T) -> &'static str,
    numbers: &[u64],
) -> BTreeMap<String, u64> {
    all.iter().zip(numbers).map(|(item, number)| (name(*item).to_owned(), *number)).collect()
}

impl From<&Stats> for Totals {
    fn from(stats: &Stats) -> Self {
        let mut totals = Self {
            syscalls: stats.syscalls,
            ridden: stats.ridden,
            rides: stats.rides,
            fragments_run: stats.fragments_run,
            exits: by_name(Stop::ALL, Stop::name, &stats.stops),
            refused: by_name(Stop::ALL, Stop::name, &stats.refused),
            threads: stats.threads,
            threads_now: stats.threads_now,
            address_spaces: stats.address_spaces,
            fragments: stats.fragments,
            fragments_installed: stats.fragments_installed,
            fragments_retired: stats.fragments_retired,
            fragments_evicted: stats.fragments_evicted,
            installs_stale: stats.installs_stale,
            arena_bytes: stats.arena_bytes,
            reports: stats.reports,
            reports_dropped: stats.reports_dropped,
            sampled: stats.sampled,
            gaps: by_name(Gap::ALL, Gap::name, &stats.gaps),
            gap_cycles: by_name(Gap::ALL, Gap::name, &stats.gap_cycles),
            ..Self::default()
        };
        totals.settle();
        totals
    }
}

impl From<&Counters> for Translations {
    fn from(counters: &Counters) -> Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self {
            attempted: counters.translations,
            installed: counters.installed,
            stale_retries: counters.stale_retries,
            passed_over: counters.passed_over,
            failed: counters
                .failures
                .iter()
                .map(|(failure, count)| (failure.name().to_owned(), *count))
                .collect(),
            refused: counters
                .refused()
                .iter()
                .map(|entry| RefusedEntry {
                    address: entry.address,
                    failure: entry.failure.name().to_owned(),
                    message: entry.message.clone(),
                })
                .collect(),
            time_total_us: micros(counters.time_total()),
            time_median_us: counters.time_median().map(micros),
            code_bytes: counters.code_bytes,
            guest_instructions: counters.guest_instructions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::Failure;

    fn recorder() -> Recorder {
        let mut recorder = Recorder::new(&["a".into()], &Environment::detect());
        let mut stats = Stats { syscalls: 10, ridden: 8, ..Default::default() };
        stats.stops[Stop::Guard as usize] = 3;
        let mut counters = Counters::default();
        counters.fail(Failure::NoRoom);
        recorder.update(&stats, &counters, true);
        recorder
    }

    #[test]
    fn follows_the_schema() {
        let json = serde_json::to_value(recorder().report()).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["ridden_share"], 0.8);
        assert_eq!(json["transitions"], 2);
        assert_eq!(json["exits"]["guard"], 3);
        assert_eq!(json["exits"].as_object().unwrap().len(), Stop::ALL.len());
        assert_eq!(json["translations"]["failed"]["no_room"], 1);
        assert_eq!(json["ended"], true);
        assert_eq!(json["samples"][0]["syscalls"], 10);
        // Every counter of the module is there under its own name.
        for field in Stats::LAYOUT.fields {
            let found = match field.name {
                "stops" => json["exits"].is_object(),
                "refused" => json["refused"].is_object(),
                "gaps" | "gap_cycles" => json[field.name]["ridden"].is_u64(),
                name => json[name].is_u64(),
            };
            assert!(found, "{} is missing", field.name);
        }
    }

    #[test]
    fn who_was_attached_is_known_before_anything_was_seen_of_it() {
        let json = |recorder: &Recorder| serde_json::to_value(recorder.report()).unwrap();
        let mut recorder = recorder();
        assert_eq!(json(&recorder).get("attached"), None);
        recorder.attached(17);
        recorder.attached(17);
        assert_eq!(json(&recorder)["attached"], serde_json::json!([17]));
    }

    #[test]
    fn an_address_space_gets_its_process_once_that_is_known() {
        let mut recorder = recorder();
        recorder.observe([(Btc(7), None)].into_iter());
        assert_eq!(recorder.report().processes[0].pid, None);
        let thread = nix::unistd::gettid().as_raw() as u32;
        recorder.observe([(Btc(7), Some(thread))].into_iter());
        let processes = &recorder.report().processes;
        assert_eq!(processes.len(), 1);
        assert_eq!((processes[0].space, processes[0].pid), (7, Some(std::process::id())));
        // One that ended is still in the report.
        recorder.observe([].into_iter());
        assert_eq!(recorder.report().processes.len(), 1);
    }

    #[test]
    fn gaps_are_named_when_there_is_time_and_after_their_process_ended() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut recorder = recorder();
        let code = loop {
            recorder.spaces.clear();
            recorder.observe([(Btc(7), Some(child.id()))].into_iter());
            // Before exec it is this program.
            let first = recorder.spaces[&Btc(7)].mappings.first().cloned();
            if let Some(first) = first.filter(|first| first.path.ends_with("sleep")) {
                break first;
            }
        };
        let gap =
            GapInfo { btc: 7, address: code.range.start, native_sampled: 1, ..Default::default() };
        let name = |recorder: &Recorder| recorder.report().hot_gaps[0].from.clone();

        recorder.gaps(&[gap], 1000, &Counters::default());
        assert_eq!(name(&recorder), None, "symbol tables are read while code waits");
        child.kill().unwrap();
        child.wait().unwrap();
        recorder.name_gaps();
        let named = name(&recorder).unwrap();
        assert!(named.starts_with("sleep"), "{named}");
        // It is kept when the gap is seen again.
        recorder.gaps(&[gap], 1000, &Counters::default());
        assert_eq!(name(&recorder), Some(named));
    }

    #[test]
    fn the_most_frequent_gaps_come_first_also_behind_naming() {
        let gap = |address, passages| GapInfo {
            btc: 7,
            address,
            passages,
            native_sampled: 1,
            ..Default::default()
        };
        let mut recorder = recorder();
        recorder.gaps(&[gap(0x1000, 5), gap(0x2000, 50)], 1000, &Counters::default());
        let order = |recorder: &Recorder| -> Vec<u64> {
            recorder.report().hot_gaps.iter().map(|gap| gap.address).collect()
        };
        assert_eq!(order(&recorder), [0x2000, 0x1000]);
        recorder.name_gaps();
        assert_eq!(order(&recorder), [0x2000, 0x1000]);
    }

    #[test]
    fn what_a_session_leaves_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        recorder().write(&path).unwrap();
        assert_eq!(ub_report::read(&path).unwrap().totals.syscalls, 10);
    }
}

//! What a session leaves behind: the counters of module and supervisor in the
//! form of [`ub_report`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use ub_report::host::Environment;
use ub_report::model::{RefusedEntry, Translations};
use ub_report::{Report, Source, Totals};

use crate::abi::{Gap, Stats, Stop};
use crate::supervisor::Counters;

/// Collects the report of one session.
#[derive(Debug)]
pub struct Recorder {
    report: Report,
    start: Instant,
}

impl Recorder {
    /// Starts with nothing counted.
    #[must_use]
    pub fn new(command: &[OsString], environment: &Environment) -> Self {
        let report = Report::new(Source::Session, words(command), environment.clone());
        Self { report, start: Instant::now() }
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

/// Writes the report of a program that runs natively because of `reason`.
///
/// # Errors
/// What the file system answers.
pub fn write_inactive(
    path: &Path,
    command: &[OsString],
    environment: &Environment,
    reason: &str,
) -> io::Result<()> {
    let report = Report::inactive(words(command), environment.clone(), reason);
    ub_report::write(path, &report.to_json())
}

fn words(command: &[OsString]) -> Vec<String> {
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
    fn what_a_session_leaves_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        recorder().write(&path).unwrap();
        assert_eq!(ub_report::read(&path).unwrap().totals.syscalls, 10);
        write_inactive(&path, &["b".into()], &Environment::default(), "why").unwrap();
        assert_eq!(ub_report::read(&path).unwrap().inactive_reason.as_deref(), Some("why"));
    }
}

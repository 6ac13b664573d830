//! The session report that `--report FILE` leaves (schema 1).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::Serialize;

use crate::abi::{Gap, Stats, Stop};
use crate::host::Environment;
use crate::supervisor::{Counters, Failure, RefusedEntry};

/// Version of the format; a reader must refuse others.
pub const SCHEMA: u32 = 1;

/// Everything about one session.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SessionReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What was run.
    pub command: Vec<String>,
    /// Whether there was a session; if not, everything below counts nothing.
    pub active: bool,
    /// Why there was none.
    pub inactive_reason: Option<String>,
    /// Whether the session had ended when this was written; one that was
    /// killed leaves what was known at most a second earlier.
    pub ended: bool,
    /// Where it ran.
    pub environment: Environment,
    /// The module's counters.
    #[serde(flatten)]
    pub stats: SessionStats,
    /// The supervisor's counters.
    pub translations: Translations,
}

/// The module's counters with what follows from them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SessionStats {
    /// System calls of the session.
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
    /// Ends of rides by [`Stop::name`].
    pub exits: BTreeMap<&'static str, u64>,
    /// System calls behind which no ride began, by [`Stop::name`].
    pub refused: BTreeMap<&'static str, u64>,
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
    /// Installs rejected because the code had changed.
    pub installs_stale: u64,
    /// Arena bytes in use now.
    pub arena_bytes: u64,
    /// Reports made by the module.
    pub reports: u64,
    /// Reports lost because the supervisor was too slow.
    pub reports_dropped: u64,
    /// Gaps between two system calls by [`Gap::name`]; zeros unless the
    /// session times them (`--time-gaps`).
    pub gaps: BTreeMap<&'static str, u64>,
    /// Cycles in these gaps, without those in which the thread did not run.
    pub gap_cycles: BTreeMap<&'static str, u64>,
}

impl From<&Stats> for SessionStats {
    fn from(stats: &Stats) -> Self {
        Self {
            syscalls: stats.syscalls,
            ridden: stats.ridden,
            ridden_share: if stats.syscalls == 0 {
                0.0
            } else {
                stats.ridden as f64 / stats.syscalls as f64
            },
            transitions: stats.syscalls.saturating_sub(stats.ridden),
            rides: stats.rides,
            fragments_run: stats.fragments_run,
            exits: Stop::ALL.iter().map(|s| (s.name(), stats.stops[*s as usize])).collect(),
            refused: Stop::ALL.iter().map(|s| (s.name(), stats.refused[*s as usize])).collect(),
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
            gaps: Gap::ALL.iter().map(|gap| (gap.name(), stats.gaps[*gap as usize])).collect(),
            gap_cycles: Gap::ALL
                .iter()
                .map(|gap| (gap.name(), stats.gap_cycles[*gap as usize]))
                .collect(),
        }
    }
}

/// The supervisor's counters.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
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
    pub failed: BTreeMap<Failure, u64>,
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

impl From<&Counters> for Translations {
    fn from(counters: &Counters) -> Self {
        let micros =
            |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self {
            attempted: counters.translations,
            installed: counters.installed,
            stale_retries: counters.stale_retries,
            passed_over: counters.passed_over,
            failed: counters.failures.clone(),
            refused: counters.refused().to_vec(),
            time_total_us: micros(counters.time_total()),
            time_median_us: counters.time_median().map(micros),
            code_bytes: counters.code_bytes,
            guest_instructions: counters.guest_instructions,
        }
    }
}

impl SessionReport {
    /// The report of a session that runs.
    #[must_use]
    pub fn active(command: &[OsString], environment: &Environment) -> Self {
        Self {
            schema: SCHEMA,
            command: command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            active: true,
            inactive_reason: None,
            ended: false,
            environment: environment.clone(),
            stats: SessionStats::from(&Stats::default()),
            translations: Translations::default(),
        }
    }

    /// The report of a program that runs natively because of `reason`.
    #[must_use]
    pub fn inactive(command: &[OsString], environment: &Environment, reason: &str) -> Self {
        Self {
            active: false,
            inactive_reason: Some(reason.to_owned()),
            ..Self::active(command, environment)
        }
    }

    /// Takes over the present counters.
    pub fn update(&mut self, stats: &Stats, counters: &Counters, ended: bool) {
        self.stats = stats.into();
        self.translations = counters.into();
        self.ended = ended;
    }

    /// Writes the report to `path` so that a reader sees a whole one, old or
    /// new, at any moment.
    ///
    /// # Errors
    /// What the file system answers; `path` is unchanged then.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let mut file = tempfile::Builder::new()
            .prefix(".ub-report-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(dir.unwrap_or(Path::new(".")))?;
        serde_json::to_writer(&mut file, self)?;
        file.write_all(b"\n")?;
        file.persist(path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> SessionReport {
        let mut report = SessionReport::active(&["a".into()], &Environment::detect());
        let mut stats = Stats { syscalls: 10, ridden: 8, ..Default::default() };
        stats.stops[Stop::Guard as usize] = 3;
        let mut counters = Counters::default();
        counters.fail(Failure::NoRoom);
        report.update(&stats, &counters, true);
        report
    }

    #[test]
    fn follows_the_schema() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["ridden_share"], 0.8);
        assert_eq!(json["transitions"], 2);
        assert_eq!(json["exits"]["guard"], 3);
        assert_eq!(json["exits"].as_object().unwrap().len(), Stop::ALL.len());
        assert_eq!(json["translations"]["failed"]["no_room"], 1);
        assert_eq!(json["ended"], true);
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
    fn replaces_whole_files_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        report().write(&path).unwrap();
        report().write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["syscalls"], 10);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(report().write(&dir.path().join("absent/report.json")).is_err());
    }
}

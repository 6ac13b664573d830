//! What `ub run`, `ub stat` and `ub attach` have in common: options and opening
//! a session.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use tracing::Level;

use crate::abi::{ABI_VERSION, NATIVE_NEVER, SessionConfig, TIME_GAPS};
use crate::device::{Device, OpenError};
use crate::host::Environment;
use crate::logging;
use crate::report::{self, Recorder};
use crate::session::{Supervision, Watched};
use crate::supervisor::Slowed;

/// Options about a session that begins with a program.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Fail with status 125 instead of running natively when there can be no
    /// session
    #[arg(long)]
    pub(super) require: bool,
    #[command(flatten)]
    session: SessionOptions,
    /// The program to run and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    pub(super) command: Vec<OsString>,
}

/// Options about any session.
#[derive(Debug, Args)]
pub(super) struct SessionOptions {
    #[command(flatten)]
    thresholds: Thresholds,
    /// Count the cycles between system calls, for the report; makes each call
    /// a little slower
    #[arg(long)]
    time_gaps: bool,
    /// Append the supervisor's log to FILE [default: the value of UB_LOG]
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Log more; twice for everything. Needs a log file
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Most fragments at a time; beyond, the coldest go [default: the module's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16384))]
    max_fragments: Option<u32>,
    /// Most code at a time, in KiB; beyond, the coldest goes [default: the
    /// module's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(64..=8192))]
    max_code_kib: Option<u64>,
}

/// How hot gaps are found and judged. What is not given is the module's, see
/// `/sys/module/ub/parameters`.
#[derive(Debug, Clone, Args)]
pub(super) struct Thresholds {
    /// Look at one passage of a gap in N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    sample_interval: Option<u32>,
    /// Leave threads alone that make fewer system calls a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    min_rate: Option<u32>,
    /// Samples of a gap that make it hot
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    hot_count: Option<u32>,
    /// Samples of all gaps among which these must be
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    hot_window: Option<u32>,
    /// Longest gap that is tried before others have paid, in microseconds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    gap_short_us: Option<u64>,
    /// Longest gap that is tried at all, in microseconds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    gap_max_us: Option<u64>,
    /// Misses at an address before it is translated
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    miss_count: Option<u32>,
    /// Let one passage of a translated gap in N go natively, to compare
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(100..))]
    native_interval: Option<u32>,
    /// Translate whatever is seen a few times and keep it, whether it pays or
    /// not: for tests and for measuring rides themselves
    #[arg(long)]
    eager: bool,
    /// Make the fragment at an address slow with so many pause instructions: a
    /// test of what retires it
    #[arg(long, value_name = "ADDRESS:PAUSES", value_parser = slowed, hide = true)]
    debug_slow: Option<Slowed>,
}

/// Reads the value of `--debug-slow`.
fn slowed(text: &str) -> Result<Slowed, String> {
    let parse = || {
        let (entry, pauses) = text.split_once(':')?;
        let entry = u64::from_str_radix(entry.strip_prefix("0x")?, 16).ok()?;
        Some(Slowed { entry, pauses: pauses.parse().ok()? })
    };
    parse().ok_or_else(|| format!("{text}: must be like 0x401234:500"))
}

/// Passages that make a gap hot with `--eager`.
const EAGER_COUNT: u32 = 64;
/// Longest gap with `--eager`.
const EAGER_GAP_NS: u64 = 1_000_000_000;

impl Thresholds {
    /// What the module is asked for; zeros are its defaults.
    fn config(&self) -> SessionConfig {
        let eager = |value| if self.eager { value } else { 0 };
        let eager_ns = if self.eager { EAGER_GAP_NS } else { 0 };
        let ns = |micros: Option<u64>| micros.map_or(eager_ns, |micros| micros * 1000);
        SessionConfig {
            abi_version: ABI_VERSION,
            sample_interval: self.sample_interval.unwrap_or(eager(1)),
            min_rate: self.min_rate.unwrap_or(eager(1)),
            hot_count: self.hot_count.unwrap_or(eager(EAGER_COUNT)),
            hot_window: self.hot_window.unwrap_or(0),
            gap_short_ns: ns(self.gap_short_us),
            gap_max_ns: ns(self.gap_max_us),
            native_interval: self.native_interval.unwrap_or(eager(NATIVE_NEVER)),
            miss_count: self.miss_count.unwrap_or(0),
            ..Default::default()
        }
    }
}

/// A mistake in how `ub` was called; the program is not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum UsageError {
    /// The log file cannot be opened.
    #[error("cannot write log {}: {error}", path.display())]
    Log { path: PathBuf, error: io::Error },
    /// The report cannot be written where it was asked for.
    #[error("cannot write report {}: {error}", path.display())]
    Report { path: PathBuf, error: io::Error },
    /// `-v` without a place for it.
    #[error("--verbose needs --log FILE or UB_LOG")]
    NoLog,
}

/// The options, resolved and checked.
#[derive(Debug)]
pub(super) struct Plan {
    config: SessionConfig,
    slowed: Option<Slowed>,
    pub(super) log: Option<File>,
    pub(super) level: Level,
    report: Option<PathBuf>,
    command: Vec<OsString>,
    environment: Environment,
}

/// Whether the user turned everything off: UB_DISABLE set, neither empty nor 0.
pub(super) fn disabled() -> bool {
    std::env::var_os("UB_DISABLE").is_some_and(|value| !value.is_empty() && value != "0")
}

impl Options {
    /// Checks the options. `report` is where the session report goes.
    ///
    /// # Errors
    /// See [`UsageError`].
    pub(super) fn plan(&self, report: Option<&Path>) -> Result<Plan, UsageError> {
        self.session.plan(&self.command, report)
    }
}

impl SessionOptions {
    /// Checks the options. `command` is what the session report calls the
    /// program, `report` is where it goes.
    ///
    /// # Errors
    /// See [`UsageError`].
    pub(super) fn plan(
        &self,
        command: &[OsString],
        report: Option<&Path>,
    ) -> Result<Plan, UsageError> {
        let from_env = || std::env::var_os("UB_LOG").filter(|path| !path.is_empty());
        let log = match self.log.clone().or_else(|| from_env().map(PathBuf::from)) {
            Some(path) => {
                Some(logging::open(&path).map_err(|error| UsageError::Log { path, error })?)
            }
            None if self.verbose > 0 => return Err(UsageError::NoLog),
            None => None,
        };
        // The supervisor leaves this directory.
        let report = report
            .map(|path| {
                let fail = |error| UsageError::Report { path: path.to_owned(), error };
                std::path::absolute(path).map_err(fail)
            })
            .transpose()?;
        let plan = Plan {
            config: SessionConfig {
                max_fragments: self.max_fragments.unwrap_or(0),
                max_arena_bytes: self.max_code_kib.unwrap_or(0) << 10,
                flags: if self.time_gaps { TIME_GAPS } else { 0 },
                ..self.thresholds.config()
            },
            slowed: self.thresholds.debug_slow,
            log,
            level: match self.verbose {
                0 => Level::INFO,
                1 => Level::DEBUG,
                _ => Level::TRACE,
            },
            environment: Environment::detect(),
            report,
            command: command.to_vec(),
        };
        // Fails now rather than after hours, and leaves a truthful report even
        // if neither supervisor nor program gets anywhere.
        plan.write_inactive("not started").map_err(|error| UsageError::Report {
            path: plan.report.clone().unwrap_or_default(),
            error,
        })?;
        Ok(plan)
    }
}

impl Plan {
    /// Leaves a report that says why there is no session.
    ///
    /// # Errors
    /// What the file system answers.
    pub(super) fn write_inactive(&self, reason: &str) -> io::Result<()> {
        match &self.report {
            Some(path) => report::write_inactive(path, &self.command, &self.environment, reason),
            None => Ok(()),
        }
    }

    /// Opens a session as planned.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(super) fn open(&self) -> Result<Supervision, OpenError> {
        let device = Device::open()?;
        let info = *device.info();
        let mut config = self.config;
        let session = device.create_session(&mut config)?;
        let recorder = Recorder::new(&self.command, &self.environment);
        let watched = Watched { recorder, report: self.report.clone() };
        Ok(Supervision::new(session, &info, &config, self.slowed, watched))
    }
}

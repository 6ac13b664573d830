//! What `ub run` and `ub stat` have in common: options and opening a session.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use tracing::Level;

use crate::abi::{ABI_VERSION, SessionConfig, TIME_GAPS};
use crate::device::{Device, OpenError};
use crate::host::Environment;
use crate::logging;
use crate::report::{self, Recorder};
use crate::session::Supervision;

/// Options about a session.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Fail with status 125 instead of running natively when there can be no
    /// session
    #[arg(long)]
    pub(super) require: bool,
    /// Passages after which a gap is hot [default: the module's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    hot_count: Option<u32>,
    /// Longest gap that counts, in microseconds [default: the module's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    gap_max_us: Option<u64>,
    /// Misses at an address before it is translated [default: the module's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    miss_count: Option<u32>,
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
    /// The program to run and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    pub(super) command: Vec<OsString>,
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
    pub(super) log: Option<File>,
    pub(super) level: Level,
    report: Option<PathBuf>,
    command: Vec<OsString>,
    environment: Option<Environment>,
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
                abi_version: ABI_VERSION,
                hot_count: self.hot_count.unwrap_or(0),
                gap_max_ns: self.gap_max_us.unwrap_or(0) * 1000,
                miss_count: self.miss_count.unwrap_or(0),
                flags: if self.time_gaps { TIME_GAPS } else { 0 },
                ..Default::default()
            },
            log,
            level: match self.verbose {
                0 => Level::INFO,
                1 => Level::DEBUG,
                _ => Level::TRACE,
            },
            environment: report.is_some().then(Environment::detect),
            report,
            command: self.command.clone(),
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
        match (&self.report, &self.environment) {
            (Some(path), Some(environment)) => {
                report::write_inactive(path, &self.command, environment, reason)
            }
            _ => Ok(()),
        }
    }

    /// Opens a session as planned.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(super) fn open(&self) -> Result<Supervision, OpenError> {
        let device = Device::open()?;
        let info = *device.info();
        let session = device.create_session(&self.config)?;
        let report =
            self.report.as_ref().zip(self.environment.as_ref()).map(|(path, environment)| {
                (Recorder::new(&self.command, environment), path.clone())
            });
        Ok(Supervision::new(session, &info, report))
    }
}

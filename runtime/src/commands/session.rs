//! What `ub run`, `ub stat` and `ub attach` have in common: options and opening
//! a session.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use tracing::Level;
use ub_report::Report;

use crate::abi::{ABI_VERSION, NATIVE_NEVER, SessionConfig, TIME_GAPS};
use crate::config::{self, Places, Settings};
use crate::device::{Device, OpenError};
use crate::doctor::without_policy;
use crate::host::Environment;
use crate::logging;
use crate::packet_filter::FilterRecord;
use crate::report::{Recorder, words};
use crate::session::{Supervision, Watched};
use crate::supervisor::{Holds, Slowed};

/// Options about a session that begins with a program.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Fail with status 125 instead of running natively when there can be no
    /// session
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    require: Option<bool>,
    /// The program to run and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    pub(super) command: Vec<OsString>,
    // Behind the others: its headings are theirs otherwise.
    #[command(flatten)]
    session: SessionOptions,
}

/// Options about any session.
#[derive(Debug, Args)]
pub(super) struct SessionOptions {
    /// Log more; twice for everything. Needs a log file
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(flatten)]
    tests: ForTests,
    #[command(flatten)]
    settings: Settings,
}

/// Options that no file can set.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "For tests")]
struct ForTests {
    /// Translate whatever is seen a few times and keep it, whether it pays or
    /// not: for tests and for measuring rides themselves
    #[arg(long)]
    eager: bool,
    /// Make the fragment at an address slow with so many `nop` instructions: a
    /// test of what retires it
    #[arg(long, value_name = "ADDRESS:NOPS", value_parser = slowed, hide = true)]
    debug_slow: Option<Slowed>,
}

/// Reads the value of `--debug-slow`.
fn slowed(text: &str) -> Result<Slowed, String> {
    let parse = || {
        let (entry, nops) = text.split_once(':')?;
        let entry = u64::from_str_radix(entry.strip_prefix("0x")?, 16).ok()?;
        Some(Slowed { entry, nops: nops.parse().ok()? })
    };
    parse().ok_or_else(|| format!("{text}: must be like 0x401234:500"))
}

/// Passages that make a gap hot with `--eager`.
const EAGER_COUNT: u32 = 64;
/// Time within which a fragment must be left so often with `--eager`: any.
const EAGER_WINDOW_MS: u32 = 3_600_000;
/// Longest gap with `--eager`.
const EAGER_GAP_NS: u64 = 1_000_000_000;

/// What the module is asked for; zeros are its defaults, see
/// `/sys/module/ub/parameters`.
fn session_config(settings: &Settings, eager: bool) -> SessionConfig {
    let default = |value| if eager { value } else { 0 };
    let default_ns = if eager { EAGER_GAP_NS } else { 0 };
    let ns = |micros: Option<u64>| micros.map_or(default_ns, |micros| micros * 1000);
    SessionConfig {
        abi_version: ABI_VERSION,
        flags: if settings.time_gaps == Some(true) { TIME_GAPS } else { 0 },
        sample_interval: settings.sample_interval.unwrap_or(default(1)),
        min_rate: settings.min_rate.unwrap_or(default(1)),
        hot_count: settings.hot_count.unwrap_or(default(EAGER_COUNT)),
        hot_window: settings.hot_window.unwrap_or(0),
        gap_short_ns: ns(settings.gap_short_us),
        gap_max_ns: ns(settings.gap_max_us),
        native_interval: settings.native_interval.unwrap_or(default(NATIVE_NEVER)),
        miss_count: settings.miss_count.unwrap_or(0),
        miss_window_ms: settings.miss_window_ms.unwrap_or(default(EAGER_WINDOW_MS)),
        max_fragments: settings.max_fragments.unwrap_or(0),
        max_arena_bytes: settings.max_code_kib.unwrap_or(0) << 10,
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
    /// A session was asked for, and somebody turned them off.
    #[error("sessions are turned off, see `ub config show --origin`")]
    Disabled,
    /// The configuration is wrong, and a session was required.
    #[error(transparent)]
    Config(#[from] config::Error),
}

/// What is to be done with a program.
#[derive(Debug)]
pub(super) enum Decision {
    /// To run it without a session, after this line if there is one.
    Native(Option<String>),
    /// To open a session for it.
    Session(Box<Plan>),
}

/// The options, resolved and checked.
#[derive(Debug)]
pub(super) struct Plan {
    config: SessionConfig,
    holds: Holds,
    /// Whether to fail rather than to run natively.
    pub(super) require: bool,
    ride_anyway: bool,
    slowed: Option<Slowed>,
    pub(super) log: Option<File>,
    pub(super) level: Level,
    report: Option<PathBuf>,
    command: Vec<OsString>,
    environment: Environment,
}

impl Options {
    /// Looks whether there is to be a session. `report` is where its report
    /// goes.
    ///
    /// # Errors
    /// See [`UsageError`].
    pub(super) fn decide(&self, report: Option<&Path>) -> Result<Decision, UsageError> {
        let flags = Settings { require: self.require, ..self.session.settings.clone() };
        match load(&flags) {
            Ok(None) => Ok(Decision::Native(None)),
            Ok(Some(settings)) => match self.session.planned(&settings, &self.command, report) {
                Ok(plan) => Ok(Decision::Session(Box::new(plan))),
                // A log that a file or a variable names must not stop every program.
                Err(error @ UsageError::Log { .. })
                    if flags.log.is_none() && settings.require != Some(true) =>
                {
                    let where_from = "`ub config show --origin` says where that comes from";
                    Ok(Decision::Native(Some(format!("{error}, {where_from}; running natively"))))
                }
                Err(error) => Err(error),
            },
            Err(error) if self.require == Some(true) => Err(error.into()),
            // Nor may a file that somebody broke.
            Err(error) => Ok(Decision::Native(Some(format!("{error}; running natively")))),
        }
    }
}

/// The settings; `None` if everything is to run natively.
fn load(flags: &Settings) -> Result<Option<Settings>, config::Error> {
    // Before a file is opened: this is the way out if one is wrong.
    let by_environment = config::disabled_by_environment();
    if by_environment == Some(true) {
        return Ok(None);
    }
    let settings = Places::default().load(flags)?;
    let disabled = by_environment.is_none() && settings.disable == Some(true);
    Ok((!disabled).then_some(settings))
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
        let settings = load(&self.settings)?.ok_or(UsageError::Disabled)?;
        self.planned(&settings, command, report)
    }

    fn planned(
        &self,
        settings: &Settings,
        command: &[OsString],
        report: Option<&Path>,
    ) -> Result<Plan, UsageError> {
        let log = match settings.log.clone() {
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
            config: session_config(settings, self.tests.eager),
            holds: Holds::of_seconds(settings.first_hold_s, settings.longest_hold_s),
            require: settings.require == Some(true),
            ride_anyway: settings.ride_anyway == Some(true),
            slowed: self.tests.debug_slow,
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
            Some(path) => ub_report::write(path, &self.inactive(reason).to_json()),
            None => Ok(()),
        }
    }

    /// The report of a program that runs natively because of `reason`.
    pub(super) fn inactive(&self, reason: &str) -> Report {
        Report::inactive(words(&self.command), self.environment.clone(), reason)
    }

    /// The report of a session with packet filters.
    pub(super) fn filter_record(&self) -> FilterRecord {
        FilterRecord::new(&self.command, &self.environment, self.report.clone())
    }

    /// Opens a session as planned.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(super) fn open(&self) -> Result<Supervision, OpenError> {
        let device = Device::open()?;
        let unknown = without_policy(&self.environment.mitigations);
        if !unknown.is_empty() {
            return Err(OpenError::NoPolicy(unknown));
        }
        let info = *device.info();
        let mut config = self.config;
        let session = device.create_session(&mut config)?;
        let recorder = Recorder::new(&self.command, &self.environment);
        let watched = Watched { recorder, report: self.report.clone() };
        let supervision = Supervision::new(session, &info, &config, self.slowed, watched);
        let supervision = supervision.hold_for(self.holds).remember_programs();
        Ok(if self.ride_anyway { supervision } else { supervision.heed_costs() })
    }
}

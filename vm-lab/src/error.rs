//! What can go wrong, by whose fault it is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Result of the lab's operations.
pub type Result<T, E = LabError> = std::result::Result<T, E>;

/// Why the lab could not deliver a result.
///
/// The variants keep apart what a caller treats differently: the host is not
/// prepared ([`Setup`](Self::Setup)), the request cannot be served here
/// ([`Unsupported`](Self::Unsupported)), the code under test failed
/// ([`ModuleBuild`](Self::ModuleBuild), [`GuestKernel`](Self::GuestKernel),
/// [`GuestSetup`](Self::GuestSetup), [`Timeout`](Self::Timeout)), or the lab itself did
/// ([`NoResult`](Self::NoResult), [`Bug`](Self::Bug)).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// Something the host must provide is missing; the message says what to do.
    #[error("the lab is not ready: {0}")]
    Setup(String),

    /// What was asked for does not exist on this host or in this lab.
    #[error("unsupported: {0}")]
    Unsupported(String),

    /// A helper program of the host failed.
    #[error("`{command}` failed ({status}):\n{output}")]
    Command {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        output: String,
    },

    /// A kernel module does not build without errors and warnings.
    #[error("kernel module in {} does not build cleanly for {release}:\n{output}", source_dir.display())]
    ModuleBuild {
        /// The module's source directory.
        source_dir: PathBuf,
        /// The kernel it was built for.
        release: String,
        /// The compiler's messages.
        output: String,
    },

    /// The guest's kernel panicked, oopsed, warned, locked up or stalled.
    #[error("guest kernel failure: {finding}\n{0}", finding = .0.finding.as_deref().unwrap_or("unknown"))]
    GuestKernel(Box<GuestReport>),

    /// The guest could not prepare or start the job: a module that does not
    /// load, a command that cannot be executed.
    #[error("guest could not run the job: {message}\n{report}")]
    GuestSetup {
        /// What the guest's init reported.
        message: String,
        /// The guest's state.
        report: Box<GuestReport>,
    },

    /// The job did not finish in time; its virtual machine was killed.
    #[error("no result after {} s\n{report}", limit.as_secs())]
    Timeout {
        /// The job's limit, counted from the start of the virtual machine.
        limit: Duration,
        /// The guest's state.
        report: Box<GuestReport>,
    },

    /// The virtual machine ended without delivering a complete result.
    #[error("the guest delivered no complete result: {reason}\n{report}")]
    NoResult {
        /// Where the result breaks off.
        reason: String,
        /// The guest's state.
        report: Box<GuestReport>,
    },

    /// The guest's page-table isolation is not what the job asked for.
    #[error("the job wants page-table isolation {}, but the guest says: {evidence}", on_off(*.wanted))]
    KptiMismatch {
        /// What [`Job::kpti`](crate::Job::kpti) asked for.
        wanted: bool,
        /// The guest's kernel log line and CPU flag.
        evidence: String,
    },

    /// An operation on the host failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, with the path.
        context: String,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// An invariant of the lab does not hold. Please report it.
    #[error("bug in the lab: {0}")]
    Bug(String),
}

fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

impl LabError {
    /// The guest's state, where the error comes with one.
    pub fn guest_report(&self) -> Option<&GuestReport> {
        match self {
            Self::GuestKernel(report)
            | Self::GuestSetup { report, .. }
            | Self::Timeout { report, .. }
            | Self::NoResult { report, .. } => Some(report),
            _ => None,
        }
    }
}

/// What is known about a guest that failed.
#[derive(Debug, Clone, Default)]
pub struct GuestReport {
    /// The first line of the kernel log that tells of a failure.
    pub finding: Option<String>,
    /// The part of the kernel log to look at: from shortly before the finding,
    /// or the end.
    pub log_excerpt: String,
    /// What the job had written to standard output.
    pub stdout: Vec<u8>,
    /// What the job had written to standard error.
    pub stderr: Vec<u8>,
    /// Where the complete logs were saved.
    pub directory: PathBuf,
}

/// Bytes of the job's output shown in messages.
const SHOWN_OUTPUT: usize = 4096;

impl fmt::Display for GuestReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "--- guest kernel log ---\n{}", self.log_excerpt.trim_end())?;
        for (name, bytes) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !bytes.is_empty() {
                let tail = &bytes[bytes.len().saturating_sub(SHOWN_OUTPUT)..];
                writeln!(
                    f,
                    "--- {name} of the job ---\n{}",
                    String::from_utf8_lossy(tail).trim_end()
                )?;
            }
        }
        write!(f, "--- complete logs: {} ---", self.directory.display())
    }
}

/// Adds to an I/O error what was being done.
pub(crate) trait Context<T> {
    /// Turns the error into [`LabError::Io`] with "what path".
    fn context(self, what: &str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: &str, path: &Path) -> Result<T> {
        self.map_err(|source| LabError::Io {
            context: format!("{what} {}", path.display()),
            source,
        })
    }
}

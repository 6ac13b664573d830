//! What can go wrong while measuring.

use std::io;
use std::process::ExitStatus;

/// Short for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a measurement could not be made. Wrong *data* is not an error: it is
/// recorded in [`crate::outcome::Cell::faults`] and makes `results_match` false.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the file or address.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program ended in another way than expected.
    #[error("{program} ended with {status}; its last output:\n{log}")]
    Program {
        /// Its name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed.
        log: String,
    },
    /// A program printed something that is not its documented output.
    #[error("unexpected output of {program}: {detail}")]
    Output {
        /// Its name.
        program: String,
        /// What was looked for and what was there.
        detail: String,
    },
    /// A server answered something its protocol does not allow here.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// Something did not happen in time.
    #[error("{what} did not happen within {seconds} s; last output:\n{log}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
        /// The end of what the program printed.
        log: String,
    },
    /// The plan asks for something impossible.
    #[error("plan: {0}")]
    Plan(String),
}

impl Error {
    /// An [`Error::Io`] maker for `map_err`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// An [`Error::Output`].
    pub(crate) fn output(program: &str, detail: impl Into<String>) -> Self {
        Self::Output { program: program.to_owned(), detail: detail.into() }
    }
}

//! Where results go and in which form: the same two options of every command
//! that has one.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;
use ub_report::{Report, html, text};

use super::{complain, print_aside, printable};
use crate::exec::EXIT_UB;

/// Forms of most results.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Text,
    /// For programs: one line, whose field `schema` is the version of the rest
    Json,
}

/// Forms of reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum ReportFormat {
    /// For people
    #[default]
    Text,
    /// For programs: one line, whose field `schema` is the version of the rest
    Json,
    /// One page that needs no other file and no network
    Html,
}

impl ReportFormat {
    /// The report in this form; text has `gaps` gaps.
    pub(super) fn render(self, report: &Report, gaps: usize) -> String {
        match self {
            Self::Text => text::render(report, gaps),
            Self::Json => json(report),
            Self::Html => html::render(report),
        }
    }
}

/// What is printed where no file is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// On standard output.
    Standard,
    /// On standard error, as standard output is the program's.
    Aside,
}

/// What the user chose.
#[derive(Debug, Args)]
pub(super) struct Output<F = Format>
where
    F: ValueEnum + Default + Clone + Send + Sync + 'static,
{
    /// Form of the result
    #[arg(short, long, value_enum, default_value_t)]
    pub(super) format: F,
    /// Write the result to FILE; - is standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl<F> Output<F>
where
    F: ValueEnum + Default + Clone + Send + Sync + 'static,
{
    /// Whether a file was named.
    pub(super) fn is_file(&self) -> bool {
        self.output.is_some()
    }

    /// Writes `text` to the file, or prints it. Returns the exit status, which tells
    /// of a failure behind a line that says why.
    pub(super) fn put(&self, text: &str, otherwise: Stream) -> u8 {
        let written = match (&self.output, otherwise) {
            (Some(path), _) if path.as_os_str() != "-" => ub_report::write(path, text.as_bytes())
                .map_err(|error| format!("cannot write {}: {error}", path.display())),
            (Some(_), _) | (None, Stream::Standard) => io::stdout()
                .write_all(printable(text).as_bytes())
                .map_err(|error| format!("cannot write the result: {error}")),
            (None, Stream::Aside) => {
                print_aside(text);
                Ok(())
            }
        };
        match written {
            Ok(()) => 0,
            Err(message) => {
                complain(message);
                EXIT_UB
            }
        }
    }
}

/// `result` as one line of JSON.
pub(super) fn json(result: &impl Serialize) -> String {
    serde_json::to_string(result).expect("maps have strings as keys") + "\n"
}

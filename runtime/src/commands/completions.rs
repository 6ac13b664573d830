//! `ub completions` and `ub man`: made from the definition of the options.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use super::complain;
use crate::exec::EXIT_UB;

/// Print a completion script for a shell
///
/// For bash: ub completions bash > /usr/share/bash-completion/completions/ub
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

/// Write the manual pages into a folder
#[derive(Debug, Args)]
pub(super) struct Man {
    /// Where to, for example /usr/local/share/man/man1
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Everything that can be typed; what `ub bench` hands on included.
fn definition() -> Command {
    let bench = ub_bench::harness::command().name("bench");
    super::Arguments::command().mut_subcommand("bench", |_| bench)
}

/// Runs `ub completions`; returns the exit status.
pub(super) fn completions(arguments: &Completions) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut definition(), "ub", &mut script);
    let _ = io::stdout().write_all(&script);
    0
}

/// Runs `ub man`; returns the exit status.
pub(super) fn man(arguments: &Man) -> u8 {
    let directory = &arguments.directory;
    let pages = std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(definition(), directory));
    match pages {
        Ok(()) => 0,
        Err(error) => {
            complain(format_args!("cannot write to {}: {error}", directory.display()));
            EXIT_UB
        }
    }
}

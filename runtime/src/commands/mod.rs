//! The subcommands of `ub`.

mod attach;
mod bench;
mod child;
mod completions;
mod config;
mod coverage;
mod detach;
mod doctor;
mod explain;
mod lab;
mod members;
mod observe;
mod output;
mod predict;
mod profile;
mod report;
mod run;
mod session;
mod stat;
mod top;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::exec::{EXIT_UB, exec};

/// Userspace bypass: runs programs with fewer switches into the kernel.
#[derive(Debug, Parser)]
#[command(name = "ub", version, about, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Arguments),
    Stat(stat::Arguments),
    Top(top::Arguments),
    Report(report::Arguments),
    Attach(attach::Arguments),
    Detach(detach::Arguments),
    Explain(explain::Arguments),
    Config(config::Arguments),
    Completions(completions::Completions),
    Man(completions::Man),
    Doctor(doctor::Arguments),
    Lab(lab::Arguments),
    Bench(bench::Arguments),
    Profile(profile::Arguments),
    Predict(predict::Arguments),
    Coverage(coverage::Arguments),
}

/// Runs the command line `words`, program name first, and returns the exit
/// status.
#[must_use]
pub fn main(words: Vec<OsString>) -> u8 {
    let help = help_of(&words);
    let arguments = match Arguments::try_parse_from(words) {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error, &help),
    };
    match arguments.command {
        Command::Run(arguments) => run::main(&arguments),
        Command::Stat(arguments) => stat::main(&arguments),
        Command::Top(arguments) => top::main(&arguments),
        Command::Report(arguments) => report::main(&arguments),
        Command::Attach(arguments) => attach::main(&arguments),
        Command::Detach(arguments) => detach::main(&arguments),
        Command::Explain(arguments) => explain::main(&arguments),
        Command::Config(arguments) => config::main(&arguments),
        Command::Completions(arguments) => completions::completions(&arguments),
        Command::Man(arguments) => completions::man(&arguments),
        Command::Doctor(arguments) => doctor::main(&arguments),
        Command::Lab(arguments) => lab::main(arguments),
        Command::Bench(arguments) => bench::main(arguments),
        Command::Profile(arguments) => profile::main(&arguments),
        Command::Predict(arguments) => predict::main(&arguments),
        Command::Coverage(arguments) => coverage::main(&arguments),
    }
}

/// The command that explains what was typed.
fn help_of(words: &[OsString]) -> String {
    let mut command = Arguments::command();
    let subcommand = words.get(1).and_then(|word| command.find_subcommand_mut(word));
    let name = subcommand.map_or(String::new(), |command| format!(" {}", command.get_name()));
    format!("ub{name} --help")
}

/// Prints what clap says: help as it is, an error as one line that names `help`.
fn usage(error: &clap::Error, help: &str) -> u8 {
    if !error.use_stderr() {
        let _ = error.print();
        return 0;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        complain(format_args!("no command given; see `{help}`"));
        return EXIT_UB;
    }
    let text = error.to_string();
    let what = text
        .lines()
        .take_while(|line| !line.is_empty() && !line.starts_with("Usage"))
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" ");
    let what = what.strip_prefix("error: ").unwrap_or(&what);
    complain(format_args!("{what}; see `{help}`"));
    EXIT_UB
}

/// Replaces this process with the program; returns the exit status, after a
/// line that says why, if that fails.
fn become_program(command: &[OsString]) -> u8 {
    let error = exec(command);
    complain(&error);
    error.exit_code()
}

/// Prints one line on stderr. A closed or full stderr is no reason to fail.
fn complain(message: impl Display) {
    print_aside(&format!("ub: {message}\n"));
}

/// Prints text on stderr, where standard output is the program's.
fn print_aside(text: &str) {
    let _ = io::stderr().write_all(printable(text).as_bytes());
}

/// The text without what could command a terminal: programs choose their names
/// and those of their functions, and it is root who reads them.
fn printable(text: &str) -> String {
    let commands = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    text.replace(commands, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_that_is_named_has_what_was_typed() {
        let help = |words: &[&str]| help_of(&words.iter().map(Into::into).collect::<Vec<_>>());
        assert_eq!(help(&["ub", "run", "--min-rate", "x"]), "ub run --help");
        assert_eq!(help(&["ub", "rnu"]), "ub --help");
        assert_eq!(help(&["ub"]), "ub --help");
    }

    #[test]
    fn names_do_not_command_the_terminal() {
        assert_eq!(printable("a\tb\n"), "a\tb\n");
        assert_eq!(printable("x\x1b]0;y\x07\u{9b}2J"), "x\u{fffd}]0;y\u{fffd}\u{fffd}2J");
    }
}

//! `ub bench`: native against userspace bypass.

use std::ffi::OsString;

use clap::Args;

/// Measure workloads natively and under ub (see `ub bench --help`)
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(super) struct Arguments {
    /// Arguments of the harness
    #[arg(value_name = "ARG", trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs the command; returns the exit status.
pub(super) fn main(arguments: Arguments) -> u8 {
    ub_bench::harness::cli(arguments.arguments)
}

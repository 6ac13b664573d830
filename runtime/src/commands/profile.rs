//! `ub profile`: the gap profiler for kernels without the module.

use std::ffi::OsString;

use clap::Args;

use super::complain;
use crate::exec::EXIT_UB;

/// Profile the gaps of a program without the kernel module (not built yet)
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The program to run and its arguments
    #[arg(value_name = "CMD", trailing_var_arg = true)]
    command: Vec<OsString>,
}

/// Runs the command.
pub(super) fn main(arguments: &Arguments) -> u8 {
    match ub_ebpf_fallback::profile(&arguments.command) {
        Ok(never) => match never {},
        Err(error) => {
            complain(error);
            EXIT_UB
        }
    }
}

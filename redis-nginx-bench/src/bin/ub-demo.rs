//! `make demo`: boots guests, compares native and ub, prints the table.

use std::process::ExitCode;

fn main() -> ExitCode {
    ub_bench::cli(std::env::args_os().skip(1)).into()
}

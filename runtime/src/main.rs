//! The `ub` command.
//!
//! `main` is C's: Rust's run-time start would ignore SIGPIPE and open
//! `/dev/null` in place of closed standard streams, and the program that
//! `ub run` becomes would inherit both.
#![no_main]

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::panic::catch_unwind;

use ub_runtime::{commands, exec};

/// Entry point.
///
/// # Safety
/// Only for the C library, which calls it once with one thread, `argc` strings
/// at `argv` that end with NUL and live as long as the process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let count = usize::try_from(argc).unwrap_or(0);
    let arguments: Vec<OsString> = (0..count)
        .map(|index| {
            // SAFETY: `index` is below `argc`; see this function's contract.
            let word = unsafe { CStr::from_ptr(*argv.add(index)) };
            OsStr::from_bytes(word.to_bytes()).to_owned()
        })
        .collect();
    // The panic has been printed by its hook.
    let status = catch_unwind(|| commands::main(arguments)).unwrap_or(exec::EXIT_UB);
    c_int::from(status)
}

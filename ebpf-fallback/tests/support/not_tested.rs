//! Tests that pass without having tested anything, and say so.

use std::env;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;

/// Says that the caller passes untested for want of what this machine lacks or this user
/// may not do. What a test that passes prints is shown to nobody, so it also goes to the
/// file that `UB_NOT_TESTED` names, a line each, which `make test` prints at its end.
pub fn not_tested(reason: impl Display) {
    let line = format!("not tested: {}: {reason}\n", env!("CARGO_CRATE_NAME"));
    eprint!("{line}");
    if let Some(path) = env::var_os("UB_NOT_TESTED") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("UB_NOT_TESTED is writable");
    }
}

//! Becoming the program, with the exit codes of `env`.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;

/// Exit status when `ub` itself failed.
pub const EXIT_UB: u8 = 125;
/// Exit status when the program was found and cannot be executed.
pub const EXIT_CANNOT_EXECUTE: u8 = 126;
/// Exit status when the program was not found.
pub const EXIT_NOT_FOUND: u8 = 127;

/// Why the program was not executed.
#[derive(Debug, thiserror::Error)]
#[error("{program}: {}", .errno.desc())]
pub struct ExecError {
    /// Its name as given.
    pub program: String,
    /// What the kernel answered.
    pub errno: Errno,
}

impl ExecError {
    /// The exit status that `env` would have.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.errno == Errno::ENOENT { EXIT_NOT_FOUND } else { EXIT_CANNOT_EXECUTE }
    }
}

/// Replaces this process with `command`, searched in PATH. Returns only if
/// that fails. Everything else stays as it is: pid, environment, descriptors,
/// signal dispositions and mask.
#[must_use]
pub fn exec(command: &[OsString]) -> ExecError {
    let words: Result<Vec<_>, _> =
        command.iter().map(|word| CString::new(word.as_bytes())).collect();
    // Words from a command line never contain NUL.
    let errno = match words.as_deref() {
        Ok(words @ [program, ..]) => match nix::unistd::execvp(program, words) {
            Ok(never) => match never {},
            Err(errno) => errno,
        },
        Ok([]) => Errno::ENOENT,
        Err(_) => Errno::EINVAL,
    };
    let program = command.first().map(|word| word.to_string_lossy().into_owned());
    ExecError { program: program.unwrap_or_default(), errno }
}

//! Running helper programs of the host.

use std::io;
use std::process::{Command, Output};

use crate::error::{LabError, Result};

/// Bytes of a failed program's output kept for the message.
const OUTPUT_TAIL: usize = 16 * 1024;

/// Runs `command` to its end and returns its standard output.
///
/// A program that cannot be found is [`LabError::Setup`]; one that fails is
/// [`LabError::Command`] with the end of its output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    tracing::debug!(?command, "running");
    let result = command.output();
    let name = display(command);
    let output = result.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => LabError::Setup(format!(
            "`{}` is not installed; `ub_vm_lab::prerequisites()` installs what the lab needs",
            command.get_program().to_string_lossy()
        )),
        _ => LabError::Io { context: format!("running `{name}`"), source },
    })?;
    if !output.status.success() {
        return Err(LabError::Command {
            command: name,
            status: output.status.to_string(),
            output: tail_of(&output),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The end of what a program printed on both streams.
pub(crate) fn tail_of(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let mut start = text.len().saturating_sub(OUTPUT_TAIL);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].trim_end().to_owned()
}

/// The command line, for messages.
pub(crate) fn display(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

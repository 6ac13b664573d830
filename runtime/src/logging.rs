//! Logs go to a file that the user names and nowhere else: the program's
//! standard streams are not ours.

use std::fs::{File, OpenOptions};
use std::io;
use std::panic;
use std::path::Path;
use std::sync::Mutex;

use tracing::Level;

/// Opens a log file for appending, close-on-exec.
///
/// # Errors
/// What the file system answers.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// Sends this process's log and panic messages to `file`, or nowhere.
pub fn init(file: Option<File>, level: Level) {
    if let Some(file) = file {
        let subscriber = tracing_subscriber::fmt()
            .with_writer(Mutex::new(file))
            .with_ansi(false)
            .with_max_level(level)
            .finish();
        // A second call, in tests, keeps the first.
        let _ = tracing::subscriber::set_global_default(subscriber);
    }
    panic::set_hook(Box::new(|info| tracing::error!(%info, "panic")));
}

//! The supervisor's side.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Answer, PROTOCOL, Question, Request};
use crate::runtime_folder::RuntimeFolder;

/// How long one client may keep the supervisor waiting, for each of reading
/// and writing.
const PATIENCE: Duration = Duration::from_millis(200);
/// Longest request in bytes.
const REQUEST: u64 = 4096;

/// Where a supervisor is asked. Dropping it removes the socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Listens in the first of the folders that this user can use.
    ///
    /// # Errors
    /// When there is none.
    pub fn start() -> io::Result<Self> {
        let mut result = Err(io::ErrorKind::NotFound.into());
        for folder in RuntimeFolder::usable() {
            result = Self::start_in(folder.path());
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// Listens in `directory`.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn start_in(directory: &Path) -> io::Result<Self> {
        let path = directory.join(format!("{}.sock", std::process::id()));
        // Of an earlier process with this number that was killed.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        let server = Self { listener, path };
        server.listener.set_nonblocking(true)?;
        Ok(server)
    }

    /// The socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves one waiting client, if there is one. What goes wrong with a
    /// client is the client's affair.
    pub fn serve(&self, answer: impl FnOnce(Question) -> Answer) {
        if let Ok((stream, _)) = self.listener.accept() {
            let _ = converse(stream, answer);
        }
    }

    /// Leaves the socket behind, as a killed supervisor does.
    #[cfg(test)]
    pub(super) fn abandon(mut self) {
        self.path = PathBuf::new();
    }
}

fn converse(stream: UnixStream, answer: impl FnOnce(Question) -> Answer) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(&stream).take(REQUEST).read_line(&mut line)?;
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(request) if request.protocol == PROTOCOL => answer(request.question),
        Ok(request) => Answer::Error(format!(
            "the supervisor speaks protocol {PROTOCOL}, this ub {}; use the ub that started the session",
            request.protocol
        )),
        Err(error) => Answer::Error(format!("not a request: {error}")),
    };
    let mut json = serde_json::to_vec(&answer)?;
    json.push(b'\n');
    (&stream).write_all(&json)
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

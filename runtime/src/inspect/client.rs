//! The side of whoever looks.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use ub_report::Report;

use super::{Answer, FragmentDump, PROTOCOL, Question, Request};
use crate::host::ProcessStatus;
use crate::machine;
use crate::runtime_folder::RuntimeFolder;

/// A supervisor may be in the middle of a batch of translations, and slow where
/// it is emulated.
const PATIENCE: Duration = Duration::from_secs(5);

/// A supervisor that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    path: PathBuf,
    patience: Duration,
}

/// A running session.
#[derive(Debug, Clone)]
pub struct Found {
    /// Whom to ask more.
    pub peer: Peer,
    /// What it said.
    pub report: Report,
}

/// There is no session to look into; says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotFound {
    /// No session at all.
    #[error("no session is running{} start one with `ub run -- CMD`", hint(.0))]
    NoSession(
        /// Why there cannot be one, if that is known.
        Option<String>,
    ),
    /// No session, since programs are let go here.
    #[error("no session is running: {0}")]
    DoesNotPay(
        /// Why.
        String,
    ),
    /// Sessions, but none with this process.
    #[error("process {0} is in no session; `ub top` shows those that are")]
    NotAMember(
        /// The process.
        u32,
    ),
    /// There is no such process.
    #[error("there is no process {0}")]
    NoProcess(
        /// Its number.
        u32,
    ),
    /// None of those that answered, and there are supervisors that did not.
    #[error("a supervisor does not answer ({0}); try again, or restart its program")]
    NoAnswer(
        /// What it said, or why it said nothing.
        String,
    ),
}

fn hint(reason: &Option<String>) -> String {
    reason.as_ref().map_or_else(|| ";".to_owned(), |reason| format!(": {reason}, then"))
}

impl Peer {
    #[cfg(test)]
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path, patience: PATIENCE }
    }

    /// The session's report as it is now.
    ///
    /// # Errors
    /// When the supervisor has ended or does not answer.
    pub fn report(&self) -> io::Result<Report> {
        match self.ask(Question::Report)? {
            Answer::Report(report) => Ok(*report),
            other => Err(unexpected(other)),
        }
    }

    /// The fragment for `address`, if there is one.
    ///
    /// # Errors
    /// When the supervisor has ended or does not answer.
    pub fn fragment(&self, space: u64, address: u64) -> io::Result<Option<FragmentDump>> {
        match self.ask(Question::Fragment { space, address })? {
            Answer::Fragment(fragment) => Ok(fragment.map(|fragment| *fragment)),
            other => Err(unexpected(other)),
        }
    }

    fn ask(&self, question: Question) -> io::Result<Answer> {
        let mut stream = UnixStream::connect(&self.path)?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        let mut line = serde_json::to_vec(&Request { protocol: PROTOCOL, question })?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(serde_json::from_slice(&answer)?)
    }
}

fn unexpected(answer: Answer) -> io::Error {
    match answer {
        Answer::Error(message) => io::Error::other(message),
        _ => io::Error::other("the supervisor answered another question"),
    }
}

/// What came of asking every supervisor.
#[derive(Debug, Default)]
pub struct Sessions {
    /// The sessions, in the order of their supervisors' numbers.
    pub found: Vec<Found>,
    /// What the others said, or why they said nothing: another version of `ub`
    /// supervises, or one that is stuck.
    pub silent: Vec<String>,
}

impl Sessions {
    /// Why none was found.
    #[must_use]
    pub fn why_none(&self) -> NotFound {
        match self.silent.first() {
            Some(reason) => NotFound::NoAnswer(reason.clone()),
            None => match (no_device(), machine::remembered()) {
                (None, Some(known)) if !known.is_gain() => {
                    NotFound::DoesNotPay(machine::why_native(&known))
                }
                (reason, _) => NotFound::NoSession(reason),
            },
        }
    }
}

/// Every session that this user may look into.
#[must_use]
pub fn all() -> Sessions {
    let folders: Vec<_> = RuntimeFolder::existing().collect();
    in_directories(folders.iter().map(RuntimeFolder::path), PATIENCE)
}

/// Asks all supervisors that listen there at once: one that is stuck keeps nobody
/// waiting for longer than `patience`, and ten of them do not either.
pub(super) fn in_directories<'a>(
    directories: impl Iterator<Item = &'a Path>,
    patience: Duration,
) -> Sessions {
    let mut sessions = Sessions::default();
    let answers: Vec<_> = thread::scope(|scope| {
        let asked: Vec<_> = directories
            .flat_map(sockets)
            .map(|path| Peer { path, patience })
            .map(|peer| scope.spawn(move || (peer.report(), peer)))
            .collect();
        asked.into_iter().map(|asked| asked.join().expect("asking does not panic")).collect()
    });
    for (answer, peer) in answers {
        match answer {
            Ok(report) => sessions.found.push(Found { peer, report }),
            // Its supervisor was killed and could not clean up.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let _ = fs::remove_file(&peer.path);
            }
            // It ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => sessions.silent.push(format!("{}: {error}", peer.path.display())),
        }
    }
    sessions
}

/// The sockets in a folder, sorted, so that a screen does not jump.
fn sockets(directory: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
        .collect()
}

/// The session of the process `pid`: one that knows it, or one that knows an
/// ancestor, since what a member starts is a member.
///
/// # Errors
/// See [`NotFound`].
pub fn of_process(pid: u32) -> Result<Found, NotFound> {
    if !Path::new("/proc").join(pid.to_string()).exists() {
        return Err(NotFound::NoProcess(pid));
    }
    let sessions = all();
    if sessions.found.is_empty() {
        return Err(sessions.why_none());
    }
    let mut candidate = Some(pid);
    while let Some(current) = candidate {
        let found = sessions.found.iter().find(|session| {
            let report = &session.report;
            report.pid == Some(current)
                || report.attached.contains(&current)
                || report.processes.iter().any(|process| process.pid == Some(current))
        });
        if let Some(found) = found {
            return Ok(found.clone());
        }
        candidate = parent(current);
    }
    // It may be a member of one that did not answer.
    Err(match sessions.silent.first() {
        Some(reason) => NotFound::NoAnswer(reason.clone()),
        None => NotFound::NotAMember(pid),
    })
}

/// Why there can be no session on this machine, if that is so.
fn no_device() -> Option<String> {
    crate::device::Device::open().err().map(|error| error.to_string())
}

fn parent(pid: u32) -> Option<u32> {
    let parent = ProcessStatus::read(pid)?.field("PPid")?;
    (parent > 1).then_some(parent)
}

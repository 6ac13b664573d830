//! Looking into running sessions.
//!
//! Every supervisor listens on a socket in a folder for them. A client sends one
//! [`Request`] as a line of JSON and gets one [`Answer`]. The folder is that of
//! the user who runs the supervisor, so that others cannot reach the socket, and
//! nobody looks into folders of others.
//! Asking costs the watched program nothing: it is the supervisor that works.

mod client;
mod server;

use serde::{Deserialize, Serialize};
use ub_report::Report;

pub use client::{Found, NotFound, Peer, Sessions, all, of_process};
pub use server::Server;

/// Version of what is said over the socket.
pub const PROTOCOL: u32 = 1;

/// What a client wants to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// The report as it is now.
    Report,
    /// The fragment that stands for `address` or contains it.
    Fragment {
        /// Address space, as in [`ub_report::Process::space`].
        space: u64,
        /// User address.
        address: u64,
    },
}

/// A question as it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`PROTOCOL`] of the client.
    pub protocol: u32,
    /// The question.
    pub question: Question,
}

/// What a supervisor answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Question::Report`].
    Report(Box<Report>),
    /// To [`Question::Fragment`]; `None` if there is no such fragment.
    Fragment(Option<Box<FragmentDump>>),
    /// The question was not understood.
    Error(String),
}

/// An installed fragment, and what it was made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FragmentDump {
    /// User address that it stands for.
    pub entry: u64,
    /// Its machine code.
    pub code: Vec<u8>,
    /// (user address, offset in `code`) of each translated instruction, in the
    /// order of the code.
    pub map: Vec<(u64, u32)>,
    /// The ways out.
    pub exits: Vec<ExitDump>,
    /// The user's code: first address and bytes of each stretch.
    pub guest: Vec<(u64, Vec<u8>)>,
}

/// One way out of a fragment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitDump {
    /// User address at which the program goes on, or of the branch.
    pub address: u64,
    /// Why it is left there, for people.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::{Arc, Barrier};
    use std::thread;
    use std::time::Duration;

    use nix::poll::{PollFd, PollFlags, poll};

    use super::*;

    /// Serves `rounds` connections in another thread.
    fn serve(server: Server, rounds: usize) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            for _ in 0..rounds {
                let mut fds = [PollFd::new(server.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, 5000u16).unwrap();
                server.serve(|question| match question {
                    Question::Report => Answer::Report(Box::default()),
                    Question::Fragment { .. } => Answer::Fragment(None),
                });
            }
        })
    }

    #[test]
    fn questions_get_their_answers() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start_in(dir.path()).unwrap();
        let peer = Peer::at(server.path().to_owned());
        let served = serve(server, 2);
        assert_eq!(peer.report().unwrap(), Report::default());
        assert_eq!(peer.fragment(1, 2).unwrap(), None);
        served.join().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the socket stayed");
    }

    #[test]
    fn another_protocol_is_refused_and_nonsense_too() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start_in(dir.path()).unwrap();
        let path = server.path().to_owned();
        let served = serve(server, 2);
        for line in ["{\"protocol\":99,\"question\":\"report\"}\n", "hello\n"] {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(line.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.contains("error"), "{answer}");
        }
        served.join().unwrap();
    }

    #[test]
    fn a_silent_client_does_not_hold_the_supervisor() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start_in(dir.path()).unwrap();
        let _silent = UnixStream::connect(server.path()).unwrap();
        // Comes back although nothing is ever sent.
        server.serve(|_| panic!("nothing was asked"));
    }

    fn look(directory: &std::path::Path) -> Sessions {
        client::in_directories(std::iter::once(directory), Duration::from_secs(5))
    }

    /// Each answers when the other was asked, too: one after the other would be in vain.
    #[test]
    fn all_supervisors_are_asked_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let both_asked = Arc::new(Barrier::new(2));
        for name in ["a.sock", "b.sock"] {
            let listener = UnixListener::bind(dir.path().join(name)).unwrap();
            let both_asked = Arc::clone(&both_asked);
            thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                BufReader::new(&stream).read_line(&mut String::new()).unwrap();
                both_asked.wait();
                let answer = serde_json::to_vec(&Answer::Report(Box::default())).unwrap();
                stream.write_all(&answer).unwrap();
            });
        }
        let sessions = look(dir.path());
        assert_eq!(sessions.found.len(), 2, "{sessions:?}");
    }

    #[test]
    fn what_a_supervisor_refuses_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start_in(dir.path()).unwrap();
        let served = thread::spawn(move || {
            let mut fds = [PollFd::new(server.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, 5000u16).unwrap();
            server.serve(|_| Answer::Error("use the ub that started the session".into()));
        });
        let sessions = look(dir.path());
        served.join().unwrap();
        assert!(sessions.found.is_empty());
        let NotFound::NoAnswer(reason) = sessions.why_none() else { panic!("{sessions:?}") };
        assert!(reason.contains("use the ub that started"), "{reason}");
    }

    #[test]
    fn the_socket_of_a_dead_supervisor_is_passed_over_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start_in(dir.path()).unwrap();
        let path = server.path().to_owned();
        server.abandon();
        assert!(path.exists());
        let sessions = look(dir.path());
        assert!(sessions.found.is_empty() && sessions.silent.is_empty(), "{sessions:?}");
        assert!(!path.exists());
    }
}

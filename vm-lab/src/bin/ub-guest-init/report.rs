//! The way to the host.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use ub_vm_lab::protocol::{Frame, PORT_NAME, RECEIVED};

/// How long to wait for the port to appear after its drivers were loaded.
const PORT_WAIT: Duration = Duration::from_secs(30);

/// How long the host may take to read what was sent, in milliseconds.
const RECEIPT_WAIT: u16 = 30_000;

/// Sends frames; shared by the threads that read the command's output.
pub struct Reporter {
    port: Mutex<Port>,
}

struct Port {
    file: File,
    sent: u64,
    error: Option<io::Error>,
}

impl Reporter {
    /// Opens the virtio-serial port named [`PORT_NAME`].
    pub fn open() -> Result<Self, String> {
        let deadline = Instant::now() + PORT_WAIT;
        let path = loop {
            if let Some(path) = find_port() {
                break path;
            }
            if Instant::now() > deadline {
                return Err(format!("no virtio-serial port named {PORT_NAME}"));
            }
            thread::sleep(Duration::from_millis(5));
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { port: Mutex::new(Port { file, sent: 0, error: None }) })
    }

    fn lock(&self) -> MutexGuard<'_, Port> {
        // A thread that panicked while sending ends the guest by the host's
        // checksum; the others need not know.
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one frame. After a failure nothing more is sent, so that the
    /// host sees the result break off; [`finish`](Self::finish) tells why.
    pub fn send(&self, frame: &Frame) {
        let mut port = self.lock();
        if port.error.is_none() {
            let result = frame.write(&mut port.file);
            port.sent += 1;
            port.error = result.err();
        }
    }

    /// Sends the last frame and waits until the host has received it.
    pub fn finish(self) -> Result<(), String> {
        let sent = self.lock().sent;
        self.send(&Frame::End(sent));
        let mut port = self.lock();
        match port.error.take() {
            Some(error) => Err(format!("sending the results: {error}")),
            None => port.await_receipt(),
        }
    }
}

impl Port {
    fn await_receipt(&mut self) -> Result<(), String> {
        let failed = |why: String| format!("waiting for the host to receive the results: {why}");
        let mut polled = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, RECEIPT_WAIT) {
            Ok(0) => return Err(failed("no answer".into())),
            Ok(_) => {}
            Err(error) => return Err(failed(error.to_string())),
        }
        let mut answer = [0];
        self.file.read_exact(&mut answer).map_err(|error| failed(error.to_string()))?;
        if answer == [RECEIVED] { Ok(()) } else { Err(failed(format!("answer {answer:?}"))) }
    }
}

fn find_port() -> Option<PathBuf> {
    fs::read_dir("/sys/class/virtio-ports").ok()?.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        let device = Path::new("/dev").join(entry.file_name());
        (name.trim_end() == PORT_NAME && device.exists()).then_some(device)
    })
}

//! The way to the host.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ub_vm_lab::protocol::{Frame, PORT_NAME};

/// How long to wait for the port to appear after its drivers were loaded.
const PORT_WAIT: Duration = Duration::from_secs(30);

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

    /// Sends the last frame.
    pub fn finish(self) -> Result<(), String> {
        let sent = self.lock().sent;
        self.send(&Frame::End(sent));
        match self.lock().error.take() {
            Some(error) => Err(format!("sending the results: {error}")),
            None => Ok(()),
        }
    }
}

fn find_port() -> Option<PathBuf> {
    fs::read_dir("/sys/class/virtio-ports").ok()?.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        let device = Path::new("/dev").join(entry.file_name());
        (name.trim_end() == PORT_NAME && device.exists()).then_some(device)
    })
}

//! Measures a raw packet socket on a veth pair.

use std::path::Path;
use std::process::Command;

use super::calls;
use super::launch::{How, Launcher, Running};
use super::subject::{Findings, Load, Subject, Timed};
use crate::workload::{self, Task};
use crate::{Error, Result};

/// The ends of the veth pair.
const SENDER: &str = "ubveth0";
const RECEIVER: &str = "ubveth1";

/// A receiver, and packets while it is under load.
pub(super) struct Receiver<'a> {
    launcher: &'a Launcher,
    receiver: calls::Loop,
}

impl<'a> Receiver<'a> {
    /// Makes the veth pair if there is none yet, and starts a receiver.
    pub(super) fn start(
        launcher: &'a Launcher,
        how: How,
        task: Task,
        by: workload::Receiver,
    ) -> Result<Self> {
        if !Path::new("/sys/class/net").join(RECEIVER).exists() {
            veth(&launcher.plan().programs.ip)?;
        }
        let task = match task {
            Task::Count => "count",
            Task::Filter => "filter",
        };
        let arguments = ["packets", "--interface", RECEIVER, "--task", task, "--by", by.word()];
        let receiver = calls::Loop::start(launcher, how, &arguments, None)?;
        Ok(Self { launcher, receiver })
    }
}

fn veth(ip: &Path) -> Result<()> {
    for words in [
        &["link", "add", SENDER, "type", "veth", "peer", "name", RECEIVER][..],
        &["link", "set", SENDER, "up"],
        &["link", "set", RECEIVER, "up"],
    ] {
        let output = Command::new(ip)
            .args(words)
            .output()
            .map_err(Error::io(format!("starting {}", ip.display())))?;
        if !output.status.success() {
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Error::Program { program: "ip".into(), status: output.status, log });
        }
    }
    Ok(())
}

impl Subject for Receiver<'_> {
    fn running(&mut self) -> &mut Running {
        self.receiver.running()
    }

    /// Packets come faster than they are received: those that find no room are
    /// dropped, and the receiver's own rate is what is measured.
    fn load(&mut self, load: &Load, findings: &mut Findings) -> Result<Timed> {
        let program = &self.launcher.plan().programs.workload;
        // Killed at the end of this function.
        let _sender = self.launcher.background(program, &["send", "--interface", SENDER])?;
        self.receiver.load(load, findings)
    }

    /// Nothing: the receiver checks each load, and says so in its checksum.
    fn check(&mut self, _: &mut Findings) -> Result<()> {
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.receiver.stop()
    }
}

//! Measures `ub-workload`: the loops of system calls.

use std::fs;
use std::path::{Path, PathBuf};

use super::launch::{How, Launcher, Running};
use super::subject::{Findings, Load, Subject, Timed};
use crate::content;
use crate::interpose::Interposer;
use crate::micro::{Line, READY, Reader};
use crate::outcome::Round;
use crate::workload::{Storage, Sum};
use crate::{Error, Result};

/// Size of the file that is read, in bytes: fits every cache that matters
/// less than the system call.
const FILE_BYTES: usize = 1 << 20;
/// Seed of its content.
const SEED: u64 = 0x7562;

/// A loop that does as many calls as it is told.
#[derive(Debug)]
pub(super) struct Loop {
    running: Running,
    reads: Option<Expected>,
}

/// What a reading loop must answer.
#[derive(Debug)]
pub(super) struct Expected {
    content: Vec<u8>,
    block: usize,
    sum: Sum,
    /// The last number of calls and its checksum: that number seldom changes.
    known: Option<(u64, u64)>,
}

impl Expected {
    fn checksum(&mut self, calls: u64) -> String {
        let checksum = match self.known {
            Some((known, checksum)) if known == calls => checksum,
            _ => Reader::expected(&self.content, self.block, self.sum, calls),
        };
        self.known = Some((calls, checksum));
        format!("{checksum:016x}")
    }
}

impl Loop {
    /// `getppid`.
    pub(super) fn null(launcher: &Launcher, how: How) -> Result<Self> {
        Self::start(launcher, how, &["null"], None)
    }

    /// `getppid` through something that gets hold of it first.
    pub(super) fn interposed(launcher: &Launcher, how: How, by: Interposer) -> Result<Self> {
        Self::start(launcher, how, &["interposed", "--by", by.word()], None)
    }

    /// Reads of a file, through io_uring if there is a `depth`.
    pub(super) fn reads(
        launcher: &Launcher,
        how: How,
        bytes: u32,
        from: Storage,
        sum: Sum,
        depth: Option<u32>,
    ) -> Result<Self> {
        let plan = launcher.plan();
        let folder = match from {
            Storage::Tmpfs => &plan.scratch,
            Storage::Disk => plan
                .disk
                .as_ref()
                .ok_or_else(|| Error::Plan("there is no folder on a disk".into()))?,
        };
        let planted = how == How::Ub && plan.plant.mismatch;
        let path = data_file(folder, planted)?;
        let (size, word, file) = (bytes.to_string(), sum.word(), path.to_string_lossy());
        let depth_text = depth.unwrap_or(1).to_string();
        let mut arguments = vec![if depth.is_some() { "uring" } else { "pread" }];
        arguments.extend(["--size", &size, "--sum", &word, "--file", &file]);
        if depth.is_some() {
            arguments.extend(["--depth", &depth_text]);
        }
        let content = content::bytes(SEED, FILE_BYTES);
        let expected = Expected { content, block: bytes as usize, sum, known: None };
        Self::start(launcher, how, &arguments, Some(expected))
    }

    /// Starts `ub-workload` with these arguments to be told numbers of calls.
    pub(super) fn start(
        launcher: &Launcher,
        how: How,
        workload: &[&str],
        reads: Option<Expected>,
    ) -> Result<Self> {
        let plan = launcher.plan();
        let mut arguments = workload.to_vec();
        arguments.push("--serve");
        let sleep = plan.plant.sleep_us.filter(|_| how == How::Ub).map(|sleep| sleep.to_string());
        if let Some(sleep) = &sleep {
            arguments.extend(["--sleep-us", sleep]);
        }
        let mut running = launcher.server(how, &plan.programs.workload, &arguments)?;
        let said = running.answer("readiness")?;
        if said != READY {
            return Err(Error::output("ub-workload", format!("{said:?} instead of {READY:?}")));
        }
        Ok(Self { running, reads })
    }
}

impl Subject for Loop {
    fn running(&mut self) -> &mut Running {
        &mut self.running
    }

    fn load(&mut self, load: &Load, findings: &mut Findings) -> Result<Timed> {
        self.running.tell(&load.operations.to_string())?;
        let text = self.running.answer("its result")?;
        let line: Line = serde_json::from_str(&text)
            .map_err(|error| Error::output("ub-workload", format!("{error} in {text:?}")))?;
        if let Some(expected) = &mut self.reads
            && line.checksum != expected.checksum(line.calls)
        {
            findings.faults.push("what was read is not what the file holds".into());
        }
        findings.digest.add("calls", &line.calls.to_le_bytes());
        findings.digest.add("checksum", line.checksum.as_bytes());
        let round = Round { operations: line.calls, seconds: line.elapsed_ns as f64 / 1e9 };
        Ok(Timed { round, latency: None })
    }

    /// Nothing: every load was checked.
    fn check(&mut self, _: &mut Findings) -> Result<()> {
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.running.hang_up();
        self.running.finish().map(drop)
    }
}

/// The file that is read, or one that a planted mistake makes different.
fn data_file(folder: &Path, planted: bool) -> Result<PathBuf> {
    let path = folder.join(if planted { "planted.data" } else { "pread.data" });
    if !path.exists() {
        let mut content = content::bytes(SEED, FILE_BYTES);
        if planted {
            content.iter_mut().for_each(|byte| *byte ^= 1);
        }
        fs::write(&path, content).map_err(Error::io(format!("writing {}", path.display())))?;
    }
    Ok(path)
}

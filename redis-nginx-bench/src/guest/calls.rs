//! Measures `ub-workload`: the `null` and `pread` loops.

use std::fs;

use super::launch::{How, Launcher};
use super::{Amount, Sample};
use crate::content::{self, Digest};
use crate::micro::{Line, READY};
use crate::outcome::Round;
use crate::{Error, Result};

/// Size of the file that is read, in bytes: fits every cache that matters
/// less than the system call.
const FILE_BYTES: usize = 1 << 20;
/// Seed of its content. `ub-workload` gets it as an argument and checks with it.
const SEED: u64 = 0x7562;

pub(super) fn null(launcher: &Launcher, how: How, amount: &Amount) -> Result<Sample> {
    sample(launcher, how, amount, &["null"])
}

pub(super) fn pread(launcher: &Launcher, how: How, amount: &Amount, size: usize) -> Result<Sample> {
    let path = launcher.plan().scratch.join("pread.data");
    if !path.exists() {
        fs::write(&path, content::bytes(SEED, FILE_BYTES))
            .map_err(Error::io(format!("writing {}", path.display())))?;
    }
    let (size, seed) = (size.to_string(), SEED.to_string());
    let file = path.to_string_lossy();
    sample(launcher, how, amount, &["pread", "--size", &size, "--file", &file, "--seed", &seed])
}

fn sample(launcher: &Launcher, how: How, amount: &Amount, workload: &[&str]) -> Result<Sample> {
    let calls = amount.operations.to_string();
    let warmup_calls = amount.warmup_operations.to_string();
    let warmup_ms = amount.warmup.as_millis().to_string();
    let mut arguments = workload.to_vec();
    arguments.extend(["--calls", &calls, "--warmup-calls", &warmup_calls]);
    arguments.extend(["--warmup-ms", &warmup_ms, "--wait"]);
    let mut running = launcher.server(how, &launcher.plan().programs.workload, &arguments)?;
    let printed = running.output();
    running.until("the end of its warm-up", || {
        fs::read_to_string(&printed).ok()?.starts_with(READY).then_some(())
    })?;
    let earlier = running.session_so_far()?;
    running.go_on()?;
    let text = running.finish()?;
    let line: Line = serde_json::from_str(text.trim_start_matches(READY).trim())
        .map_err(|error| Error::output("ub-workload", format!("{error} in {text:?}")))?;
    let mut digest = Digest::default();
    digest.add("calls", &line.calls.to_le_bytes());
    digest.add("checksum", line.checksum.as_bytes());
    Ok(Sample {
        round: Round { operations: line.calls, seconds: line.elapsed_ns as f64 / 1e9 },
        digest: digest.finish(),
        faults: Vec::new(),
        cpu: None,
        settled: None,
        session: running.session(earlier.as_ref(), line.calls)?,
    })
}

//! Finding out whether KVM works here: a device node and a successful `ioctl` do not
//! prove that a kernel boots (nested virtualisation may hang or fail in the guest).

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::cache::{FileLock, file_name_safe};
use crate::error::{Context, LabError, Result};
use crate::job::{Accelerator, Job};
use crate::kernels::Kernel;
use crate::lab::Lab;

const DEVICE: &str = "/dev/kvm";

/// The limit of a trial boot: several times what KVM needs on a slow host.
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// KVM if this kernel boots with it within a few seconds, else TCG.
pub(crate) fn detect(lab: &Lab, kernel: &Kernel, cache: &Path) -> Result<Accelerator> {
    if fs::File::options().read(true).write(true).open(DEVICE).is_err() {
        return Ok(Accelerator::Tcg);
    }
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .context("reading", Path::new("/proc/sys/kernel/random/boot_id"))?;
    let name = format!("{}-{}.json", boot_id.trim(), kernel.release());
    let path = cache.join("probes").join(file_name_safe(name.as_ref()));
    let _lock = FileLock::acquire(&cache.join("locks/probe"))?;
    if let Some(known) = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
        return Ok(known);
    }
    let found = probe(lab, kernel)?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).context("creating", parent)?;
    }
    let text = serde_json::to_vec(&found).map_err(|error| LabError::Bug(error.to_string()))?;
    fs::write(&path, text).context("writing", &path)?;
    Ok(found)
}

fn probe(lab: &Lab, kernel: &Kernel) -> Result<Accelerator> {
    tracing::info!(kernel = kernel.release(), "trying KVM");
    let job = Job::new("probe", kernel.version()).timeout(PROBE_LIMIT);
    match lab.boot(&job, kernel, Accelerator::Kvm) {
        Ok(_) => Ok(Accelerator::Kvm),
        Err(
            error @ (LabError::GuestKernel(_)
            | LabError::GuestSetup { .. }
            | LabError::Timeout { .. }
            | LabError::NoResult { .. }
            | LabError::KptiMismatch { .. }),
        ) => {
            tracing::info!(%error, "KVM does not work here, using TCG");
            Ok(Accelerator::Tcg)
        }
        Err(error) => Err(error),
    }
}

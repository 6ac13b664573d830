//! Finding out whether KVM works here: a device node and a successful `ioctl` do not
//! prove that a kernel boots (nested virtualisation may hang or fail in the guest).

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::cache::{self, FileLock, file_name_safe};
use crate::error::{Context, LabError, Result};
use crate::job::{Accelerator, Job};
use crate::kernels::Kernel;
use crate::lab::Lab;

const DEVICE: &str = "/dev/kvm";

/// The limit of a trial boot: several times what KVM needs on a slow host.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// KVM if this kernel boots with it within a few seconds, else TCG. Remembered
/// in the cache folder's `probes/` until the host boots again.
pub(crate) fn detect(lab: &Lab, kernel: &Kernel, cache_dir: &Path) -> Result<Accelerator> {
    if fs::File::options().read(true).write(true).open(DEVICE).is_err() {
        return Ok(Accelerator::Tcg);
    }
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .context("reading", Path::new("/proc/sys/kernel/random/boot_id"))?;
    let probes = cache_dir.join("probes");
    // What fails with one kernel is the host's fault and is not trusted with
    // another; what works is proven for this kernel only.
    let failed = probes.join(format!("{}-failed", boot_id.trim()));
    let works =
        probes.join(file_name_safe(format!("{}-{}", boot_id.trim(), kernel.release()).as_ref()));
    let _lock = FileLock::acquire(&cache_dir.join("locks/probe"))?;
    if failed.exists() {
        return Ok(Accelerator::Tcg);
    }
    if works.exists() {
        return Ok(Accelerator::Kvm);
    }
    let (found, path) = match probe(lab, kernel)? {
        Accelerator::Kvm => (Accelerator::Kvm, works),
        Accelerator::Tcg => (Accelerator::Tcg, failed),
    };
    cache::write_whole(&path, b"").context("writing", &path)?;
    Ok(found)
}

fn probe(lab: &Lab, kernel: &Kernel) -> Result<Accelerator> {
    tracing::info!(kernel = kernel.release(), "trying KVM");
    let job = Job::new("probe", kernel.version()).timeout(PROBE_LIMIT);
    match lab.boot(&job, kernel, Accelerator::Kvm, &mut |_| {}) {
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

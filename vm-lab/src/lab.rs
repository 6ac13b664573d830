//! Running jobs.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::accel;
use crate::built_kernel::{self, Variant};
use crate::cache::{self, FileLock};
use crate::error::{Context, GuestReport, LabError, Result};
use crate::guest_init;
use crate::job::{Accelerator, Environment, ExitStatus, Job, Outcome};
use crate::kernels::{Kernel, KernelVersion};
use crate::log;
use crate::pack;
use crate::protocol::{Frame, Hello, PROTOCOL};
use crate::qemu::{End, Machine, Run};

/// Kernel parameters of every guest. A kernel that fails powers off at once
/// (`panic=-1` with QEMU's `-no-reboot`); lockups and hung tasks are failures;
/// no job can keep a warning from the log by lowering the console's level.
const KERNEL_ARGS: &str = "console=ttyS0 ignore_loglevel printk.time=1 panic=-1 oops=panic softlockup_panic=1 \
                           sysctl.kernel.hung_task_panic=1 sysctl.kernel.hung_task_timeout_secs=60";

/// Line of the kernel log that says that page-table isolation is in force
/// (`pti_init` in arch/x86/mm/pti.c).
const PTI_ENABLED: &str = "Kernel/User page tables isolation: enabled";

/// Runs a job: [`Lab::new`], then [`Lab::run`].
///
/// # Errors
/// See [`Lab::run`].
pub fn run(job: &Job) -> Result<Outcome> {
    Lab::new()?.run(job)
}

/// A host that is ready to boot guests.
#[derive(Debug, Clone)]
pub struct Lab {
    cache: PathBuf,
    init: Option<PathBuf>,
    /// What guests of the 6.12 line boot in place of the stock kernel.
    variant: Option<Variant>,
}

impl Lab {
    /// Prepares this host, see [`prerequisites`](crate::prerequisites()).
    ///
    /// # Errors
    /// What the host lacks, as [`LabError::Setup`] or [`LabError::Unsupported`].
    pub fn new() -> Result<Self> {
        crate::prerequisites()?;
        Ok(Self { cache: cache::cache_dir()?, init: None, variant: built_kernel::wanted()? })
    }

    /// Uses this `ub-guest-init` instead of looking for one.
    pub fn with_guest_init(mut self, init: impl Into<PathBuf>) -> Self {
        self.init = Some(init.into());
        self
    }

    /// Boots this kernel in guests of the 6.12 line, or the stock one, whatever
    /// `UB_LAB_KERNEL` says.
    pub fn with_variant(mut self, variant: Option<Variant>) -> Self {
        self.variant = variant;
        self
    }

    fn variant(&self, version: KernelVersion) -> Option<Variant> {
        self.variant.filter(|_| version == KernelVersion::V6_12)
    }

    /// The newest stock kernel of a line, fetched if it is not in the cache, or
    /// the one that takes its place, built if it is not there.
    ///
    /// # Errors
    /// [`LabError::Unsupported`] when Debian's archives, as configured on this host, do
    /// not have it; [`LabError::Command`] when fetching fails.
    pub fn kernel(&self, version: KernelVersion) -> Result<Kernel> {
        match self.variant(version) {
            Some(variant) => variant.obtain(&self.cache),
            None => Kernel::obtain(version, &self.cache),
        }
    }

    /// Whether guests with this kernel run on the host's CPU. Found out by
    /// booting it once per boot of the host; remembered after that.
    ///
    /// # Errors
    /// The host cannot run guests at all.
    pub fn accelerator(&self, kernel: &Kernel) -> Result<Accelerator> {
        accel::detect(self, kernel, &self.cache)
    }

    /// Boots a guest, runs the job's command in it and brings back the results.
    ///
    /// The logs are saved in `target/vm-lab/NAME-KERNEL-PTI/`, also when it fails. A limited
    /// number of guests runs at the same time on a host; this call waits for
    /// its turn.
    ///
    /// # Errors
    /// Everything but a command that ran and ended, however it ended; see
    /// [`LabError`].
    pub fn run(&self, job: &Job) -> Result<Outcome> {
        self.run_watching(job, &mut |_| {})
    }

    /// As [`run`](Self::run), and hands what the command writes to standard
    /// output to `on_stdout` as it comes, so that it is not lost with a guest
    /// that fails later.
    ///
    /// # Errors
    /// See [`run`](Self::run).
    pub fn run_watching(&self, job: &Job, on_stdout: &mut dyn FnMut(&[u8])) -> Result<Outcome> {
        if job.command.is_empty() {
            return Err(LabError::Unsupported(format!("job `{}` has no command", job.name)));
        }
        if [job.smp, job.memory_mib].iter().any(|total| total % job.numa_nodes.max(1) != 0) {
            return Err(LabError::Unsupported(format!(
                "job `{}`: {} CPUs and {} MiB in {} equal nodes",
                job.name, job.smp, job.memory_mib, job.numa_nodes
            )));
        }
        let kernel = self.kernel(job.kernel)?;
        let accelerator = match (job.accelerator, job.icount) {
            (Some(Accelerator::Kvm), Some(_)) => {
                let reason = "KVM cannot count instructions: leave `icount` or KVM out";
                return Err(LabError::Unsupported(format!("job `{}`: {reason}", job.name)));
            }
            (Some(accelerator), _) => accelerator,
            (None, Some(_)) => Accelerator::Tcg,
            (None, None) => self.accelerator(&kernel)?,
        };
        self.boot(job, &kernel, accelerator, on_stdout)?
            .outcome
            .ok_or_else(|| LabError::Bug("the guest ended well but told no exit status".into()))
    }

    /// Boots a guest for a job that may have no command.
    pub(crate) fn boot(
        &self,
        job: &Job,
        kernel: &Kernel,
        accelerator: Accelerator,
        on_stdout: &mut dyn FnMut(&[u8]),
    ) -> Result<Booted> {
        let (directory, _in_use) = directory(job, self.variant(job.kernel))?;
        let init = match &self.init {
            Some(init) => init.clone(),
            None => guest_init::find()?,
        };
        let initramfs = tempfile::Builder::new()
            .prefix("initramfs-")
            .tempfile_in(&directory)
            .context("creating a file in", &directory)?;
        let built = self.variant(job.kernel);
        let slowness = built.map_or(1, Variant::slowness);
        pack::tree(job, kernel, &init, slowness)?.write(initramfs.path())?;
        let kernel_args =
            std::iter::once(format!("{KERNEL_ARGS} pti={}", if job.kpti { "on" } else { "off" }))
                .chain(job.kernel_args.iter().cloned())
                .collect::<Vec<_>>()
                .join(" ");
        let machine = Machine {
            kernel: &kernel.image(),
            initramfs: initramfs.path(),
            kernel_args,
            accelerator,
            la57: job.la57 && built.is_none_or(Variant::takes_five_levels),
            cpu: job.cpu.as_deref().unwrap_or("max"),
            smp: job.smp,
            numa_nodes: job.numa_nodes,
            parallel_tcg: job.parallel_tcg,
            icount: job.icount,
            memory_mib: built.map_or(job.memory_mib, |variant| variant.memory_mib(job.memory_mib)),
            log_dir: &directory,
        };
        let mut guest = Guest::default();
        let run = {
            let _slot = cache::guest_slot(&self.cache)?;
            tracing::info!(job = job.name, kernel = kernel.release(), kpti = job.kpti, %accelerator, "booting");
            machine.run(job.timeout * slowness, |frame| {
                if let Frame::Stdout(bytes) = &frame {
                    on_stdout(bytes);
                }
                guest.take(frame, job.echo);
            })?
        };
        guest.save(&directory)?;
        guest.judge(run, job, accelerator, &directory)
    }
}

/// An empty folder for the job's logs, and the right to use it.
fn directory(job: &Job, variant: Option<Variant>) -> Result<(PathBuf, FileLock)> {
    let name = format!("{}-{}-pti_{}", job.name, job.kernel, if job.kpti { "on" } else { "off" });
    let name = match variant {
        Some(variant) => format!("{name}-{}", variant.name()),
        None => name,
    };
    let name = cache::file_name_safe(name.as_ref());
    let parent = cache::target_dir()?.join("vm-lab");
    let lock = FileLock::acquire(&parent.join(".locks").join(&name))?;
    let directory = parent.join(&name);
    if directory.exists() {
        fs::remove_dir_all(&directory).context("removing", &directory)?;
    }
    fs::create_dir_all(&directory).context("creating", &directory)?;
    Ok((directory, lock))
}

/// What a guest that ended well left.
pub(crate) struct Booted {
    /// `None` if the job had no command.
    pub(crate) outcome: Option<Outcome>,
}

/// What a guest has said so far.
#[derive(Default)]
struct Guest {
    hello: Option<Hello>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    status: Option<ExitStatus>,
    files: Vec<(String, Vec<u8>)>,
    failure: Option<String>,
}

impl Guest {
    fn take(&mut self, frame: Frame, echo: bool) {
        match frame {
            Frame::Hello(hello) => self.hello = Some(hello),
            Frame::Stdout(bytes) => {
                if echo {
                    // A closed output of ours is no failure of the guest.
                    let _ = std::io::stdout()
                        .write_all(&bytes)
                        .and_then(|()| std::io::stdout().flush());
                }
                self.stdout.extend(bytes);
            }
            Frame::Stderr(bytes) => {
                if echo {
                    let _ = std::io::stderr().write_all(&bytes);
                }
                self.stderr.extend(bytes);
            }
            Frame::Status(status) => self.status = Some(status),
            Frame::File(path) => self.files.push((path, Vec::new())),
            Frame::FileData(bytes) => match self.files.last_mut() {
                Some((_, content)) => content.extend(bytes),
                None => self.failure = Some("init sent file data without a file".into()),
            },
            Frame::Failed(message) => self.failure = Some(message),
            Frame::End(_) => {}
        }
    }

    fn save(&self, directory: &Path) -> Result<()> {
        for (name, bytes) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let path = directory.join(name);
            fs::write(&path, bytes).context("writing", &path)?;
        }
        Ok(())
    }

    /// Turns what happened into a result. The kernel's failures come first:
    /// they explain all others.
    fn judge(
        self,
        run: Run,
        job: &Job,
        accelerator: Accelerator,
        directory: &Path,
    ) -> Result<Booted> {
        let finding = log::first_finding(&run.console);
        let report = |finding: Option<&log::Finding>| {
            Box::new(GuestReport {
                finding: finding.map(|finding| finding.message.clone()),
                log_excerpt: log::excerpt(&run.console, finding),
                stdout: self.stdout.clone(),
                stderr: self.stderr.clone(),
                directory: directory.to_owned(),
            })
        };
        if finding.is_some() {
            return Err(LabError::GuestKernel(report(finding.as_ref())));
        }
        if matches!(run.end, End::TimedOut) {
            return Err(LabError::Timeout { limit: job.timeout, report: report(None) });
        }
        if let Some(message) = self.failure {
            return Err(LabError::GuestSetup { message, report: report(None) });
        }
        let no_result = |reason: String| LabError::NoResult { reason, report: report(None) };
        let end = match run.end {
            End::Exited(status) if status.success() => None,
            End::Exited(status) => Some(format!("QEMU ended with {status}")),
            End::Stuck(why) => Some(format!("QEMU was killed: {why}")),
            End::TimedOut => Some("QEMU was killed: the time was up".into()),
        };
        if run.incomplete.is_some() || end.is_some() {
            let parts = [run.incomplete, end, Some(run.messages)];
            let reasons: Vec<String> =
                parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
            return Err(no_result(reasons.join("; ")));
        }
        let hello = self.hello.ok_or_else(|| no_result("init did not introduce itself".into()))?;
        if hello.protocol != PROTOCOL {
            return Err(LabError::Bug(format!(
                "init of protocol {} accepted protocol {PROTOCOL}",
                hello.protocol
            )));
        }
        let environment = environment(hello, job.kpti, accelerator)?;
        let outcome = self.status.map(|status| Outcome {
            status,
            stdout: self.stdout,
            stderr: self.stderr,
            files: self
                .files
                .into_iter()
                .map(|(path, content)| (PathBuf::from(path), content))
                .collect(),
            console: run.console,
            environment,
            directory: directory.to_owned(),
        });
        Ok(Booted { outcome })
    }
}

/// The guest's facts, if page-table isolation is what the job wants. The kernel
/// log and the CPU flag must agree.
fn environment(hello: Hello, wanted: bool, accelerator: Accelerator) -> Result<Environment> {
    let logged = hello.pti_log.iter().any(|line| line.contains(PTI_ENABLED));
    if logged != wanted || hello.pti_flag != wanted {
        return Err(LabError::KptiMismatch {
            wanted,
            evidence: format!(
                "kernel log {:?}, flag pti in /proc/cpuinfo: {}",
                hello.pti_log, hello.pti_flag
            ),
        });
    }
    Ok(Environment {
        accelerator,
        kernel: hello.release,
        cpu: hello.cpu,
        kpti: wanted,
        la57: hello.la57_flag,
        mitigations: hello.vulnerabilities,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(log: &[&str], flag: bool) -> Hello {
        Hello {
            pti_log: log.iter().map(|line| (*line).to_owned()).collect(),
            pti_flag: flag,
            ..Hello::default()
        }
    }

    #[test]
    fn kpti_is_asserted_from_log_and_flag() {
        let on = hello(
            &["Kernel/User page tables isolation: force enabled on command line.", PTI_ENABLED],
            true,
        );
        assert!(environment(on.clone(), true, Accelerator::Tcg).unwrap().kpti);
        assert!(!environment(hello(&[], false), false, Accelerator::Tcg).unwrap().kpti);
        for (hello, wanted) in
            [(on, false), (hello(&[], false), true), (hello(&[PTI_ENABLED], false), true)]
        {
            let error = environment(hello, wanted, Accelerator::Tcg).unwrap_err();
            assert!(matches!(error, LabError::KptiMismatch { .. }), "{error}");
        }
    }
}

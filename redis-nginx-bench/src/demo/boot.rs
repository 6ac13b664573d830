//! Boots one guest with the lab and runs the driver in it.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ub_vm_lab::{Job, Lab, LabError, Module, Variant};

use super::options::{Guest, Options, guest_paths};
use super::programs::find_program;
use crate::events::{Event, Lines, RoundsPlan};
use crate::outcome::Outcome;
use crate::plan::{Mode, Plan, Workload};
use crate::prediction::LAUNCHES;
use crate::workload::Storage;

/// The command under test.
const UB: &str = "ub";
/// Programs of this workspace that run in the guest.
const OWN: [&str; 3] = [UB, "ub-workload", "ub-bench-guest"];
/// Life of one guest: many times what the plans need under emulation.
const LIMIT: Duration = Duration::from_secs(900);
/// What is added to it for each work of a long plan.
const LIMIT_OF_WORK: Duration = Duration::from_secs(240);

/// Size of the guest's disk, as mkfs.ext4 takes it: several times the file
/// that is read.
const DISK_SIZE: &str = "16M";

/// What a guest is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Rates and counts: [`Outcome`].
    Compare,
    /// Instructions: [`crate::cost::CostOutcome`]. Time is then instructions,
    /// on one CPU, or spans would include what the others execute.
    CountInstructions,
    /// Predicted and measured gains: [`crate::prediction::PredictionOutcome`].
    Predict,
}

impl Purpose {
    /// The driver's command, which is also part of the guest's name.
    fn verb(self) -> &'static str {
        match self {
            Self::Compare => "run",
            Self::CountInstructions => "cost",
            Self::Predict => "predict",
        }
    }
}

/// What came of one boot.
#[derive(Debug)]
pub(crate) struct Booted<T = Outcome> {
    /// "kvm" or "tcg".
    pub accelerator: String,
    /// What the driver measured.
    pub outcome: T,
    /// The kernel's log, free of warnings: the lab fails otherwise.
    pub log: String,
}

/// Whether an oops is an `int3` outside the modules under test.
fn is_stale_int3(report: &str) -> bool {
    let place = report.lines().find(|line| line.contains("RIP: 0010:"));
    report.contains("Oops: int3") && place.is_some_and(|line| !line.contains("[ub"))
}

/// The lab and the programs for the guests.
#[derive(Debug)]
pub(crate) struct Laboratory {
    lab: Lab,
    /// Host path and guest path.
    programs: Vec<(PathBuf, PathBuf)>,
    module_source: PathBuf,
    /// Settings for the modules' build (`NAME=VALUE`).
    module_settings: Vec<&'static str>,
    /// QEMU's model of CPU, if not the lab's own choice.
    cpu: Option<String>,
}

impl Laboratory {
    /// Finds everything before the first, slow, boot.
    pub fn prepare(options: &Options) -> Result<Self> {
        let with_ub = !options.native_only;
        let lab = Self::for_workloads(options.bin_dir.as_deref(), with_ub, &Workload::DEMO)?;
        Ok(Self { cpu: options.cpu.clone(), ..lab })
    }

    /// Finds the programs for `workloads`, and this workspace's own in
    /// `bin_dir` or beside this program.
    pub fn for_workloads(
        bin_dir: Option<&Path>,
        with_ub: bool,
        workloads: &[Workload],
    ) -> Result<Self> {
        let own = own_folder(bin_dir)?;
        let mut programs = Vec::new();
        for name in OWN.into_iter().filter(|name| with_ub || *name != UB) {
            let path = own.join(name);
            ensure!(
                path.is_file(),
                "{} is missing; `make build` builds it, --bin-dir says where it is",
                path.display()
            );
            programs.push((path, in_guest(name)));
        }
        let in_guest_only = guest_paths::programs();
        let needed: BTreeSet<_> =
            workloads.iter().flat_map(|workload| in_guest_only.of(*workload)).collect();
        let names = needed.iter().filter_map(|path| path.file_name()?.to_str());
        for name in names.filter(|name| !OWN.contains(name)) {
            // Resolved, as redis-server is a link to a program of another name.
            let path = fs::canonicalize(find_program(name)?)
                .with_context(|| format!("resolving {name}"))?;
            programs.push((path, in_guest(name)));
        }
        let mut lab = Lab::new()?;
        let init = own.join("ub-guest-init");
        if init.is_file() {
            lab = lab.with_guest_init(init);
        }
        let module_source = module_source()?;
        Ok(Self { lab, programs, module_source, module_settings: Vec::new(), cpu: None })
    }

    /// The same with another kernel, and modules built with more settings.
    pub fn on(mut self, variant: Option<Variant>, module_settings: &[&'static str]) -> Self {
        self.lab = self.lab.with_variant(variant);
        self.module_settings = module_settings.to_vec();
        self
    }

    /// Runs the job with a host thread for each emulated CPU, and once more
    /// without if that trips over QEMU's stale `int3`
    /// ([`Job::parallel_tcg`]). An `int3` of the modules under test is no
    /// excuse, and would come again.
    fn attempt(
        &self,
        mut job: Job,
        on_stdout: &mut dyn FnMut(&[u8]),
    ) -> Result<ub_vm_lab::Outcome, LabError> {
        job.parallel_tcg = job.icount.is_none();
        match self.lab.run_watching(&job, on_stdout) {
            Err(LabError::GuestKernel(report))
                if job.parallel_tcg && is_stale_int3(&report.to_string()) =>
            {
                tracing::warn!("QEMU executed a stale int3; once more, slower:\n{report}");
                job.parallel_tcg = false;
                self.lab.run_watching(&job, on_stdout)
            }
            result => result,
        }
    }

    /// Boots `guest` and runs `plan` in it.
    pub fn run(&self, guest: &Guest, plan: &Plan) -> Result<Booted> {
        let booted: Booted = self.boot(guest, plan, Purpose::Compare)?;
        let seen = booted.outcome.machine.kpti;
        ensure!(
            seen == Some(guest.kpti),
            "the driver saw KPTI {seen:?}, asked for was {}",
            guest.kpti
        );
        Ok(booted)
    }

    /// Boots `guest` and has its driver do `plan` for `purpose`.
    pub fn boot<T: DeserializeOwned>(
        &self,
        guest: &Guest,
        plan: &Plan,
        purpose: Purpose,
    ) -> Result<Booted<T>> {
        let verb = purpose.verb();
        let words = ["--out", guest_paths::OUTCOME];
        let folder = tempfile::tempdir().context("creating a folder for the plan")?;
        let mut job = self.job(guest, verb, plan, plan.modes.contains(&Mode::Ub), folder.path())?;
        job.name = format!("demo-{verb}-{}", guest.file_name());
        job.command.extend(words.map(str::to_owned));
        job.collect.push(guest_paths::OUTCOME.into());
        // The driver's progress goes to standard error.
        job.echo = true;
        if purpose == Purpose::CountInstructions {
            job = job.icount(0);
            job.smp = 1;
            job.timeout = limit(plan.workloads.len());
        }
        if purpose == Purpose::Predict {
            job.timeout = limit(plan.workloads.len() * LAUNCHES as usize);
        }

        let outcome = self.attempt(job, &mut |_| {})?;
        check_driver(&outcome)?;
        let data = outcome
            .file(guest_paths::OUTCOME)
            .context("the driver succeeded and left no outcome: bug in ub-bench-guest")?;
        let measured = serde_json::from_slice(data).context("reading the driver's outcome")?;
        Ok(Booted {
            accelerator: outcome.environment.accelerator.to_string().to_lowercase(),
            outcome: measured,
            log: outcome.console,
        })
    }

    /// A job whose command is the driver's `verb` with `plan`, which is
    /// written to `folder`.
    fn job(
        &self,
        guest: &Guest,
        verb: &str,
        plan: &impl Serialize,
        with_ub: bool,
        folder: &Path,
    ) -> Result<Job> {
        let modules = if with_ub {
            self.lab
                .kernel(guest.kernel)?
                .build_module_with(&self.module_source, &self.module_settings)?
        } else {
            Vec::new()
        };
        let file = folder.join("plan.json");
        fs::write(&file, serde_json::to_vec(plan)?).context("writing the plan")?;
        let driver = guest_paths::BIN.to_owned() + "/ub-bench-guest";
        let mut job = Job::new(verb, guest.kernel)
            .kpti(guest.kpti)
            .command([driver.as_str(), verb, "--plan", guest_paths::PLAN])
            .file(&file, guest_paths::PLAN)
            .timeout(LIMIT);
        job.modules = modules.into_iter().map(Module::new).collect();
        job.files.extend(self.programs.iter().cloned());
        job.unload_modules = true;
        job.cpu.clone_from(&self.cpu);
        // Models of real CPUs are older than five levels of page tables.
        job.la57 &= self.cpu.is_none();
        Ok(job)
    }

    /// "kvm" or "tcg", whatever guests with this kernel will run with.
    pub fn accelerator(&self, guest: &Guest) -> Result<String> {
        let kernel = self.lab.kernel(guest.kernel)?;
        Ok(self.lab.accelerator(&kernel)?.to_string().to_lowercase())
    }

    /// Boots `guest`, does `plan` in it and hands over its events as they come.
    pub fn rounds(
        &self,
        guest: &Guest,
        plan: &RoundsPlan,
        on_event: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        let folder = tempfile::tempdir().context("creating a folder for the plan")?;
        let with_ub = plan.plan.modes.contains(&Mode::Ub);
        let mut job = self.job(guest, "rounds", plan, with_ub, folder.path())?;
        job.name = format!("bench-{}", guest.file_name());
        // The driver does that, around what needs them.
        job.modules.iter_mut().for_each(|module| module.load = false);
        job.unload_modules = false;
        job.timeout = limit(plan.work.len());
        let reads_disk = |workload: &Workload| {
            matches!(
                workload,
                Workload::Read { from: Storage::Disk, .. }
                    | Workload::Ring { from: Storage::Disk, .. }
            )
        };
        if plan.work.iter().any(|work| reads_disk(&work.workload)) {
            let image = disk_image(folder.path())?;
            job.files.push((image, guest_paths::DISK_IMAGE.into()));
            // ext4 is built into the stock kernels.
            job.stock_modules.push("loop".into());
        }
        if plan.work.iter().any(|work| matches!(work.workload, Workload::Packets { .. })) {
            job.stock_modules.push("veth".into());
        }
        let mut lines = Lines::default();
        let mut failed = None;
        let outcome = self.attempt(job, &mut |bytes| {
            for event in lines.push(bytes) {
                let taken = event.map_err(anyhow::Error::from).and_then(&mut *on_event);
                failed = failed.take().or(taken.err());
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        check_driver(&outcome)
    }
}

/// Whether the driver says that it succeeded.
fn check_driver(outcome: &ub_vm_lab::Outcome) -> Result<()> {
    ensure!(
        outcome.status.success(),
        "the driver failed in the guest; logs are in {}\n{}",
        outcome.directory.display(),
        outcome.stderr_text()
    );
    Ok(())
}

/// The life of a guest that does so many works.
fn limit(works: usize) -> Duration {
    LIMIT + LIMIT_OF_WORK * u32::try_from(works).unwrap_or(u32::MAX)
}

/// An ext4 file system in a file, for a loop device of the guest.
fn disk_image(folder: &Path) -> Result<PathBuf> {
    let image = folder.join("disk.img");
    let program = find_program("mkfs.ext4")?;
    let output = Command::new(&program)
        .args(["-q", "-F"])
        .arg(&image)
        .arg(DISK_SIZE)
        .output()
        .with_context(|| format!("starting {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(image)
}

/// Builds the modules for the kernels of `options` and says where they are.
pub(super) fn build_modules(options: &Options) -> Result<()> {
    let lab = Lab::new()?;
    let source = module_source()?;
    for version in [options.kernel, options.smoke_kernel] {
        let kernel = lab.kernel(version)?;
        for module in kernel.build_module(&source)? {
            tracing::info!("kernel {}: {}", kernel.release(), module.display());
        }
    }
    Ok(())
}

fn in_guest(name: &str) -> PathBuf {
    Path::new(guest_paths::BIN).join(name)
}

/// Where this workspace's programs are.
pub(crate) fn own_folder(bin_dir: Option<&Path>) -> Result<PathBuf> {
    if let Some(folder) = bin_dir {
        return Ok(folder.to_owned());
    }
    let program = env::current_exe().context("looking up this program")?;
    Ok(program.parent().context("this program has no folder")?.to_owned())
}

/// The modules' source, in the checkout.
fn module_source() -> Result<PathBuf> {
    let checkout = ub_vm_lab::checkout()
        .context("kernel-patch/module not found; run this in a checkout of the project")?;
    Ok(checkout.join("kernel-patch/module"))
}

#[cfg(test)]
mod tests {
    use super::is_stale_int3;

    #[test]
    fn an_int3_of_the_modules_is_no_excuse() {
        let oops = |place: &str| format!("Oops: int3: 0000 [#1]\nRIP: 0010:{place}\n");
        assert!(is_stale_int3(&oops("sched_clock_cpu+0x9/0x190")));
        assert!(!is_stale_int3(&oops("ub_arena+0x40/0x800000 [ub]")));
        assert!(!is_stale_int3("Oops: 0000 [#1]\nRIP: 0010:do_syscall_64+0x1/0x2\n"));
    }
}

//! Boots one guest with the lab and runs the driver in it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::de::DeserializeOwned;
use ub_vm_lab::{Job, Lab, LabError, Module};

use super::options::{Guest, Options, guest_paths};
use super::programs::find_program;
use crate::outcome::Outcome;
use crate::plan::{Mode, Plan};

/// The command under test.
const UB: &str = "ub";
/// Programs of this workspace that run in the guest.
const OWN: [&str; 3] = [UB, "ub-workload", "ub-bench-guest"];
/// Programs of Debian that run in the guest.
const DEBIAN: [&str; 4] = ["redis-server", "redis-benchmark", "nginx", "wrk"];
/// Life of one guest: many times what the plans need under emulation.
const LIMIT: Duration = Duration::from_secs(900);

/// What a guest is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Rates and counts: [`Outcome`].
    Compare,
    /// Instructions: [`crate::cost::CostOutcome`]. Time is then instructions,
    /// on one CPU, or spans would include what the others execute.
    CountInstructions,
}

impl Purpose {
    /// The driver's command, which is also part of the guest's name.
    fn verb(self) -> &'static str {
        match self {
            Self::Compare => "run",
            Self::CountInstructions => "cost",
        }
    }
}

/// What came of one boot.
#[derive(Debug)]
pub(super) struct Booted<T = Outcome> {
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
pub(super) struct Laboratory {
    lab: Lab,
    /// Host path and guest path.
    programs: Vec<(PathBuf, PathBuf)>,
    module_source: PathBuf,
}

impl Laboratory {
    /// Finds everything before the first, slow, boot.
    pub fn prepare(options: &Options) -> Result<Self> {
        let own = own_folder(options)?;
        let mut programs = Vec::new();
        for name in OWN.into_iter().filter(|name| !(options.native_only && *name == UB)) {
            let path = own.join(name);
            ensure!(
                path.is_file(),
                "{} is missing; `make build` builds it, --bin-dir says where it is",
                path.display()
            );
            programs.push((path, in_guest(name)));
        }
        for name in DEBIAN {
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
        Ok(Self { lab, programs, module_source: module_source()? })
    }

    /// Runs the job with a host thread for each emulated CPU, and once more
    /// without if that trips over QEMU's stale `int3`
    /// ([`Job::parallel_tcg`]). An `int3` of the modules under test is no
    /// excuse, and would come again.
    fn attempt(&self, mut job: Job) -> Result<ub_vm_lab::Outcome, LabError> {
        job.parallel_tcg = job.icount.is_none();
        match self.lab.run(&job) {
            Err(LabError::GuestKernel(report))
                if job.parallel_tcg && is_stale_int3(&report.to_string()) =>
            {
                tracing::warn!("QEMU executed a stale int3; once more, slower:\n{report}");
                job.parallel_tcg = false;
                self.lab.run(&job)
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
        let modules = if plan.modes.contains(&Mode::Ub) {
            self.lab.kernel(guest.kernel)?.build_module(&self.module_source)?
        } else {
            Vec::new()
        };
        let folder = tempfile::tempdir().context("creating a folder for the plan")?;
        let file = folder.path().join("plan.json");
        fs::write(&file, serde_json::to_vec(plan)?).context("writing the plan")?;

        let driver = guest_paths::BIN.to_owned() + "/ub-bench-guest";
        let verb = purpose.verb();
        let mut job = Job::new(format!("demo-{verb}-{}", guest.file_name()), guest.kernel)
            .kpti(guest.kpti)
            .command([
                driver.as_str(),
                verb,
                "--plan",
                guest_paths::PLAN,
                "--out",
                guest_paths::OUTCOME,
            ])
            .file(&file, guest_paths::PLAN)
            .collect(guest_paths::OUTCOME)
            .timeout(LIMIT);
        job.modules = modules.into_iter().map(Module::new).collect();
        job.files.extend(self.programs.iter().cloned());
        job.unload_modules = true;
        // The driver's progress goes to standard error.
        job.echo = true;
        if purpose == Purpose::CountInstructions {
            job = job.icount(0);
            job.smp = 1;
        }

        let outcome = self.attempt(job)?;
        if !outcome.status.success() {
            bail!(
                "the driver failed in the guest; logs are in {}\n{}",
                outcome.directory.display(),
                outcome.stderr_text()
            );
        }
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
fn own_folder(options: &Options) -> Result<PathBuf> {
    if let Some(folder) = &options.bin_dir {
        return Ok(folder.clone());
    }
    let program = env::current_exe().context("looking up this program")?;
    Ok(program.parent().context("this program has no folder")?.to_owned())
}

/// The module's source: in the checkout this was built from, else below the
/// working directory.
fn module_source() -> Result<PathBuf> {
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel-patch/module");
    let here = PathBuf::from("kernel-patch/module");
    [built_from, here]
        .into_iter()
        .find(|folder| folder.is_dir())
        .context("kernel-patch/module not found; run this in a checkout of the project")
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

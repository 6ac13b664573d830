//! Does what is left of a run.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use super::instructions;
use super::record::{MachineRecord, Record, Settings, Target};
use crate::cost::{CostCell, CostOutcome, Way};
use crate::demo::boot::{Booted, Laboratory, Purpose, own_folder};
use crate::demo::find_program;
use crate::demo::options::{Guest, guest_paths};
use crate::events::{Event, Lines, RoundsPlan, Work};
use crate::plan::{Mode, NEVER_NATIVE, Plan, Programs};

/// Keys of the redis dataset.
const REDIS_KEYS: u64 = 1000;
/// Bounds of the operations of one load.
const OPERATIONS: (u64, u64) = (100, 50_000_000);
/// Runs of each workload under `-icount`: two show whether they are the same.
const COUNTED_RUNS: u32 = 2;
/// Operations of one of them.
const COUNTED_OPERATIONS: u64 = 4000;
/// Programs for `--here` that may be missing: the driver says so.
const OPTIONAL: &str = "not-installed";

/// Where measuring takes place.
pub(super) enum Place {
    /// In guests.
    Guests(Laboratory),
    /// On this machine.
    Here {
        /// Folder with this workspace's programs.
        bin_dir: PathBuf,
        /// As [`ub_report::host::Environment::accelerator`].
        accelerator: String,
    },
}

impl Place {
    /// Finds programs and what else measuring on `targets` needs.
    pub fn prepare(
        targets: &[Target],
        settings: &Settings,
        bin_dir: Option<&Path>,
    ) -> Result<Self> {
        if targets.contains(&Target::Here) {
            // In an emulated guest, what is measured here is emulated as well.
            let accelerator = ub_report::host::Environment::detect().accelerator;
            return Ok(Self::Here { bin_dir: own_folder(bin_dir)?, accelerator });
        }
        let with_ub = settings.modes.contains(&Mode::Ub);
        Laboratory::for_workloads(bin_dir, with_ub, &settings.workloads).map(Self::Guests)
    }

    /// What executes the instructions of `target`.
    pub fn accelerator(&self, target: &Target) -> Result<String> {
        match self {
            Self::Guests(lab) => lab.accelerator(&guest(target)?),
            Self::Here { accelerator, .. } => Ok(accelerator.clone()),
        }
    }
}

fn guest(target: &Target) -> Result<Guest> {
    let Target::Guest { kernel, kpti } = target else {
        anyhow::bail!("{target} is no guest: bug");
    };
    let kernel = kernel.parse().map_err(|error| anyhow::anyhow!("{kernel}: {error}"))?;
    Ok(Guest { kernel, kpti: *kpti, smoke: false })
}

/// Measures what is left of `record` and writes it to `folder` after every
/// round.
pub(super) fn run(record: &mut Record, place: &Place, folder: &Path) -> Result<()> {
    let settings = record.settings.clone();
    let left: u64 = record
        .machines
        .iter()
        .flat_map(|machine| machine.remaining(&settings))
        .flatten()
        .map(|work| u64::from(work.rounds))
        .sum();
    let bar = ProgressBar::new(left);
    let style = "{elapsed_precise} [{bar:30}] {pos}/{len} rounds, {eta} left  {msg}";
    bar.set_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_secs(1));
    record.write(folder)?;
    for index in 0..record.machines.len() {
        let target = record.machines[index].target.clone();
        let accelerator = place.accelerator(&target)?;
        for (pass, work) in record.machines[index].remaining(&settings).into_iter().enumerate() {
            note(&bar, format!("{target}: pass {}, {} workloads", pass + 1, work.len()));
            let counted = record.machines[index].cells.iter().all(|c| c.native_counts.is_some());
            // Calls do not depend on page-table isolation: once is enough.
            let count_native = index == 0 && pass == 0 && !counted;
            let mut take = |event: Event| -> Result<()> {
                show(&bar, &target, &event);
                record.machines[index].apply(event, &accelerator)?;
                record.write(folder).map(drop)
            };
            match place {
                Place::Guests(lab) => {
                    let plan = rounds_plan(&settings, work, count_native, in_guest(&settings));
                    lab.rounds(&guest(&target)?, &plan, &mut take)
                        .with_context(|| format!("guest {target}"))?;
                }
                Place::Here { bin_dir, .. } => {
                    let scratch = tempfile::Builder::new()
                        .prefix("ub-bench-")
                        .tempdir_in(tmpfs())
                        .context("creating a folder on a tmpfs")?;
                    let disk = tempfile::Builder::new()
                        .prefix("disk-")
                        .tempdir_in(folder)
                        .context("creating a folder on the disk")?;
                    let plan = on_this_machine(&settings, bin_dir, scratch.path(), disk.path());
                    let plan = rounds_plan(&settings, work, count_native, plan);
                    here(bin_dir, &plan, scratch.path(), &mut take)?;
                }
            }
            check_state(&record.machines[index])?;
        }
        if settings.icount
            && record.machines[index].instructions.is_empty()
            && let Place::Guests(lab) = place
        {
            note(&bar, format!("{target}: counting instructions"));
            let plan = counting_plan(&settings);
            let purpose = Purpose::CountInstructions;
            let counted: Booted<CostOutcome> = lab
                .boot(&guest(&target)?, &plan, purpose)
                .with_context(|| format!("guest {target} under -icount"))?;
            record.machines[index].instructions = without_reports(counted.outcome.cells);
            record.write(folder)?;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// The kernel must have the page-table isolation that was asked for.
fn check_state(machine: &MachineRecord) -> Result<()> {
    if let (Target::Guest { kpti, .. }, Some(environment)) = (&machine.target, &machine.environment)
    {
        let seen = environment.machine.kpti;
        ensure!(seen == Some(*kpti), "{}: the driver saw KPTI {seen:?}", machine.target);
    }
    Ok(())
}

/// Says something above the bar, or as a line of the log where there is none.
fn note(bar: &ProgressBar, text: String) {
    if bar.is_hidden() {
        tracing::info!("{text}");
    } else {
        bar.println(text);
    }
}

fn show(bar: &ProgressBar, target: &Target, event: &Event) {
    match event {
        Event::Machine { .. } | Event::Counted { .. } | Event::Unloaded { .. } => {}
        Event::Warm { work, .. } => bar.set_message(format!("{target}: {}", work.workload)),
        Event::Round { .. } => bar.inc(1),
        Event::Finished { work, .. } if bar.is_hidden() => {
            let seconds = bar.elapsed().as_secs();
            let (done, all) = (bar.position(), bar.length().unwrap_or(0));
            tracing::info!("{seconds} s, {done} of {all} rounds: {target}: {}", work.workload);
        }
        Event::Finished { .. } => {}
        Event::Failed { work, error, missing } => {
            let what = if *missing { "left out" } else { "FAILED" };
            note(bar, format!("{target}: {} {what}: {error}", work.workload));
            bar.inc(u64::from(work.rounds));
        }
    }
}

fn rounds_plan(settings: &Settings, work: Vec<Work>, count_native: bool, plan: Plan) -> RoundsPlan {
    let count_native = count_native && settings.modes.contains(&Mode::Ub);
    RoundsPlan { plan, work, count_native }
}

/// What both kinds of machine have in common.
fn plan(settings: &Settings, programs: Programs, scratch: PathBuf) -> Plan {
    Plan {
        workloads: settings.workloads.clone(),
        modes: settings.modes.clone(),
        ways: Way::RIDE.to_vec(),
        rounds: settings.rounds,
        timed_ms: settings.timed_ms,
        warmup_ms: settings.warmup_ms,
        settle_ms: settings.settle_ms,
        settle_looks: 1,
        operations: OPERATIONS,
        ub_options: settings.ub_options.clone(),
        programs,
        scratch,
        prepare_guest: false,
        redis_keys: REDIS_KEYS,
        disk: None,
        disk_image: None,
        modules: Vec::new(),
        plant: settings.plant,
    }
}

/// The plan for counting instructions. Every gap is ridden, whether that pays or
/// not: what a switch costs on a CPU does not show in instructions, so whether
/// it does would not be measured here.
fn counting_plan(settings: &Settings) -> Plan {
    let mut plan = plan(settings, guest_paths::programs(), guest_paths::SCRATCH.into());
    plan.prepare_guest = true;
    plan.workloads = instructions::countable(&settings.workloads);
    plan.modes = vec![Mode::Native, Mode::Ub];
    plan.rounds = COUNTED_RUNS;
    plan.operations = (COUNTED_OPERATIONS, COUNTED_OPERATIONS);
    plan.add_ub_options(&["--ride-anyway", "--eager", "--time-gaps", NEVER_NATIVE]);
    plan
}

/// The sessions' own reports are many times larger than what is used of them.
fn without_reports(mut cells: Vec<CostCell>) -> Vec<CostCell> {
    cells.iter_mut().flat_map(|cell| &mut cell.runs).for_each(|run| run.report = None);
    cells
}

fn in_guest(settings: &Settings) -> Plan {
    Plan {
        prepare_guest: true,
        disk: Some(guest_paths::DISK.into()),
        disk_image: Some(guest_paths::DISK_IMAGE.into()),
        modules: guest_paths::MODULES.map(PathBuf::from).to_vec(),
        ..plan(settings, guest_paths::programs(), guest_paths::SCRATCH.into())
    }
}

fn on_this_machine(settings: &Settings, bin_dir: &Path, scratch: &Path, disk: &Path) -> Plan {
    let own = |name: &str| bin_dir.join(name);
    let found = |name: &str| find_program(name).unwrap_or_else(|_| OPTIONAL.into());
    let programs = Programs {
        ub: own("ub"),
        workload: own("ub-workload"),
        redis_server: found("redis-server"),
        redis_benchmark: found("redis-benchmark"),
        nginx: found("nginx"),
        wrk: found("wrk"),
        memcached: found("memcached"),
        sqlite: found("sqlite3"),
        ip: found("ip"),
    };
    Plan { disk: Some(disk.to_owned()), ..plan(settings, programs, scratch.to_owned()) }
}

/// A folder on a tmpfs.
fn tmpfs() -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    if shared.is_dir() { shared } else { std::env::temp_dir() }
}

/// Runs the driver on this machine.
fn here(
    bin_dir: &Path,
    plan: &RoundsPlan,
    scratch: &Path,
    take: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<()> {
    let file = scratch.join("plan.json");
    fs::write(&file, serde_json::to_vec(plan)?).context("writing the plan")?;
    let driver = bin_dir.join("ub-bench-guest");
    let log = scratch.join("driver.log");
    let mut child = Command::new(&driver)
        .args(["rounds", "--plan"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&log).context("creating the driver's log")?)
        .spawn()
        .with_context(|| format!("starting {}", driver.display()))?;
    let mut output = child.stdout.take().context("the driver has no standard output: bug")?;
    let mut lines = Lines::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = output.read(&mut buffer).context("reading the driver's events")?;
        if length == 0 {
            break;
        }
        for event in lines.push(&buffer[..length]) {
            take(event?)?;
        }
    }
    let status = child.wait().context("waiting for the driver")?;
    let said = fs::read_to_string(&log).unwrap_or_default();
    ensure!(status.success(), "the driver ended with {status}:\n{said}");
    Ok(())
}

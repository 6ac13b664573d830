//! `run.json`: everything that a run has measured, written after every round.

mod target;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::cost::{CostCell, Settled};
use crate::events::{End, Event, Sample, Work};
use crate::outcome::{Counts, Round};
use crate::plan::{Mode, Plant, Workload};

pub use target::{Environment, Target};

/// Version of this layout; raised when a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;
/// Name of the file in the folder of a run.
pub const FILE: &str = "run.json";

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What is to be measured, and how.
    pub settings: Settings,
    /// What was measured, by machine.
    pub machines: Vec<MachineRecord>,
}

/// What a resumed run must take over from its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The workloads, in order.
    pub workloads: Vec<Workload>,
    /// The modes.
    pub modes: Vec<Mode>,
    /// Wanted rounds of each workload on each machine.
    pub rounds: u32,
    /// Over how many pairs of processes they are spread.
    pub launches: u32,
    /// Wanted duration of one timed load, in milliseconds.
    pub timed_ms: u64,
    /// Wanted duration of the first untimed load, in milliseconds.
    pub warmup_ms: u64,
    /// Longest extension of the warm-up while translations are made.
    pub settle_ms: u64,
    /// Options of `ub run`. Empty: the programs' own defaults.
    pub ub_options: Vec<String>,
    /// Whether instructions are counted as well, in guests of their own.
    #[serde(default)]
    pub icount: bool,
    /// Mistakes made on purpose.
    #[serde(default)]
    pub plant: Plant,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineRecord {
    /// Which.
    pub target: Target,
    /// Its facts, once it was seen.
    pub environment: Option<Environment>,
    /// The workloads.
    pub cells: Vec<Cell>,
    /// Instructions, counted under `-icount`; empty if they were not.
    #[serde(default)]
    pub instructions: Vec<CostCell>,
}

/// One workload on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// Which.
    pub workload: Workload,
    /// Its pairs of processes.
    pub launches: Vec<Launch>,
    /// The calls of the native program, counted in a session of its own.
    pub native_counts: Option<Counts>,
    /// Why it could not be measured, the last time that was tried.
    pub failure: Option<Failure>,
}

/// Why a cell is incomplete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// What the driver said.
    pub error: String,
    /// Whether something that the workload needs does not exist on the
    /// machine, which is no mistake.
    pub missing: bool,
}

/// A pair of processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// Its number.
    pub launch: u32,
    /// Operations of one load.
    pub operations: u64,
    /// How the translation came to rest before the rounds.
    pub settled: Option<Settled>,
    /// The raw samples, in the order they were taken.
    pub rounds: Vec<Vec<(Mode, Sample)>>,
    /// Samples of the native program with the modules under test not loaded;
    /// empty where they cannot be, or were not, unloaded.
    #[serde(default)]
    pub unloaded: Vec<Sample>,
    /// What the checks found; empty while the rounds go on.
    pub ends: Vec<(Mode, End)>,
}

impl Launch {
    /// The end of the program in `mode`.
    #[must_use]
    pub fn end(&self, mode: Mode) -> Option<&End> {
        self.ends.iter().find(|(own, _)| *own == mode).map(|(_, end)| end)
    }

    /// The samples of `mode`.
    pub fn samples(&self, mode: Mode) -> impl Iterator<Item = &Sample> {
        self.rounds.iter().flatten().filter(move |(own, _)| *own == mode).map(|(_, sample)| sample)
    }

    /// The rates of rounds in which both modes were measured: native, ub.
    #[must_use]
    pub fn pairs(&self) -> Vec<(f64, f64)> {
        let rate = |round: &[(Mode, Sample)], mode| {
            let (_, sample) = round.iter().find(|(own, _)| *own == mode)?;
            Some(Round::ops_per_s(&sample.round)).filter(|rate| *rate > 0.0)
        };
        self.rounds
            .iter()
            .filter_map(|round| Some((rate(round, Mode::Native)?, rate(round, Mode::Ub)?)))
            .collect()
    }
}

impl Cell {
    fn new(workload: Workload) -> Self {
        Self { workload, launches: Vec::new(), native_counts: None, failure: None }
    }

    /// Rounds so far.
    #[must_use]
    pub fn rounds(&self) -> usize {
        self.launches.iter().map(|launch| launch.rounds.len()).sum()
    }
}

impl MachineRecord {
    /// A machine of which nothing is known.
    #[must_use]
    pub fn new(target: Target, workloads: &[Workload]) -> Self {
        let cells = workloads.iter().map(|workload| Cell::new(*workload)).collect();
        Self { target, environment: None, cells, instructions: Vec::new() }
    }

    /// What is left to do, by passes: each pass has one new pair of processes
    /// for each workload that lacks rounds.
    #[must_use]
    pub fn remaining(&self, settings: &Settings) -> Vec<Vec<Work>> {
        let chunk = settings.rounds.div_ceil(settings.launches.max(1)).max(1);
        let mut passes: Vec<Vec<Work>> = Vec::new();
        for cell in &self.cells {
            let done = u32::try_from(cell.rounds()).unwrap_or(u32::MAX);
            let mut left = settings.rounds.saturating_sub(done);
            let mut launch =
                cell.launches.iter().map(|launch| launch.launch + 1).max().unwrap_or(0);
            let mut pass = 0;
            while left > 0 {
                let rounds = left.min(chunk);
                if passes.len() == pass {
                    passes.push(Vec::new());
                }
                passes[pass].push(Work { workload: cell.workload, launch, rounds });
                left -= rounds;
                launch += 1;
                pass += 1;
            }
        }
        passes
    }

    fn cell(&mut self, workload: Workload) -> &mut Cell {
        let known = self.cells.iter().position(|cell| cell.workload == workload);
        let index = known.unwrap_or_else(|| {
            self.cells.push(Cell::new(workload));
            self.cells.len() - 1
        });
        &mut self.cells[index]
    }

    /// Adds what the driver said.
    ///
    /// # Errors
    /// An event that does not fit what was said before: a bug in the driver.
    pub fn apply(&mut self, event: Event, accelerator: &str) -> Result<()> {
        let launch_of = |cell: &mut Cell, work: Work| -> Result<usize> {
            cell.launches
                .iter()
                .position(|launch| launch.launch == work.launch)
                .with_context(|| format!("{} was not announced: bug in the driver", work.workload))
        };
        match event {
            Event::Machine { machine } => {
                let environment = Environment { accelerator: accelerator.to_owned(), machine };
                if let Some(known) = &self.environment
                    && *known != environment
                {
                    bail!(
                        "this machine is not the one that the run was begun on, which was:\n{}\n\
                         This is:\n{}",
                        known.label(),
                        environment.label()
                    );
                }
                self.environment = Some(environment);
            }
            Event::Warm { work, operations, settled } => {
                let launch = work.launch;
                let cell = self.cell(work.workload);
                cell.failure = None;
                cell.launches.push(Launch {
                    launch,
                    operations,
                    settled,
                    rounds: Vec::new(),
                    unloaded: Vec::new(),
                    ends: Vec::new(),
                });
            }
            Event::Unloaded { work, samples } => {
                let cell = self.cell(work.workload);
                let index = launch_of(cell, work)?;
                cell.launches[index].unloaded = samples;
            }
            Event::Round { work, samples } => {
                let cell = self.cell(work.workload);
                let index = launch_of(cell, work)?;
                cell.launches[index].rounds.push(samples);
            }
            Event::Finished { work, ends } => {
                let cell = self.cell(work.workload);
                let index = launch_of(cell, work)?;
                cell.launches[index].ends = ends;
            }
            Event::Counted { workload, counts } => {
                self.cell(workload).native_counts = Some(counts);
            }
            Event::Failed { work, error, missing } => {
                self.cell(work.workload).failure = Some(Failure { error, missing });
            }
        }
        Ok(())
    }
}

impl Record {
    /// A run of which nothing is measured.
    #[must_use]
    pub fn new(settings: Settings, targets: &[Target]) -> Self {
        let machines = targets
            .iter()
            .map(|target| MachineRecord::new(target.clone(), &settings.workloads))
            .collect();
        Self { schema: SCHEMA, settings, machines }
    }

    /// Reads the run in `folder`, or the file itself.
    ///
    /// # Errors
    /// No such file, or not a run of this version.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = if folder.is_dir() { folder.join(FILE) } else { folder.to_owned() };
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let value: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not the record of a run", path.display()))?;
        let schema = value.get("schema").and_then(serde_json::Value::as_u64);
        ensure!(
            schema == Some(u64::from(SCHEMA)),
            "{} has schema {schema:?}; this program reads {SCHEMA}",
            path.display()
        );
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// Writes the run to `folder`, as a whole or not at all.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(FILE);
        let mut content = serde_json::to_vec(self)?;
        content.push(b'\n');
        ub_report::write(&path, &content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::outcome::Machine;

    pub(crate) fn settings() -> Settings {
        Settings {
            workloads: vec![Workload::Null, Workload::REDIS_GET],
            modes: vec![Mode::Native, Mode::Ub],
            rounds: 5,
            launches: 2,
            timed_ms: 100,
            warmup_ms: 10,
            settle_ms: 10,
            ub_options: vec![],
            icount: false,
            plant: Plant::default(),
        }
    }

    pub(crate) fn target() -> Target {
        Target::Guest { kernel: "6.12".into(), kpti: true }
    }

    pub(crate) fn machine() -> Machine {
        Machine {
            kernel: "6.12.1".into(),
            cpu: "Some CPU".into(),
            cpus: 2,
            kpti: Some(true),
            vulnerabilities: BTreeMap::new(),
        }
    }

    pub(crate) fn sample(rate: f64) -> Sample {
        let round = Round { operations: rate as u64, seconds: 1.0 };
        Sample { round, cpu_ns: 500_000_000, user_ns: 0, latency: None }
    }

    /// Both workloads with `rounds` rounds of one launch: `ub` is `factor`
    /// times as fast as native, with a little noise.
    pub(crate) fn record(rounds: u32, factor: f64) -> Record {
        let mut record = Record::new(settings(), &[target()]);
        let machine_record = &mut record.machines[0];
        let mut say = |event| machine_record.apply(event, "tcg").unwrap();
        say(Event::Machine { machine: machine() });
        for workload in settings().workloads {
            let work = Work { workload, launch: 0, rounds };
            let settled = Some(Settled { loads: 2, seconds: 1.0, stable: true });
            say(Event::Warm { work, operations: 1000, settled });
            for round in 0..rounds {
                let native = 100_000.0 * (1.0 + 0.01 * f64::from(round * 7 % 5));
                let ub = native * factor * (1.0 + 0.01 * f64::from(round * 3 % 4));
                let samples = vec![(Mode::Native, sample(native)), (Mode::Ub, sample(ub))];
                say(Event::Round { work, samples });
            }
            let counts = Counts {
                operations: 100,
                syscalls: 200,
                ridden: 150,
                rides: 10,
                exits: BTreeMap::from([("poll".into(), 10)]),
                ..Counts::default()
            };
            let end = |counts| End { digest: "d".into(), faults: vec![], counts, report: None };
            let ends = vec![(Mode::Native, end(None)), (Mode::Ub, end(Some(counts)))];
            say(Event::Finished { work, ends });
        }
        record
    }

    #[test]
    fn what_is_left_follows_from_what_is_there() {
        let rounds = |record: &Record| -> Vec<Vec<(u32, u32)>> {
            record.machines[0]
                .remaining(&record.settings)
                .iter()
                .map(|pass| pass.iter().map(|work| (work.launch, work.rounds)).collect())
                .collect()
        };
        let empty = Record::new(settings(), &[target()]);
        assert_eq!(rounds(&empty), [[(0, 3), (0, 3)], [(1, 2), (1, 2)]]);
        // Cut short after two rounds: the rest in new processes.
        assert_eq!(rounds(&record(2, 1.0)), [[(1, 3), (1, 3)]]);
        assert!(rounds(&record(5, 1.0)).is_empty());
    }

    #[test]
    fn files_hold_everything() {
        let folder = tempfile::tempdir().unwrap();
        let record = record(3, 1.1);
        let path = record.write(folder.path()).unwrap();
        assert_eq!(Record::read(folder.path()).unwrap(), record);
        assert_eq!(Record::read(&path).unwrap(), record);
        let newer = fs::read_to_string(&path).unwrap().replace("\"schema\":1", "\"schema\":2");
        fs::write(&path, newer).unwrap();
        assert!(Record::read(&path).unwrap_err().to_string().contains("schema"));
    }

    #[test]
    fn another_machine_is_refused() {
        let mut record = record(1, 1.0);
        let other = Machine { cpu: "Other CPU".into(), ..machine() };
        assert!(record.machines[0].apply(Event::Machine { machine: other }, "tcg").is_err());
        let machine = machine();
        assert!(record.machines[0].apply(Event::Machine { machine }, "kvm").is_err());
    }

    #[test]
    fn rounds_of_unknown_processes_are_refused() {
        let mut record = Record::new(settings(), &[target()]);
        let work = Work { workload: Workload::Null, launch: 0, rounds: 1 };
        assert!(record.machines[0].apply(Event::Round { work, samples: vec![] }, "tcg").is_err());
    }
}

//! The command line of `ub bench`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ub_vm_lab::KernelVersion;

use super::catalogue;
use super::record::{Settings, Target};
use crate::demo::options::{EMULATED_OPTIONS, Kpti};
use crate::plan::{Mode, NEVER_NATIVE, Plant, Workload};

/// Measure unmodified programs natively and under userspace bypass
///
/// Boots stock Debian kernels in virtual machines with page-table isolation
/// (KPTI) off and on, or measures on this machine (--here), and loads each
/// program natively and under `ub run` in turns. Everything measured goes to
/// run.json in the folder of the run after every round.
///
/// Exit status: 0 if everything was measured and all results are right, and, of
/// compare, nothing became slower; 1 if not; 2 for wrong usage.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub(super) struct Options {
    #[command(flatten)]
    pub run: RunOptions,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Compare two runs: what became faster or slower
    Compare {
        /// The earlier run: its folder or its run.json
        old: PathBuf,
        /// The later run
        new: PathBuf,
    },
    /// Show a run again
    Show {
        /// Its folder or its run.json
        run: PathBuf,
        /// Also write the page
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
    /// What the counts of a run would mean on the CPU of another
    Project {
        /// The run with the counts, from guests
        counts: PathBuf,
        /// A run made with --here on the CPU in question
        here: PathBuf,
        /// What a transition costs there, in nanoseconds [default: as much as
        /// a null call]
        #[arg(long, value_name = "NANOSECONDS")]
        switch_cost: Option<f64>,
        /// How many times as long translated code takes as native code
        #[arg(long, default_value_t = 1.10)]
        translated_ratio: f64,
    },
    /// Print the figures for the README
    Readme {
        /// The run: its folder or its run.json
        run: PathBuf,
        /// Replace them in this file
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Count instructions per operation, native and ub, under QEMU's -icount
    ///
    /// Split into the user's side, the kernel's, and the way between them. The
    /// figures do not depend on this machine; those of servers differ between
    /// runs by what was translated when.
    Instructions {
        /// Options of ub-demo, such as --workload redis-get
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

/// How to measure.
#[derive(Debug, Clone, Args)]
pub(super) struct RunOptions {
    /// Minutes instead of hours: fewer sizes, rounds and seconds
    #[arg(long)]
    pub quick: bool,
    /// Measure on this machine instead of in guests, with the page-table
    /// isolation that it has; natively only unless the module is loaded
    #[arg(long, conflicts_with_all = ["kernels", "kpti"])]
    pub here: bool,
    /// Kernel of the guests; can be repeated [default: 6.12]
    #[arg(long = "kernel", value_name = "VERSION")]
    pub kernels: Vec<KernelVersion>,
    /// States of page-table isolation
    #[arg(long, value_enum, default_value_t = Kpti::Both)]
    pub kpti: Kpti,
    /// A workload with its parameters, such as redis-get:bytes=1024,clients=50;
    /// can be repeated [default: all]
    #[arg(long = "workload", value_name = "NAME")]
    pub workloads: Vec<Workload>,
    /// Rounds of each workload on each machine [default: 10, quick: 4]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: Option<u32>,
    /// Pairs of processes over which the rounds are spread [default: 2, quick: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub launches: Option<u32>,
    /// Timed part of one round and mode, in milliseconds [default: 1000, quick: 200]
    #[arg(long)]
    pub timed_ms: Option<u64>,
    /// Untimed part before the rounds, in milliseconds [default: 1000, quick: 300]
    #[arg(long)]
    pub warmup_ms: Option<u64>,
    /// Longest extension of the untimed part while translations are still
    /// being made, in milliseconds
    #[arg(long, default_value_t = 20_000)]
    pub settle_ms: u64,
    /// An option for `ub run`; can be repeated [default: none, or on an
    /// emulated CPU those that admit its long gaps and ride whether that pays or not]
    #[arg(long = "ub-option", value_name = "OPTION", allow_hyphen_values = true)]
    pub ub_options: Vec<String>,
    /// Also count the instructions of an operation, in user mode, in the kernel
    /// and on the way between them, in guests under QEMU's -icount
    #[arg(long, conflicts_with_all = ["here", "native_only"])]
    pub icount: bool,
    /// Run everything natively only
    #[arg(long)]
    pub native_only: bool,
    /// Folder of the run, which must not hold one yet [default: target/bench/TIME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on with the run in this folder, with its settings
    #[arg(long, value_name = "DIR", conflicts_with_all = [
        "quick", "here", "kernels", "kpti", "workloads", "rounds", "launches", "timed_ms",
        "warmup_ms", "settle_ms", "ub_options", "icount", "native_only", "out",
    ])]
    pub resume: Option<PathBuf>,
    /// Folder with ub, ub-workload and ub-bench-guest [default: this program's]
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Be slow on purpose under ub: sleep that long every 64 calls of the loops
    #[arg(long, hide = true, value_name = "MICROSECONDS")]
    pub plant_sleep_us: Option<u32>,
    /// Read other data on purpose under ub
    #[arg(long, hide = true)]
    pub plant_mismatch: bool,
}

impl RunOptions {
    /// The machines, in order.
    pub fn targets(&self) -> Vec<Target> {
        if self.here {
            return vec![Target::Here];
        }
        let default = [KernelVersion::V6_12];
        let kernels = if self.kernels.is_empty() { &default[..] } else { &self.kernels };
        kernels
            .iter()
            .flat_map(|kernel| {
                self.kpti
                    .states()
                    .iter()
                    .map(|kpti| Target::Guest { kernel: kernel.to_string(), kpti: *kpti })
            })
            .collect()
    }

    /// The settings of a new run; whether guests are `emulated` and `ub` can be
    /// used decides on defaults.
    pub fn settings(&self, emulated: bool, with_ub: bool) -> Settings {
        let choose = |full, quick| if self.quick { quick } else { full };
        let mut workloads = self.workloads.clone();
        if workloads.is_empty() {
            workloads = if self.quick { catalogue::quick() } else { catalogue::full() };
        }
        let mut ub_options = self.ub_options.clone();
        if ub_options.is_empty() && emulated {
            // Of an emulated CPU's figures only counts mean anything, of rides: whether these
            // pay there is not asked.
            let anyway = ["--ride-anyway", NEVER_NATIVE];
            ub_options = EMULATED_OPTIONS.into_iter().chain(anyway).map(str::to_owned).collect();
        }
        Settings {
            workloads,
            modes: if with_ub { vec![Mode::Native, Mode::Ub] } else { vec![Mode::Native] },
            rounds: self.rounds.unwrap_or(choose(10, 4)),
            launches: self.launches.unwrap_or(choose(2, 1)),
            timed_ms: self.timed_ms.unwrap_or(if self.quick { 200 } else { 1000 }),
            warmup_ms: self.warmup_ms.unwrap_or(if self.quick { 300 } else { 1000 }),
            // A short run must not be of programs that are still being translated.
            settle_ms: self.settle_ms,
            ub_options,
            icount: self.icount,
            plant: Plant { sleep_us: self.plant_sleep_us, mismatch: self.plant_mismatch },
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn options(words: &[&str]) -> RunOptions {
        Options::try_parse_from([&["ub bench"], words].concat()).unwrap().run
    }

    #[test]
    fn the_definition_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn machines_follow_from_kernels_and_states() {
        let names = |words: &[&str]| -> Vec<String> {
            options(words).targets().iter().map(Target::to_string).collect()
        };
        assert_eq!(names(&[]), ["6.12-kpti-off", "6.12-kpti-on"]);
        assert_eq!(names(&["--kernel", "6.1", "--kpti", "on"]), ["6.1-kpti-on"]);
        assert_eq!(names(&["--here"]), ["here"]);
    }

    #[test]
    fn defaults_depend_on_the_machine() {
        let full = options(&[]).settings(false, true);
        assert_eq!((full.rounds, full.ub_options.len(), full.modes.len()), (10, 0, 2));
        let quick = options(&["--quick"]).settings(true, false);
        assert_eq!((quick.rounds, quick.ub_options.is_empty(), quick.modes.len()), (4, false, 1));
        assert!(quick.workloads.len() < full.workloads.len());
    }

    #[test]
    fn a_resumed_run_keeps_its_settings() {
        for words in [&["--rounds", "3"][..], &["--quick"], &["--workload", "null"]] {
            let all = [&["ub bench", "--resume", "x"], words].concat();
            assert!(Options::try_parse_from(all).is_err(), "{words:?}");
        }
        assert!(Options::try_parse_from(["ub bench", "--workload", "mysql"]).is_err());
    }
}

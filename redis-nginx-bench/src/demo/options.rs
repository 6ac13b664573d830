//! The options of the demo, and the guests and plans that follow from them.

use std::fmt;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use ub_vm_lab::KernelVersion;

use crate::cost::Way;
use crate::plan::{Mode, Plan, Plant, Workload};

/// Options of `ub run` on an emulated CPU: find hot gaps early, admit long ones
/// and slow threads, and count what fragments are left for over longer, as
/// everything takes longer there.
pub(crate) const EMULATED_OPTIONS: [&str; 6] = [
    "--hot-count=16",
    "--gap-short-us=1000",
    "--gap-max-us=1000",
    "--miss-count=3",
    "--min-rate=1000",
    "--miss-window-ms=2000",
];

/// Compare programs run natively and under userspace bypass
///
/// Boots a stock Debian kernel in a virtual machine with page-table isolation
/// (KPTI) off and on, runs each workload natively and under `ub run` in turns,
/// prints a table and writes a report as JSON. A short pass on a second kernel
/// follows.
///
/// Exit status: 0 if everything was measured, all results are right and no
/// guest's kernel complained; 1 if not; 2 for wrong usage.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub(crate) struct Options {
    /// Kernel of the comparison
    #[arg(long, default_value = "6.12")]
    pub kernel: KernelVersion,
    /// Kernel of the short pass
    #[arg(long, default_value = "6.1")]
    pub smoke_kernel: KernelVersion,
    /// Leave the short pass out
    #[arg(long)]
    pub no_smoke: bool,
    /// States of page-table isolation
    #[arg(long, value_enum, default_value_t = Kpti::Both)]
    pub kpti: Kpti,
    /// QEMU's model of the guests' CPU, for its weaknesses: Cascadelake-Server, say, has
    /// its buffers cleared before user code [default: the one that can most]
    #[arg(long, value_name = "MODEL")]
    pub cpu: Option<String>,
    /// Only build the kernel modules, for both kernels
    #[arg(long)]
    pub build_only: bool,
    /// Count instructions per request instead: native against ub, in one
    /// guest under QEMU's -icount
    #[arg(long, conflicts_with_all = ["native_only", "build_only"])]
    pub user_cost: bool,
    /// Count instructions with the hooks for stock kernels and with those of
    /// kernel-patch/linux-6.12 instead, and write the table to FILE
    #[arg(long, value_name = "FILE", conflicts_with_all = ["native_only", "build_only", "user_cost"])]
    pub in_tree: Option<PathBuf>,
    /// Compare what `ub predict` says of each workload with what a session then
    /// gains instead
    #[arg(long, conflicts_with_all = ["native_only", "build_only", "user_cost", "in_tree"])]
    pub predict: bool,
    /// Run everything natively only: no module, no comparison
    #[arg(long)]
    pub native_only: bool,
    /// A workload; can be repeated [default: all]
    #[arg(long = "workload", value_name = "NAME")]
    pub workloads: Vec<Workload>,
    /// Timed loads of each cell
    /// [default: 15; where instructions are counted 2, each of a fresh process]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: Option<u32>,
    /// Duration of a timed load, in milliseconds
    #[arg(long, default_value_t = 500)]
    pub timed_ms: u64,
    /// Duration of the untimed load before the first one, in milliseconds
    #[arg(long, default_value_t = 600)]
    pub warmup_ms: u64,
    /// How long the untimed load under ub is repeated at most, in milliseconds,
    /// while translations are still being made
    #[arg(long, default_value_t = 30_000)]
    pub settle_ms: u64,
    /// An option for `ub run`; can be repeated
    ///
    /// The default finds hot gaps early, admits long ones and slow threads, as
    /// the whole demo is short and an emulated CPU slow.
    #[arg(
        long = "ub-option",
        value_name = "OPTION",
        allow_hyphen_values = true,
        default_values = EMULATED_OPTIONS
    )]
    pub ub_options: Vec<String>,
    /// Also fail when a figure falls short of what is promised for it
    #[arg(long)]
    pub strict: bool,
    /// Where the report goes; raw results and logs go beside it
    #[arg(long, value_name = "FILE", default_value = "target/demo/report.json")]
    pub out: PathBuf,
    /// Folder with ub, ub-workload and ub-bench-guest [default: this program's]
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
}

/// Which states of page-table isolation to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kpti {
    Off,
    On,
    Both,
}

/// One boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guest {
    pub kernel: KernelVersion,
    pub kpti: bool,
    /// Whether this is the short pass.
    pub smoke: bool,
}

impl Guest {
    /// Name for files about this guest.
    pub fn file_name(&self) -> String {
        format!("{}-kpti-{}", self.kernel, if self.kpti { "on" } else { "off" })
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kpti = if self.kpti { "on" } else { "off" };
        write!(f, "kernel {}, KPTI {kpti}", self.kernel)
    }
}

/// The workloads of the short pass: one of each kind.
const SMOKE: [Workload; 4] =
    [Workload::Null, Workload::read(64), Workload::REDIS_GET, Workload::NGINX];

/// Where things are inside the guest.
pub(crate) mod guest_paths {
    use std::path::PathBuf;

    use crate::plan::Programs;

    /// The tmpfs for data, sockets and logs.
    pub const SCRATCH: &str = "/tmp/ub-bench";
    /// The plan; not below /tmp, over which the guest mounts a tmpfs.
    pub const PLAN: &str = "/ub-bench/plan.json";
    /// The outcome.
    pub const OUTCOME: &str = "/tmp/ub-bench-outcome.json";
    /// The programs.
    pub const BIN: &str = "/usr/bin";
    /// The image of the disk.
    pub const DISK_IMAGE: &str = "/ub-bench/disk.img";
    /// Where it is mounted.
    pub const DISK: &str = "/ub-bench/disk";

    /// The modules under test, in the order of loading.
    pub const MODULES: [&str; 2] = ["/ub/modules/ub_gate.ko", "/ub/modules/ub.ko"];

    /// The programs in the guest.
    pub fn programs() -> Programs {
        let bin = |name: &str| PathBuf::from(BIN).join(name);
        Programs {
            ub: bin("ub"),
            workload: bin("ub-workload"),
            redis_server: bin("redis-server"),
            redis_benchmark: bin("redis-benchmark"),
            nginx: bin("nginx"),
            wrk: bin("wrk"),
            memcached: bin("memcached"),
            sqlite: bin("sqlite3"),
            ip: bin("ip"),
        }
    }
}

impl Kpti {
    /// The states, in the order of booting.
    pub fn states(self) -> &'static [bool] {
        match self {
            Self::Off => &[false],
            Self::On => &[true],
            Self::Both => &[false, true],
        }
    }
}

impl Options {
    /// Timed loads, or counted runs, of each cell.
    fn rounds(&self) -> u32 {
        // Counts do not scatter.
        let counted = self.user_cost || self.in_tree.is_some();
        self.rounds.unwrap_or(if counted { 2 } else { 15 })
    }

    /// The boots, in order.
    pub fn guests(&self) -> Vec<Guest> {
        let states = self.kpti.states();
        let full =
            states.iter().map(|kpti| Guest { kernel: self.kernel, kpti: *kpti, smoke: false });
        let smoke =
            Guest { kernel: self.smoke_kernel, kpti: states[states.len() - 1], smoke: true };
        full.chain((!self.no_smoke && self.smoke_kernel != self.kernel).then_some(smoke)).collect()
    }

    /// The plan for one of them.
    pub fn plan(&self, guest: &Guest) -> Plan {
        let asked = if self.workloads.is_empty() { &Workload::DEMO[..] } else { &self.workloads };
        let workloads = asked.iter().copied().filter(|w| !guest.smoke || SMOKE.contains(w));
        let divisor: u16 = if guest.smoke { 2 } else { 1 };
        Plan {
            workloads: workloads.collect(),
            modes: if self.native_only { vec![Mode::Native] } else { vec![Mode::Native, Mode::Ub] },
            ways: Way::RIDE.to_vec(),
            rounds: self.rounds().div_ceil(u32::from(divisor)),
            timed_ms: self.timed_ms / u64::from(divisor),
            warmup_ms: self.warmup_ms / u64::from(divisor),
            settle_ms: self.settle_ms / u64::from(divisor),
            settle_looks: 1,
            operations: (500, 20_000_000),
            ub_options: self.ub_options.clone(),
            programs: guest_paths::programs(),
            scratch: guest_paths::SCRATCH.into(),
            prepare_guest: true,
            redis_keys: 1000,
            disk_image: None,
            modules: vec![],
            disk: None,
            plant: Plant::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn options(words: &[&str]) -> Options {
        Options::try_parse_from([&["ub-demo"], words].concat()).unwrap()
    }

    #[test]
    fn the_definition_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn by_default_both_states_and_a_short_pass() {
        let options = options(&[]);
        let guests: Vec<String> = options.guests().iter().map(Guest::to_string).collect();
        assert_eq!(
            guests,
            ["kernel 6.12, KPTI off", "kernel 6.12, KPTI on", "kernel 6.1, KPTI on"]
        );
        let [full, _, smoke] = options.guests()[..] else { panic!("three guests") };
        assert_eq!(options.plan(&full).workloads, Workload::DEMO);
        assert_eq!(options.plan(&smoke).workloads, SMOKE);
        for guest in options.guests() {
            options.plan(&guest).validate().unwrap();
        }
    }

    #[test]
    fn a_single_cell_can_be_asked_for() {
        let options =
            options(&["--kpti", "on", "--workload", "null", "--no-smoke", "--ub-option", "-vv"]);
        let guests = options.guests();
        assert_eq!((guests.len(), guests[0].kpti), (1, true));
        let plan = options.plan(&guests[0]);
        assert_eq!(plan.workloads, [Workload::Null]);
        assert_eq!(plan.ub_options, ["-vv"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [["--workload", "mysql"], ["--kernel", "5.4"], ["--rounds", "0"]] {
            assert!(Options::try_parse_from([&["ub-demo"], &words[..]].concat()).is_err());
        }
    }
}

//! What to run. The host writes a plan as JSON, the guest driver reads it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cost::Way;
pub use crate::workload::Workload;
use crate::{Error, Result};

/// How a program is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// As it is.
    Native,
    /// Under `ub run`.
    Ub,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Ub => "ub",
        })
    }
}

/// Where the programs are inside the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    /// The `ub` command; needed for [`Mode::Ub`] only.
    pub ub: PathBuf,
    /// This crate's `ub-workload`.
    pub workload: PathBuf,
    /// Debian's redis-server.
    pub redis_server: PathBuf,
    /// Debian's redis-benchmark.
    pub redis_benchmark: PathBuf,
    /// Debian's nginx.
    pub nginx: PathBuf,
    /// Debian's wrk.
    pub wrk: PathBuf,
    /// Debian's memcached.
    pub memcached: PathBuf,
    /// Debian's sqlite3.
    pub sqlite: PathBuf,
    /// Debian's ip, which makes the veth pair.
    pub ip: PathBuf,
}

impl Programs {
    /// The programs that must exist for `workload`, besides [`Self::ub`].
    #[must_use]
    pub fn of(&self, workload: Workload) -> Vec<&PathBuf> {
        match workload {
            Workload::Null
            | Workload::Bare
            | Workload::Interposed { .. }
            | Workload::Read { .. }
            | Workload::Ring { .. } => vec![&self.workload],
            Workload::Redis { .. } => vec![&self.redis_server, &self.redis_benchmark],
            Workload::Nginx { .. } => vec![&self.nginx, &self.wrk],
            Workload::Packets { .. } => vec![&self.workload, &self.ip],
            Workload::Memcached { .. } => vec![&self.memcached, &self.workload],
            Workload::Sqlite => vec![&self.sqlite],
        }
    }
}

/// Option of `ub run` with which no passage of a translated gap goes natively to compare:
/// nothing is measured and nothing judged, so all of them count as rides. The number is
/// `UB_NATIVE_NEVER` of the module.
pub(crate) const NEVER_NATIVE: &str = "--native-interval=4294967295";

/// What the guest driver does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What to measure, in this order.
    pub workloads: Vec<Workload>,
    /// The modes to compare.
    pub modes: Vec<Mode>,
    /// What is compared where instructions are counted.
    pub ways: Vec<Way>,
    /// Timed loads of each mode; consecutive rounds reverse the order (ABBA).
    pub rounds: u32,
    /// Wanted duration of one timed load, in milliseconds. Untimed native loads
    /// turn it into a number of operations, which is then the same in every
    /// round and mode.
    pub timed_ms: u64,
    /// Duration of the untimed load before the first one, in milliseconds.
    pub warmup_ms: u64,
    /// How long the untimed part of a server under `ub` may be extended, in
    /// milliseconds: it ends when no more translations are made.
    pub settle_ms: u64,
    /// Looks at the session without a new translation after which that is so.
    pub settle_looks: u32,
    /// Lower and upper bound of the number of timed operations.
    pub operations: (u64, u64),
    /// Options of `ub run` besides `--require` and `--report`.
    pub ub_options: Vec<String>,
    /// Where the programs are.
    pub programs: Programs,
    /// Directory on a tmpfs for data, sockets and logs; created when missing.
    pub scratch: PathBuf,
    /// This is a guest of the lab: write a minimal user database where there is none, and
    /// make network interfaces as needed.
    pub prepare_guest: bool,
    /// Number of keys in the redis dataset.
    pub redis_keys: u64,
    /// A folder on a disk for [`Storage::Disk`](crate::workload::Storage::Disk); `None` where there is none.
    #[serde(default)]
    pub disk: Option<PathBuf>,
    /// The image of a file system that is to be mounted at [`Self::disk`].
    #[serde(default)]
    pub disk_image: Option<PathBuf>,
    /// The kernel modules under test, in the order of loading, if the driver is
    /// to load them for each measurement that needs them. Empty: they are
    /// loaded, or not needed.
    #[serde(default)]
    pub modules: Vec<PathBuf>,
    /// Mistakes planted on purpose, so that tests can see them found.
    #[serde(default)]
    pub plant: Plant,
}

/// Mistakes made on purpose in the loops of system calls under `ub`: a harness
/// that does not notice them would not notice real ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plant {
    /// Sleep that long, in microseconds, every few calls.
    #[serde(default)]
    pub sleep_us: Option<u32>,
    /// Read a file of another content.
    #[serde(default)]
    pub mismatch: bool,
}

impl Plan {
    /// Adds options of `ub run`, which takes none of them twice.
    pub fn add_ub_options(&mut self, options: &[&str]) {
        for option in options {
            if !self.ub_options.iter().any(|given| given == option) {
                self.ub_options.push((*option).to_owned());
            }
        }
    }

    /// Checks what serde cannot.
    ///
    /// # Errors
    /// [`Error::Plan`] naming the first field that makes no sense.
    pub fn validate(&self) -> Result<()> {
        let refuse = |text: &str| Err(Error::Plan(text.to_owned()));
        if self.workloads.is_empty() {
            return refuse("workloads is empty");
        }
        if !self.modes.contains(&Mode::Native) {
            return refuse("modes lacks \"native\", with which every result is compared");
        }
        if self.rounds == 0 {
            return refuse("rounds is 0");
        }
        if self.operations.0 == 0 || self.operations.0 > self.operations.1 {
            return refuse("operations is not a range of positive numbers");
        }
        if self.redis_keys < 16 {
            return refuse("redis_keys is below 16");
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A plan that runs on the host, natively.
    pub(crate) fn plan() -> Plan {
        Plan {
            workloads: Workload::DEMO.to_vec(),
            modes: vec![Mode::Native, Mode::Ub],
            ways: Way::ALL.to_vec(),
            rounds: 3,
            timed_ms: 100,
            warmup_ms: 10,
            settle_ms: 100,
            settle_looks: 1,
            operations: (100, 10_000),
            ub_options: vec![],
            programs: Programs {
                ub: "/bin/ub".into(),
                workload: "/bin/ub-workload".into(),
                redis_server: "/usr/bin/redis-server".into(),
                redis_benchmark: "/usr/bin/redis-benchmark".into(),
                nginx: "/usr/sbin/nginx".into(),
                wrk: "/usr/bin/wrk".into(),
                memcached: "/usr/bin/memcached".into(),
                sqlite: "/usr/bin/sqlite3".into(),
                ip: "/usr/sbin/ip".into(),
            },
            scratch: "/tmp/ub-bench".into(),
            prepare_guest: false,
            redis_keys: 100,
            disk: None,
            disk_image: None,
            modules: vec![],
            plant: Plant::default(),
        }
    }

    #[test]
    fn json_round_trip_keeps_everything() {
        let text = serde_json::to_string(&plan()).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan());
    }

    #[test]
    fn options_are_given_once() {
        let mut plan = plan();
        plan.add_ub_options(&["--ride-anyway"]);
        plan.add_ub_options(&["--time-gaps", "--ride-anyway"]);
        assert_eq!(plan.ub_options, ["--ride-anyway", "--time-gaps"]);
    }

    #[test]
    fn senseless_plans_are_refused() {
        assert!(plan().validate().is_ok());
        let broken: [fn(&mut Plan); 5] = [
            |p| p.workloads.clear(),
            |p| p.modes = vec![Mode::Ub],
            |p| p.rounds = 0,
            |p| p.operations = (10, 9),
            |p| p.redis_keys = 1,
        ];
        for (index, change) in broken.iter().enumerate() {
            let mut plan = plan();
            change(&mut plan);
            assert!(plan.validate().is_err(), "case {index}");
        }
    }
}

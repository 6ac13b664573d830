//! What to run. The host writes a plan as JSON, the guest driver reads it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A thing to measure; the names are those of `report.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Workload {
    /// `getppid` in a loop. One operation: one call.
    #[serde(rename = "null")]
    Null,
    /// `pread` of 64 bytes from tmpfs. One operation: one call.
    #[serde(rename = "pread-64")]
    Pread64,
    /// `pread` of 4096 bytes from tmpfs. One operation: one call.
    #[serde(rename = "pread-4096")]
    Pread4096,
    /// redis-server under `redis-benchmark -t set`. One operation: one request.
    #[serde(rename = "redis-set")]
    RedisSet,
    /// redis-server under `redis-benchmark -t get`. One operation: one request.
    #[serde(rename = "redis-get")]
    RedisGet,
    /// nginx serving a 4 KiB file to wrk. One operation: one request.
    #[serde(rename = "nginx")]
    Nginx,
}

impl Workload {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 6] =
        [Self::Null, Self::Pread64, Self::Pread4096, Self::RedisSet, Self::RedisGet, Self::Nginx];

    /// Whether it is a loop of system calls and not a server under load.
    #[must_use]
    pub fn is_micro(self) -> bool {
        matches!(self, Self::Null | Self::Pread64 | Self::Pread4096)
    }

    /// The name in reports and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Pread64 => "pread-64",
            Self::Pread4096 => "pread-4096",
            Self::RedisSet => "redis-set",
            Self::RedisGet => "redis-get",
            Self::Nginx => "nginx",
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Workload {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|workload| workload.name() == name).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|workload| workload.name()).collect();
            Error::Plan(format!("no workload \"{name}\"; there are {}", known.join(", ")))
        })
    }
}

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
}

impl Programs {
    /// The program that must exist for `workload`, besides [`Self::ub`].
    #[must_use]
    pub fn of(&self, workload: Workload) -> [&PathBuf; 2] {
        match workload {
            Workload::Null | Workload::Pread64 | Workload::Pread4096 => {
                [&self.workload, &self.workload]
            }
            Workload::RedisSet | Workload::RedisGet => [&self.redis_server, &self.redis_benchmark],
            Workload::Nginx => [&self.nginx, &self.wrk],
        }
    }
}

/// What the guest driver does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What to measure, in this order.
    pub workloads: Vec<Workload>,
    /// The modes to compare.
    pub modes: Vec<Mode>,
    /// Measurements of each mode; consecutive rounds reverse the order (ABBA).
    pub rounds: u32,
    /// Wanted duration of the timed part of one native measurement, in
    /// milliseconds. A pilot run turns it into a number of operations, which
    /// is then the same in every round and mode.
    pub timed_ms: u64,
    /// Duration of the untimed part before it, in milliseconds. It has to be
    /// long enough for the hot gaps to be found, translated and installed.
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
    /// Bring up the loopback interface and write a minimal user database, as
    /// a bare initramfs has neither.
    pub prepare_guest: bool,
    /// Concurrent connections of redis-benchmark and wrk.
    pub connections: u32,
    /// Number of keys in the redis dataset.
    pub redis_keys: u64,
}

impl Plan {
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
        if self.connections == 0 {
            return refuse("connections is 0");
        }
        if self.redis_keys < 16 {
            return refuse("redis_keys is below 16");
        }
        Ok(())
    }

    /// The order of measurements: modes in order, then reversed, and so on,
    /// so that a slow drift of the machine hits all modes alike.
    #[must_use]
    pub fn schedule(&self) -> Vec<Mode> {
        (0..self.rounds)
            .flat_map(|round| {
                let mut modes = self.modes.clone();
                if round % 2 == 1 {
                    modes.reverse();
                }
                modes
            })
            .collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A plan that runs on the host, natively.
    pub(crate) fn plan() -> Plan {
        Plan {
            workloads: Workload::ALL.to_vec(),
            modes: vec![Mode::Native, Mode::Ub],
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
            },
            scratch: "/tmp/ub-bench".into(),
            prepare_guest: false,
            connections: 4,
            redis_keys: 100,
        }
    }

    #[test]
    fn rounds_alternate_their_order() {
        use Mode::{Native, Ub};
        assert_eq!(plan().schedule(), [Native, Ub, Ub, Native, Native, Ub]);
    }

    #[test]
    fn json_round_trip_keeps_everything() {
        let text = serde_json::to_string(&plan()).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan());
    }

    #[test]
    fn names_parse_back() {
        for workload in Workload::ALL {
            assert_eq!(workload.name().parse::<Workload>().unwrap(), workload);
            assert_eq!(serde_json::to_value(workload).unwrap(), workload.name());
        }
        let message = "redis".parse::<Workload>().unwrap_err().to_string();
        assert!(message.contains("redis-set"), "{message}");
    }

    #[test]
    fn senseless_plans_are_refused() {
        assert!(plan().validate().is_ok());
        let broken: [fn(&mut Plan); 6] = [
            |p| p.workloads.clear(),
            |p| p.modes = vec![Mode::Ub],
            |p| p.rounds = 0,
            |p| p.operations = (10, 9),
            |p| p.connections = 0,
            |p| p.redis_keys = 1,
        ];
        for (index, change) in broken.iter().enumerate() {
            let mut plan = plan();
            change(&mut plan);
            assert!(plan.validate().is_err(), "case {index}");
        }
    }
}

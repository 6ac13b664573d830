//! The things to measure and their parameters.
//!
//! A workload has a name that says all of it, as the reports, the command line
//! and the JSON files use it: the family, and what differs from its defaults,
//! such as `pread-64`, `redis-get` or `redis-get:bytes=16384,clients=50`.

mod parameters;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::interpose::Interposer;
use crate::{Error, Result};
pub use parameters::{Access, Receiver, Storage, Sum, Task};

/// A thing to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Workload {
    /// `getppid` in a loop. One operation: one call.
    Null,
    /// `getppid` in a loop of four instructions, so that it is known what else
    /// lies between two calls. One operation: one call.
    Bare,
    /// `getppid` in a loop, interposed by something else than this project.
    /// One operation: one call.
    Interposed {
        /// By what.
        by: Interposer,
    },
    /// `pread` in a loop. One operation: one call.
    Read {
        /// Bytes of one read.
        bytes: u32,
        /// Where from.
        from: Storage,
        /// What is done with them.
        sum: Sum,
    },
    /// The same reads through io_uring: what a developer would have to write
    /// for fewer system calls. One operation: one read.
    Ring {
        /// Bytes of one read.
        bytes: u32,
        /// Where from.
        from: Storage,
        /// What is done with them.
        sum: Sum,
        /// Reads submitted with one call.
        depth: u32,
    },
    /// redis-server under redis-benchmark. One operation: one request.
    Redis {
        /// GET or SET.
        access: Access,
        /// Bytes of a value.
        bytes: u32,
        /// Concurrent connections.
        clients: u32,
        /// Requests sent before their answers are read.
        pipeline: u32,
    },
    /// nginx serving a file to wrk. One operation: one request.
    Nginx {
        /// Bytes of the file.
        bytes: u32,
        /// Concurrent connections.
        connections: u32,
        /// Whether requests are logged.
        access_log: bool,
        /// Whether connections are kept for further requests.
        keep_alive: bool,
    },
    /// A raw packet socket on a veth pair. One operation: one packet.
    Packets {
        /// What is done with the packets.
        task: Task,
        /// What does it. An eBPF program is as fast as the sender, which
        /// executes it.
        by: Receiver,
    },
    /// memcached under a client of our own. One operation: one request.
    Memcached {
        /// get or set.
        access: Access,
        /// Bytes of a value.
        bytes: u32,
        /// Concurrent connections.
        clients: u32,
    },
    /// The sqlite3 shell. One operation: one transaction with three statements.
    Sqlite,
}

/// Defaults of the parameters; `make demo` uses them.
const VALUE: u32 = 64;
const CLIENTS: u32 = 10;

impl Workload {
    /// `getppid`, reads of 64 and of 4096 bytes from a tmpfs, redis-server
    /// and nginx: what `make demo` shows, in the order of its table.
    pub const DEMO: [Self; 6] = [
        Self::Null,
        Self::read(64),
        Self::read(4096),
        Self::REDIS_SET,
        Self::REDIS_GET,
        Self::NGINX,
    ];

    /// redis-server under GET with the default parameters.
    pub const REDIS_GET: Self = Self::redis(Access::Get);

    /// redis-server under SET with the default parameters.
    pub const REDIS_SET: Self = Self::redis(Access::Set);

    /// nginx with the default parameters.
    pub const NGINX: Self =
        Self::Nginx { bytes: 4096, connections: CLIENTS, access_log: false, keep_alive: true };

    /// Reads of `bytes` with the default parameters.
    #[must_use]
    pub const fn read(bytes: u32) -> Self {
        Self::Read { bytes, from: Storage::Tmpfs, sum: Sum::Lines }
    }

    /// io_uring with the default parameters.
    #[must_use]
    pub const fn ring(bytes: u32, depth: u32) -> Self {
        Self::Ring { bytes, from: Storage::Tmpfs, sum: Sum::Lines, depth }
    }

    /// redis-server with the default parameters.
    #[must_use]
    pub const fn redis(access: Access) -> Self {
        Self::Redis { access, bytes: VALUE, clients: CLIENTS, pipeline: 1 }
    }

    /// memcached with the default parameters.
    #[must_use]
    pub const fn memcached(access: Access) -> Self {
        Self::Memcached { access, bytes: VALUE, clients: CLIENTS }
    }

    /// Receiving packets with the default parameters.
    #[must_use]
    pub const fn packets(task: Task) -> Self {
        Self::Packets { task, by: Receiver::Socket }
    }

    /// Whether it is a loop of system calls and not a server under load.
    #[must_use]
    pub fn is_micro(self) -> bool {
        match self {
            Self::Null | Self::Bare | Self::Interposed { .. } => true,
            Self::Read { .. } | Self::Ring { .. } => true,
            Self::Redis { .. } | Self::Nginx { .. } | Self::Packets { .. } => false,
            Self::Memcached { .. } | Self::Sqlite => false,
        }
    }

    /// Whether it is another way to the same end, shown for context: nothing
    /// of it is to be ridden, so it is measured natively only.
    #[must_use]
    pub fn is_context(self) -> bool {
        matches!(self, Self::Interposed { .. } | Self::Packets { by: Receiver::Bpf, .. })
    }

    /// The front of the name: what is measured, without most parameters.
    #[must_use]
    pub fn family(self) -> String {
        match self {
            Self::Null => "null".into(),
            Self::Bare => "bare".into(),
            Self::Interposed { by } => format!("interposed-{by}"),
            Self::Read { bytes, .. } => format!("pread-{bytes}"),
            Self::Ring { bytes, .. } => format!("uring-{bytes}"),
            Self::Redis { access, .. } => format!("redis-{}", access.word()),
            Self::Nginx { .. } => "nginx".into(),
            Self::Packets { task: Task::Count, .. } => "packets-count".into(),
            Self::Packets { task: Task::Filter, .. } => "packets-filter".into(),
            Self::Memcached { access, .. } => format!("memcached-{}", access.word()),
            Self::Sqlite => "sqlite".into(),
        }
    }

    /// The workload of that family with the default parameters.
    fn of_family(name: &str) -> Option<Self> {
        let bytes = |text: &str| {
            text.parse().ok().filter(|bytes| (64..=1 << 20).contains(bytes) && bytes % 64 == 0)
        };
        if let Some(text) = name.strip_prefix("pread-") {
            return bytes(text).map(Self::read);
        }
        if let Some(text) = name.strip_prefix("uring-") {
            return bytes(text).map(|bytes| Self::ring(bytes, 1));
        }
        if let Some(word) = name.strip_prefix("interposed-") {
            return word.parse().ok().map(|by| Self::Interposed { by });
        }
        [
            Self::Null,
            Self::Bare,
            Self::redis(Access::Get),
            Self::redis(Access::Set),
            Self::NGINX,
            Self::packets(Task::Count),
            Self::packets(Task::Filter),
            Self::memcached(Access::Get),
            Self::memcached(Access::Set),
            Self::Sqlite,
        ]
        .into_iter()
        .find(|workload| workload.family() == name)
    }

    /// The parameters that the family's name does not tell, with their values.
    #[must_use]
    pub fn parameters(self) -> Vec<(&'static str, String)> {
        let switch = |on: bool| if on { "on" } else { "off" }.to_owned();
        match self {
            Self::Null | Self::Bare | Self::Interposed { .. } | Self::Sqlite => vec![],
            Self::Packets { by, .. } => vec![("by", by.word().to_owned())],
            Self::Read { from, sum, .. } => vec![("from", from.word()), ("sum", sum.word())],
            Self::Ring { from, sum, depth, .. } => {
                vec![("from", from.word()), ("sum", sum.word()), ("depth", depth.to_string())]
            }
            Self::Redis { bytes, clients, pipeline, .. } => vec![
                ("bytes", bytes.to_string()),
                ("clients", clients.to_string()),
                ("pipeline", pipeline.to_string()),
            ],
            Self::Nginx { bytes, connections, access_log, keep_alive } => vec![
                ("bytes", bytes.to_string()),
                ("connections", connections.to_string()),
                ("access-log", switch(access_log)),
                ("keep-alive", switch(keep_alive)),
            ],
            Self::Memcached { bytes, clients, .. } => {
                vec![("bytes", bytes.to_string()), ("clients", clients.to_string())]
            }
        }
    }

    /// Sets one of [`Self::parameters`]; `None` if it does not have it or not
    /// that value.
    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        let count = || value.parse().ok().filter(|count| (1..=10_000).contains(count));
        let size = || value.parse().ok().filter(|size| *size <= 1 << 20);
        let switch = || match value {
            "on" => Some(true),
            "off" => Some(false),
            _ => None,
        };
        match (self, key) {
            (Self::Read { from, .. } | Self::Ring { from, .. }, "from") => {
                *from = Storage::ALL.into_iter().find(|storage| storage.word() == value)?;
            }
            (Self::Read { sum, .. } | Self::Ring { sum, .. }, "sum") => {
                *sum = Sum::ALL.into_iter().find(|sum| sum.word() == value)?;
            }
            (Self::Ring { depth, .. }, "depth") => *depth = count()?,
            (Self::Redis { bytes, .. } | Self::Memcached { bytes, .. }, "bytes") => {
                *bytes = size().filter(|bytes| *bytes > 0)?;
            }
            (Self::Nginx { bytes, .. }, "bytes") => *bytes = size()?,
            (Self::Redis { clients, .. } | Self::Memcached { clients, .. }, "clients") => {
                *clients = count()?;
            }
            (Self::Redis { pipeline, .. }, "pipeline") => *pipeline = count()?,
            (Self::Nginx { connections, .. }, "connections") => *connections = count()?,
            (Self::Nginx { access_log, .. }, "access-log") => *access_log = switch()?,
            (Self::Nginx { keep_alive, .. }, "keep-alive") => *keep_alive = switch()?,
            (Self::Packets { by, .. }, "by") => *by = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = self.family();
        let defaults = Self::of_family(&family).map(Self::parameters).unwrap_or_default();
        let own: Vec<String> = self
            .parameters()
            .into_iter()
            .filter(|parameter| !defaults.contains(parameter))
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        if own.is_empty() {
            return f.pad(&family);
        }
        f.pad(&format!("{family}:{}", own.join(",")))
    }
}

impl FromStr for Workload {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let (family, parameters) = name.split_once(':').unwrap_or((name, ""));
        let mut workload = Self::of_family(family).ok_or_else(|| {
            Error::Plan(format!(
                "no workload \"{name}\"; there are null, bare, interposed-rewrite, interposed-dispatch, \
                 interposed-seccomp, pread-SIZE and uring-SIZE (a multiple of 64), redis-get, \
                 redis-set, nginx, packets-count, packets-filter, memcached-get, memcached-set and \
                 sqlite"
            ))
        })?;
        for parameter in parameters.split(',').filter(|parameter| !parameter.is_empty()) {
            let known = parameter.split_once('=').and_then(|(key, value)| workload.set(key, value));
            if known.is_none() {
                let keys: Vec<_> = workload.parameters().iter().map(|(key, _)| *key).collect();
                let keys = if keys.is_empty() { "none".into() } else { keys.join(", ") };
                let text = format!("{name}: \"{parameter}\" does not fit; parameters: {keys}");
                return Err(Error::Plan(text));
            }
        }
        Ok(workload)
    }
}

impl From<Workload> for String {
    fn from(workload: Workload) -> Self {
        workload.to_string()
    }
}

impl TryFrom<String> for Workload {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Workload> {
        let mut all = Workload::DEMO.to_vec();
        all.extend([
            Workload::Read { bytes: 1024, from: Storage::Disk, sum: Sum::None },
            Workload::Ring { bytes: 64, from: Storage::Disk, sum: Sum::All, depth: 1024 },
            Workload::Redis { access: Access::Get, bytes: 1, clients: 256, pipeline: 16 },
            Workload::Nginx { bytes: 0, connections: 1024, access_log: true, keep_alive: false },
            Workload::packets(Task::Filter),
            Workload::Packets { task: Task::Count, by: Receiver::Bpf },
            Workload::Interposed { by: Interposer::Rewrite },
            Workload::memcached(Access::Set),
            Workload::Sqlite,
            Workload::Bare,
        ]);
        all
    }

    #[test]
    fn names_parse_back() {
        for workload in samples() {
            assert_eq!(workload.to_string().parse::<Workload>().unwrap(), workload);
            let json = serde_json::to_value(workload).unwrap();
            assert_eq!(json, workload.to_string());
            assert_eq!(serde_json::from_value::<Workload>(json).unwrap(), workload);
        }
    }

    #[test]
    fn names_of_the_demo_are_short() {
        let names: Vec<String> = Workload::DEMO.iter().map(Workload::to_string).collect();
        assert_eq!(names, ["null", "pread-64", "pread-4096", "redis-set", "redis-get", "nginx"]);
        let long = "nginx:bytes=0,connections=1024,access-log=on,keep-alive=off";
        assert!(samples().iter().any(|workload| workload.to_string() == long));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (name, hint) in [
            ("redis", "redis-set"),
            ("pread-65", "multiple of 64"),
            ("nginx:clients=3", "connections"),
            ("redis-get:pipeline=0", "pipeline=0"),
            ("redis-get:bytes=0", "bytes=0"),
            ("null:x", "none"),
        ] {
            let message = name.parse::<Workload>().unwrap_err().to_string();
            assert!(message.contains(hint), "{message}");
        }
    }
}

//! The workloads of a full and of a quick run.

use crate::interpose::Interposer;
use crate::workload::{Access, Receiver, Storage, Sum, Task, Workload};

/// Sizes of reads, in bytes.
const READS: [u32; 5] = [64, 256, 1024, 4096, 16_384];
/// Reads submitted with one call of io_uring.
const DEPTHS: [u32; 6] = [1, 4, 16, 64, 256, 1024];
/// Sizes of values, in bytes.
const VALUES: [u32; 5] = [1, 64, 1024, 4096, 16_384];
/// Clients of redis where the size varies.
const CLIENTS: u32 = 50;
/// Sizes of files that nginx serves, in bytes.
const FILES: [u32; 5] = [0, 1024, 4096, 16_384, 65_536];
/// Connections of wrk.
const CONNECTIONS: [u32; 8] = [1, 2, 4, 8, 16, 32, 64, 1024];

/// Every workload with the parameters of the published evaluation.
#[must_use]
pub fn full() -> Vec<Workload> {
    let mut all = vec![Workload::Null];
    for from in [Storage::Tmpfs, Storage::Disk] {
        for sum in [Sum::None, Sum::All] {
            all.extend(READS.map(|bytes| Workload::Read { bytes, from, sum }));
        }
    }
    all.extend(DEPTHS.map(|depth| Workload::Ring {
        bytes: 64,
        from: Storage::Tmpfs,
        sum: Sum::All,
        depth,
    }));
    for access in [Access::Get, Access::Set] {
        let redis = |bytes, clients, pipeline| Workload::Redis { access, bytes, clients, pipeline };
        all.extend(VALUES.map(|bytes| redis(bytes, CLIENTS, 1)));
        all.extend([redis(64, 1, 1), redis(64, 256, 1), redis(64, CLIENTS, 16)]);
    }
    let nginx = |bytes, connections| Workload::Nginx {
        bytes,
        connections,
        access_log: false,
        keep_alive: true,
    };
    all.extend(CONNECTIONS.map(|connections| nginx(4096, connections)));
    all.extend(FILES.into_iter().filter(|bytes| *bytes != 4096).map(|bytes| nginx(bytes, 16)));
    for (access_log, keep_alive) in [(true, true), (false, false)] {
        all.push(Workload::Nginx { bytes: 4096, connections: 16, access_log, keep_alive });
    }
    all.extend(OTHERS);
    all
}

/// One or two of each kind, for minutes instead of hours.
#[must_use]
pub fn quick() -> Vec<Workload> {
    let read = |bytes, from, sum| Workload::Read { bytes, from, sum };
    let redis =
        |access, bytes, pipeline| Workload::Redis { access, bytes, clients: CLIENTS, pipeline };
    let nginx = |bytes, connections, access_log, keep_alive| Workload::Nginx {
        bytes,
        connections,
        access_log,
        keep_alive,
    };
    let mut all = vec![
        Workload::Null,
        read(64, Storage::Tmpfs, Sum::All),
        read(4096, Storage::Tmpfs, Sum::None),
        read(1024, Storage::Disk, Sum::All),
        Workload::Ring { bytes: 64, from: Storage::Tmpfs, sum: Sum::All, depth: 64 },
        redis(Access::Get, 64, 1),
        redis(Access::Set, 1024, 1),
        redis(Access::Get, 64, 16),
        nginx(4096, 16, false, true),
        nginx(0, 4, true, false),
    ];
    all.extend(OTHERS);
    all
}

/// What is in both.
const OTHERS: [Workload; 10] = [
    Workload::Interposed { by: Interposer::Rewrite },
    Workload::Interposed { by: Interposer::Dispatch },
    Workload::Interposed { by: Interposer::Seccomp },
    Workload::packets(Task::Count),
    Workload::Packets { task: Task::Count, by: Receiver::Bpf },
    Workload::packets(Task::Filter),
    Workload::Packets { task: Task::Filter, by: Receiver::Bpf },
    Workload::memcached(Access::Get),
    Workload::memcached(Access::Set),
    Workload::Sqlite,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nothing_is_listed_twice() {
        for list in [full(), quick()] {
            assert_eq!(list.iter().collect::<BTreeSet<_>>().len(), list.len());
        }
    }

    /// Families apart from sizes: "pread", "redis-get", ...
    fn kinds(list: &[Workload]) -> BTreeSet<String> {
        let digits = |c: char| c == '-' || c.is_ascii_digit();
        list.iter().map(|workload| workload.family().trim_end_matches(digits).to_owned()).collect()
    }

    #[test]
    fn the_quick_run_has_every_kind() {
        assert_eq!(kinds(&quick()), kinds(&full()));
        assert!(quick().len() * 3 < full().len());
    }
}

//! Which running processes `ub attach` and `ub detach` are about.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

/// Processes, by id or by control group.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// Process ids
    #[arg(value_name = "PID", required_unless_present = "cgroup",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) pids: Vec<u32>,
    /// All members of this control group and those below it: a folder below
    /// /sys/fs/cgroup
    #[arg(long, value_name = "PATH")]
    pub(super) cgroup: Option<PathBuf>,
}

/// Ids of the processes in the control group `folder` and below it.
///
/// # Errors
/// When the folder is gone or is no control group. One below it may go at any
/// moment and is passed over.
pub(super) fn of_cgroup(folder: &Path) -> io::Result<BTreeSet<u32>> {
    let text = fs::read_to_string(folder.join("cgroup.procs"))?;
    // A process of a pid namespace that we cannot see into is shown as 0.
    let mut pids: BTreeSet<u32> =
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect();
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(of_cgroup(&entry.path()).unwrap_or_default());
        }
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_below_count_and_invisible_ones_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("a/b");
        fs::create_dir_all(&below).unwrap();
        fs::write(folder.path().join("cgroup.procs"), "12\n0\n7\n").unwrap();
        fs::write(folder.path().join("a/cgroup.procs"), "").unwrap();
        fs::write(below.join("cgroup.procs"), "7\n99\n").unwrap();
        assert_eq!(of_cgroup(folder.path()).unwrap(), BTreeSet::from([7, 12, 99]));
        assert!(of_cgroup(&folder.path().join("gone")).is_err());
    }
}

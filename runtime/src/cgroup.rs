//! Control groups of running processes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

/// Ids of the processes in the control group `folder` and below it.
///
/// # Errors
/// When the folder is gone or is no control group. One below it may go at any
/// moment and is passed over.
pub(crate) fn members(folder: &Path) -> io::Result<BTreeSet<u32>> {
    let text = fs::read_to_string(folder.join("cgroup.procs"))?;
    // A process of a pid namespace that we cannot see into is shown as 0.
    let mut pids: BTreeSet<u32> =
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect();
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(members(&entry.path()).unwrap_or_default());
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
        assert_eq!(members(folder.path()).unwrap(), BTreeSet::from([7, 12, 99]));
        assert!(members(&folder.path().join("gone")).is_err());
    }
}

//! Which running processes `ub attach` and `ub detach` are about.

use std::path::PathBuf;

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

//! Where the servers and load generators of the workloads are.

use std::path::PathBuf;

use crate::{Error, Result};

/// Folder into which `scripts/deps` unpacks Debian's servers, so that none of
/// them is installed as a service: below [`ub_vm_lab::preferred_cache_dir`].
#[must_use]
pub fn server_folder() -> Option<PathBuf> {
    ub_vm_lab::preferred_cache_dir().map(|cache| cache.join("servers"))
}

/// Looks for `name` among the unpacked servers, then as a shell would, also
/// in the folders for administrators.
///
/// # Errors
/// [`Error::Plan`] with the command that brings the program.
pub fn find_program(name: &str) -> Result<PathBuf> {
    server_folder()
        .into_iter()
        .flat_map(|folder| [folder.join("usr/bin"), folder.join("usr/sbin")])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .or_else(|| ub_vm_lab::find_program(name))
        .ok_or_else(|| Error::Plan(format!("{name} not found; `make deps` installs it")))
}

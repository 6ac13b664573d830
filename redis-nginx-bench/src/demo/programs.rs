//! Where the servers and load generators of the workloads are.

use std::env;
use std::path::PathBuf;

use crate::{Error, Result};

/// Folder into which `scripts/deps` unpacks Debian's servers, so that none of
/// them is installed as a service: below `$UB_CACHE_DIR`, or below
/// `userspace-bypass` in the user's cache folder.
#[must_use]
pub fn server_folder() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("UB_CACHE_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("userspace-bypass")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/userspace-bypass")))
        .map(|cache| cache.join("servers"))
}

/// Looks for `name` among the unpacked servers, then as a shell would, also
/// in the folders for administrators.
///
/// # Errors
/// [`Error::Plan`] with the command that brings the program.
pub fn find_program(name: &str) -> Result<PathBuf> {
    let unpacked = server_folder()
        .into_iter()
        .flat_map(|folder| [folder.join("usr/bin"), folder.join("usr/sbin")]);
    let path = env::var_os("PATH").unwrap_or_default();
    unpacked
        .chain(env::split_paths(&path))
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| Error::Plan(format!("{name} not found; `make deps` installs it")))
}

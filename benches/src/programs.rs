//! Where the servers are whose functions are measured.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// Looks for `name` where `scripts/deps` unpacks servers, then in the folders
/// of programs and of programs for administrators.
///
/// # Errors
/// If it is nowhere, with the command that brings it.
pub fn find(name: &str) -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("UB_CACHE_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("userspace-bypass")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/userspace-bypass")));
    let unpacked = cache
        .into_iter()
        .flat_map(|cache| ["usr/bin", "usr/sbin"].map(|folder| cache.join("servers").join(folder)));
    let path = env::var_os("PATH").unwrap_or_default();
    unpacked
        .chain(env::split_paths(&path))
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} not found; `make deps` brings it"))
}

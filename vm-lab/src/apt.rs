//! Debian's packages: looking up, downloading, installing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::command;
use crate::error::{LabError, Result};

const LISTS: &str = "/var/lib/apt/lists";

/// Package lists older than this are refreshed before something is fetched.
const LISTS_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// Seconds that apt waits for another apt to finish.
const LOCK_TIMEOUT: &str = "DPkg::Lock::Timeout=600";

/// A package at one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether a package is installed.
pub(crate) fn is_installed(package: &str) -> bool {
    command::output(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

/// Installs packages; needs root.
pub(crate) fn install(packages: &[String]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if !is_root() {
        return Err(LabError::Setup(format!(
            "missing Debian packages; run as root: apt-get install {}",
            packages.join(" ")
        )));
    }
    tracing::info!(packages = packages.join(" "), "installing Debian packages");
    let run = || {
        command::output(
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["-o", LOCK_TIMEOUT, "install", "--yes", "--no-install-recommends"])
                .args(packages),
        )
        .map(drop)
    };
    if lists_are_stale() {
        update()?;
        return run();
    }
    run().or_else(|_| update().and_then(|()| run()))
}

/// Refreshes the package lists; needs root.
pub(crate) fn update() -> Result<()> {
    if !is_root() {
        return Err(LabError::Setup(
            "the package lists are missing or old; run as root: apt-get update".into(),
        ));
    }
    tracing::info!("refreshing the package lists");
    command::output(Command::new("apt-get").args(["-o", LOCK_TIMEOUT, "--quiet", "update"]))
        .map(drop)
}

/// Whether the package lists are missing or older than a day.
pub(crate) fn lists_are_stale() -> bool {
    let Ok(entries) = fs::read_dir(LISTS) else { return true };
    let is_index = |path: &Path| path.to_string_lossy().contains("_Packages");
    let has_index = entries.flatten().any(|entry| is_index(&entry.path()));
    // `partial` is touched by every update, also one that found nothing new.
    let updated = fs::metadata(Path::new(LISTS).join("partial")).and_then(|data| data.modified());
    let age = updated.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
    !has_index || age.is_none_or(|age| age > LISTS_MAX_AGE)
}

/// When the package lists last changed.
pub(crate) fn lists_changed() -> Option<SystemTime> {
    fs::metadata(LISTS).and_then(|data| data.modified()).ok()
}

/// Names of all known packages that begin with `prefix`.
pub(crate) fn names(prefix: &str) -> Result<Vec<String>> {
    let output = command::output(Command::new("apt-cache").args(["pkgnames", prefix]))?;
    Ok(output.lines().map(str::to_owned).collect())
}

/// The version that would be installed, if the package can be had.
pub(crate) fn candidate(name: &str) -> Result<Option<Package>> {
    let output =
        command::output(Command::new("apt-cache").env("LC_ALL", "C").args(["policy", name]))?;
    Ok(output
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))
        .map(str::trim)
        .filter(|version| *version != "(none)")
        .map(|version| Package { name: name.to_owned(), version: version.to_owned() }))
}

/// Names of the packages that `package` depends on, first alternatives only.
pub(crate) fn dependencies(package: &Package) -> Result<Vec<String>> {
    let spec = format!("{}={}", package.name, package.version);
    let output = command::output(Command::new("apt-cache").args(["show", &spec]))?;
    Ok(output
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))
        .map(parse_dependencies)
        .unwrap_or_default())
}

fn parse_dependencies(field: &str) -> Vec<String> {
    field
        .split(',')
        .filter_map(|group| group.split('|').next())
        .filter_map(|first| first.split_whitespace().next())
        .map(|name| name.split(':').next().unwrap_or(name).to_owned())
        .collect()
}

/// Downloads packages into `dir` without installing them.
pub(crate) fn download(packages: &[Package], dir: &Path) -> Result<Vec<PathBuf>> {
    command::output(
        Command::new("apt-get")
            // The sandbox user of apt may not be able to write to the cache.
            .args(["-o", "APT::Sandbox::User=root", "--quiet", "download"])
            .args(packages.iter().map(|package| format!("{}={}", package.name, package.version)))
            .current_dir(dir),
    )?;
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(|source| LabError::Io { context: format!("reading {}", dir.display()), source })?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
    if files.len() == packages.len() {
        Ok(files)
    } else {
        Err(LabError::Bug(format!(
            "apt-get download left {} of {} packages",
            files.len(),
            packages.len()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_first_alternatives_without_versions() {
        let field = " linux-base (>= 4.12~), linux-headers-6.12-common (= 6.12-1), \
                     linux-image-a (= 1) | linux-image-b (= 1), gcc-12:amd64";
        assert_eq!(
            parse_dependencies(field),
            ["linux-base", "linux-headers-6.12-common", "linux-image-a", "gcc-12"]
        );
    }
}

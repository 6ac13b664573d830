//! A kernel that looks for mistakes in itself and in modules: KASAN, lockdep,
//! sleeping in atomic sections, kmemleak, fault injection. Built from the
//! sources that Debian's 6.12 comes from, with as little else as the lab's
//! guests need, once for each version of sources and configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::apt::{self, Package};
use crate::cache::{self, FileLock, PendingDir};
use crate::command;
use crate::error::{Context, LabError, Result};
use crate::kernels::{Kernel, KernelVersion};

/// Set and not empty: 6.12 guests boot the debug kernel.
const WANTED: &str = "UB_LAB_DEBUG_KERNEL";

/// The package with the sources.
const SOURCES: &str = "linux-source-6.12";

/// Merged over `make tinyconfig`.
const CONFIG: &str = include_str!("../kernels/debug.config");

/// Changes whenever the kernel must be built again although the sources and
/// the configuration are the same.
const RECIPE: &str = "1";

/// What the kernel's build uses beyond the lab's own prerequisites.
const PACKAGES: [&str; 5] = ["bc", "bison", "flex", "libelf-dev", "xz-utils"];

/// How many times slower than a stock kernel it may be.
pub(crate) const SLOWNESS: u32 = 6;

/// Whether guests of this line boot the debug kernel in place of the stock one.
pub(crate) fn is_wanted(version: KernelVersion) -> bool {
    version == KernelVersion::V6_12
        && std::env::var_os(WANTED).is_some_and(|value| !value.is_empty())
}

/// The debug kernel: from the cache if it is there, else built, which takes
/// about 20 minutes on two processors.
pub(crate) fn obtain(cache: &Path) -> Result<Kernel> {
    let store = cache.join("kernels");
    let _lock = FileLock::acquire(&store.join(".debug-lock"))?;
    let package = apt::candidate(SOURCES)?;
    let Some(package) = package else {
        return Err(LabError::Unsupported(format!(
            "apt knows no {SOURCES}; enable Debian's security or backports archive and run apt-get update"
        )));
    };
    let root = store.join(format!("debug-{}", key(&package)));
    if !root.exists() {
        build(&package, &store, &root)?;
    }
    let release = fs::read_to_string(root.join("release")).context("reading", &root)?;
    Ok(Kernel::at(KernelVersion::V6_12, release.trim().to_owned(), root))
}

fn key(package: &Package) -> String {
    let mut hash = Sha256::new();
    for part in [RECIPE, &package.version, CONFIG] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()[..12].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn build(package: &Package, store: &Path, root: &Path) -> Result<()> {
    let missing = PACKAGES.iter().copied().filter(|package| !apt::is_installed(package));
    apt::install(&missing.map(str::to_owned).collect::<Vec<_>>())?;
    tracing::info!(version = package.version, "building the debug kernel; this takes a while");
    // 4 GiB, gone at the end.
    let work = cache::temporary_dir(store)?;
    for file in apt::download(std::slice::from_ref(package), work.path())? {
        command::output(Command::new("dpkg-deb").arg("--extract").arg(file).arg(work.path()))?;
    }
    let archive = work.path().join("usr/src").join(format!("{SOURCES}.tar.xz"));
    command::output(
        Command::new("tar").arg("--extract").arg("--file").arg(archive).current_dir(work.path()),
    )?;
    let tree = work.path().join(SOURCES);
    configure(&tree)?;
    let jobs = format!("-j{}", std::thread::available_parallelism().map_or(1, usize::from));
    command::output(make(&tree).args([&jobs, "bzImage", "modules"]))?;
    let pending = PendingDir::new(root)?;
    lay_out(&tree, pending.path())?;
    pending.publish()
}

/// A make in the kernel's tree that says the same on every host and day.
fn make(tree: &Path) -> Command {
    let mut make = Command::new("make");
    make.current_dir(tree)
        .env("LC_ALL", "C")
        .env("KBUILD_BUILD_TIMESTAMP", "2026-01-01")
        .env("KBUILD_BUILD_USER", "lab")
        .env("KBUILD_BUILD_HOST", "lab")
        // Settings of a make that runs the tests are not for this one.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL");
    make
}

/// What the file sets, without its comments.
fn settings() -> impl Iterator<Item = &'static str> {
    CONFIG.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn configure(tree: &Path) -> Result<()> {
    let path = tree.join(".config");
    command::output(make(tree).arg("tinyconfig"))?;
    let mut text = fs::read_to_string(&path).context("reading", &path)?;
    for line in settings() {
        text.push_str(line);
        text.push('\n');
    }
    fs::write(&path, text).context("writing", &path)?;
    command::output(make(tree).arg("olddefconfig"))?;
    let finished = fs::read_to_string(&path).context("reading", &path)?;
    let ignored: Vec<&str> = settings().filter(|line| !is_set(&finished, line)).collect();
    if ignored.is_empty() {
        Ok(())
    } else {
        Err(LabError::Unsupported(format!(
            "the kernel's configuration does not take {}: a dependency is missing in kernels/debug.config",
            ignored.join(", ")
        )))
    }
}

/// Whether a finished configuration has what a line asks for.
fn is_set(finished: &str, wanted: &str) -> bool {
    match wanted.strip_suffix("=n") {
        Some(name) => !finished.lines().any(|line| line.starts_with(&format!("{name}="))),
        None => finished.lines().any(|line| line == wanted),
    }
}

/// Puts what guests and modules need where [`Kernel`] looks for it.
fn lay_out(tree: &Path, root: &Path) -> Result<()> {
    let release = tree.join("include/config/kernel.release");
    let release = fs::read_to_string(&release).context("reading", &release)?;
    let release = release.trim();
    let boot = root.join("boot");
    let headers = root.join("usr/src").join(format!("linux-headers-{release}"));
    let modules = root.join("lib/modules").join(release);
    for folder in [&boot, &headers, &modules.join("kernel")] {
        fs::create_dir_all(folder).context("creating", folder)?;
    }
    let copies: [(&str, PathBuf); 4] = [
        ("arch/x86/boot/bzImage", boot.join(format!("vmlinuz-{release}"))),
        (".config", boot.join(format!("config-{release}"))),
        ("System.map", boot.join(format!("System.map-{release}"))),
        ("modules.builtin", modules.join("modules.builtin")),
    ];
    for (from, to) in copies {
        fs::copy(tree.join(from), &to).context("writing", &to)?;
    }
    // The kernel's own way to make a tree that modules can be built against.
    let install = format!(
        "KBUILD_RUN_COMMAND=+$(srctree)/scripts/package/install-extmod-build {}",
        headers.display()
    );
    command::output(make(tree).args(["run-command", &install]))?;
    let name = root.join("release");
    fs::write(&name, release).context("writing", &name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_well_formed_and_unique() {
        let mut names = std::collections::BTreeSet::new();
        for line in settings() {
            let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
            assert!(name.starts_with("CONFIG_") && !value.is_empty(), "{line}");
            assert!(names.insert(name), "{name} twice");
        }
        for name in ["KASAN", "PROVE_LOCKING", "DEBUG_ATOMIC_SLEEP", "DEBUG_KMEMLEAK", "FAILSLAB"] {
            assert!(names.contains(format!("CONFIG_{name}").as_str()), "{name}");
        }
    }

    #[test]
    fn what_the_configuration_lacks_is_noticed() {
        let finished = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x\"\n";
        for (line, set) in [
            ("CONFIG_A=y", true),
            ("CONFIG_A=n", false),
            ("CONFIG_B=n", true),
            ("CONFIG_B=y", false),
            ("CONFIG_C=\"x\"", true),
            ("CONFIG_D=n", true),
            ("CONFIG_D=y", false),
        ] {
            assert_eq!(is_set(finished, line), set, "{line}");
        }
    }

    #[test]
    fn the_key_follows_the_sources() {
        let package = |version: &str| Package { name: SOURCES.into(), version: version.into() };
        assert_ne!(key(&package("6.12.1-1")), key(&package("6.12.2-1")));
        assert_eq!(key(&package("6.12.1-1")), key(&package("6.12.1-1")));
    }
}

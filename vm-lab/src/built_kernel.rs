//! Kernels that the lab builds itself, from the sources that Debian's 6.12 comes from,
//! with little more than the lab's guests need: once for each version of sources,
//! configuration and patches.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::apt::{self, Package};
use crate::cache::{self, FileLock, PendingDir};
use crate::command;
use crate::error::{Context, LabError, Result};
use crate::kernels::{Kernel, KernelVersion};

/// Names the kernel that guests of the 6.12 line boot: `stock` or a [`Variant`].
const WANTED: &str = "UB_LAB_KERNEL";

/// The package with the sources.
const SOURCES: &str = "linux-source-6.12";

/// Merged over `make tinyconfig` for every variant.
const COMMON_CONFIG: &str = include_str!("../kernels/common.config");

/// Name and text of a file in `kernel-patch/linux-6.12`.
macro_rules! patch {
    ($name:literal) => {
        ($name, include_str!(concat!("../../kernel-patch/linux-6.12/", $name)))
    };
}
/// The series that gives the module proper hooks, in order.
const PATCHES: [(&str, &str); 4] = [
    patch!("0001-entry-Offer-the-system-calls-of-marked-tasks-to-a-mo.patch"),
    patch!("0002-extable-Add-exception-tables-for-code-made-at-run-ti.patch"),
    patch!("0003-execmem-Add-memory-for-translated-user-code.patch"),
    patch!("0004-userspace-bypass-Export-what-a-ride-has-to-do-as-use.patch"),
];

/// Changes whenever kernels must be built again although all that they are made of is the same.
const RECIPE: &str = "1";

/// What the kernel's build uses beyond the lab's own prerequisites.
const PACKAGES: [&str; 6] = ["bc", "bison", "flex", "libelf-dev", "patch", "xz-utils"];

/// A kernel of the 6.12 line that the lab builds itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Looks for mistakes in itself and in modules: KASAN, lockdep, sleeping in
    /// atomic sections, kmemleak, fault injection.
    Debug,
    /// With the patches of `kernel-patch/linux-6.12`.
    InTree,
}

impl Variant {
    const ALL: [Self; 2] = [Self::Debug, Self::InTree];

    /// As in the environment variable and in names of files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::InTree => "in-tree",
        }
    }

    /// How many times slower than a stock kernel it may be.
    pub(crate) fn slowness(self) -> u32 {
        match self {
            Self::Debug => 6,
            Self::InTree => 1,
        }
    }

    /// The memory that it needs for what needs `stock` MiB on a stock kernel.
    pub(crate) fn memory_mib(self, stock: u32) -> u32 {
        match self {
            // KASAN keeps a byte for every eight, and pages longer.
            Self::Debug => stock.max(1024) * 2,
            Self::InTree => stock,
        }
    }

    /// Whether it boots every time with five levels of page tables.
    pub(crate) fn takes_five_levels(self) -> bool {
        match self {
            // `identify_cpu()` forgets for a moment that there are five: KASAN calls what an
            // interrupt touches meanwhile a wild access.
            Self::Debug => false,
            Self::InTree => true,
        }
    }

    /// The file of its own in `kernels/`.
    fn config(self) -> &'static str {
        match self {
            Self::Debug => include_str!("../kernels/debug.config"),
            Self::InTree => include_str!("../kernels/in-tree.config"),
        }
    }

    fn patches(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Debug => &[],
            Self::InTree => &PATCHES,
        }
    }

    /// What the configuration sets, without comments.
    fn settings(self) -> impl Iterator<Item = &'static str> {
        [COMMON_CONFIG, self.config()]
            .into_iter()
            .flat_map(str::lines)
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
    }

    /// The kernel: from the cache if it is there, else built, which takes up to
    /// 20 minutes on two processors.
    pub(crate) fn obtain(self, cache: &Path) -> Result<Kernel> {
        let store = cache.join("kernels");
        let _lock = FileLock::acquire(&store.join(format!(".{}-lock", self.name())))?;
        let package = apt::candidate(SOURCES)?;
        let Some(package) = package else {
            return Err(LabError::Unsupported(format!(
                "apt knows no {SOURCES}; enable Debian's security or backports archive and run apt-get update"
            )));
        };
        let root = store.join(format!("{}-{}", self.name(), self.key(&package)));
        if !root.exists() {
            self.build(&package, &store, &root)?;
        }
        let release = fs::read_to_string(root.join("release")).context("reading", &root)?;
        Ok(Kernel::at(KernelVersion::V6_12, release.trim().to_owned(), root))
    }

    fn key(self, package: &Package) -> String {
        let mut hash = Sha256::new();
        let patches = self.patches().iter().flat_map(|(name, text)| [*name, *text]);
        for part in
            [RECIPE, &package.version, COMMON_CONFIG, self.config()].into_iter().chain(patches)
        {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize()[..12].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn build(self, package: &Package, store: &Path, root: &Path) -> Result<()> {
        let missing = PACKAGES.iter().copied().filter(|package| !apt::is_installed(package));
        apt::install(&missing.map(str::to_owned).collect::<Vec<_>>())?;
        tracing::info!(
            variant = self.name(),
            version = package.version,
            "building a kernel; this takes a while"
        );
        // 4 GiB, gone at the end.
        let work = cache::temporary_dir(store)?;
        for file in apt::download(std::slice::from_ref(package), work.path())? {
            command::output(Command::new("dpkg-deb").arg("--extract").arg(file).arg(work.path()))?;
        }
        let archive = work.path().join("usr/src").join(format!("{SOURCES}.tar.xz"));
        command::output(
            Command::new("tar")
                .arg("--extract")
                .arg("--file")
                .arg(archive)
                .current_dir(work.path()),
        )?;
        let tree = work.path().join(SOURCES);
        self.patch(&tree)?;
        self.configure(&tree)?;
        let jobs = format!("-j{}", std::thread::available_parallelism().map_or(1, usize::from));
        command::output(make(&tree).args([&jobs, "bzImage", "modules"]))?;
        let pending = PendingDir::new(root)?;
        lay_out(&tree, pending.path())?;
        pending.publish()
    }

    fn patch(self, tree: &Path) -> Result<()> {
        for (name, text) in self.patches() {
            let file = tree.join(name);
            fs::write(&file, text).context("writing", &file)?;
            command::output(
                Command::new("patch")
                    .args(["--strip=1", "--fuzz=0", "--forward", "--batch", "--input", name])
                    .current_dir(tree),
            )?;
        }
        Ok(())
    }

    fn configure(self, tree: &Path) -> Result<()> {
        let path = tree.join(".config");
        command::output(make(tree).arg("tinyconfig"))?;
        let mut text = fs::read_to_string(&path).context("reading", &path)?;
        for line in self.settings() {
            text.push_str(line);
            text.push('\n');
        }
        fs::write(&path, text).context("writing", &path)?;
        command::output(make(tree).arg("olddefconfig"))?;
        let finished = fs::read_to_string(&path).context("reading", &path)?;
        let ignored: Vec<&str> = self.settings().filter(|line| !is_set(&finished, line)).collect();
        if ignored.is_empty() {
            Ok(())
        } else {
            Err(LabError::Unsupported(format!(
                "the kernel's configuration does not take {}: a dependency is missing in kernels/*.config",
                ignored.join(", ")
            )))
        }
    }
}

/// The kernel that the environment asks for in place of the stock one, if any.
///
/// # Errors
/// [`LabError::Setup`] for a name that is none.
pub(crate) fn wanted() -> Result<Option<Variant>> {
    parse(&std::env::var_os(WANTED).unwrap_or_default().to_string_lossy())
}

fn parse(name: &str) -> Result<Option<Variant>> {
    if matches!(name, "" | "stock") {
        return Ok(None);
    }
    let variant = Variant::ALL.into_iter().find(|variant| variant.name() == name);
    variant.map(Some).ok_or_else(|| {
        LabError::Setup(format!("{WANTED}={name}: it may be stock, debug or in-tree"))
    })
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
        for (variant, wanted) in [
            (
                Variant::Debug,
                &["KASAN", "PROVE_LOCKING", "DEBUG_ATOMIC_SLEEP", "DEBUG_KMEMLEAK", "FAILSLAB"][..],
            ),
            (Variant::InTree, &["USERSPACE_BYPASS"]),
        ] {
            let mut names = std::collections::BTreeSet::new();
            for line in variant.settings() {
                let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
                assert!(name.starts_with("CONFIG_") && !value.is_empty(), "{line}");
                assert!(names.insert(name), "{name} twice");
            }
            for name in wanted {
                assert!(names.contains(format!("CONFIG_{name}").as_str()), "{name}");
            }
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
    fn the_key_follows_sources_and_variant() {
        let package = |version: &str| Package { name: SOURCES.into(), version: version.into() };
        let first = Variant::Debug.key(&package("6.12.1-1"));
        assert_eq!(Variant::Debug.key(&package("6.12.1-1")), first);
        assert_ne!(Variant::Debug.key(&package("6.12.2-1")), first);
        assert_ne!(Variant::InTree.key(&package("6.12.1-1")), first);
    }

    #[test]
    fn every_patch_of_the_folder_is_applied_in_order() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel-patch/linux-6.12");
        let mut files: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
            .filter(|name| name.ends_with(".patch"))
            .collect();
        files.sort();
        assert_eq!(files, PATCHES.map(|(name, _)| name));
    }

    #[test]
    fn unknown_kernels_are_refused() {
        assert_eq!(parse("").unwrap(), None);
        assert_eq!(parse("stock").unwrap(), None);
        for variant in Variant::ALL {
            assert_eq!(parse(variant.name()).unwrap(), Some(variant));
        }
        assert!(matches!(parse("intree"), Err(LabError::Setup(_))));
    }
}

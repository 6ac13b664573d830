//! Debian's stock cloud kernels: finding, fetching, unpacking.
//!
//! Packages are unpacked into the cache folder, never installed, so the host's own boot
//! files stay as they are. The headers packages expect to live below `/usr/src`;
//! their makefiles are re-pointed to the unpacked copy.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::apt::{self, Package};
use crate::cache::{self, FileLock, PendingDir};
use crate::command;
use crate::error::{Context, LabError, Result};

/// A line of stock kernels that the lab knows how to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum KernelVersion {
    /// Debian 12's own kernel.
    #[serde(rename = "6.1")]
    V6_1,
    /// Debian 13's kernel, also built for Debian 12.
    #[serde(rename = "6.12")]
    V6_12,
}

impl KernelVersion {
    /// All known lines.
    pub const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// Major and minor version, as in `6.12`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KernelVersion {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            LabError::Unsupported(format!(
                "kernel {text}: the lab has {}",
                Self::ALL.map(Self::as_str).join(" and ")
            ))
        })
    }
}

/// A stock kernel, unpacked in the cache.
#[derive(Debug, Clone)]
pub struct Kernel {
    version: KernelVersion,
    release: String,
    root: PathBuf,
}

impl Kernel {
    /// The newest kernel of a line: from the cache if it is there, else from
    /// Debian's archive. Without network the newest one in the cache is used.
    ///
    /// # Errors
    /// [`LabError::Unsupported`] when the configured archives have no such kernel,
    /// [`LabError::Command`] when apt or dpkg fails and nothing is cached.
    pub(crate) fn obtain(version: KernelVersion, cache: &Path) -> Result<Self> {
        let store = cache.join("kernels");
        let cached = newest(cached_releases(&store)?, version);
        if let Some(release) = cached.as_deref().and_then(|_| known_newest(&store, version))
            && store.join(&release).exists()
        {
            return Ok(Self { version, root: store.join(&release), release });
        }
        if cached.is_none() && (apt::lists_are_stale() || available(version)?.is_none()) {
            // Old lists may still do, for example without root or network.
            if let Err(error) = apt::update() {
                tracing::warn!(%error, "using the package lists as they are");
            }
        }
        let release = match (available(version)?, cached) {
            (Some(available), Some(cached)) if sort_key(&available) > sort_key(&cached) => {
                if let Err(error) = fetch(&available, &store) {
                    tracing::warn!(%error, %available, %cached, "fetching failed, using the cached kernel");
                    // Not remembered: the next call tries again.
                    return Ok(Self { version, root: store.join(&cached), release: cached });
                }
                available
            }
            (_, Some(cached)) => cached,
            (Some(available), None) => {
                fetch(&available, &store)?;
                available
            }
            (None, None) => {
                return Err(LabError::Unsupported(format!(
                    "apt knows no linux-image-{version}*-cloud-amd64; enable Debian's security or backports archive and run apt-get update"
                )));
            }
        };
        remember_newest(&store, version, &release);
        let root = store.join(&release);
        Ok(Self { version, release, root })
    }

    /// A kernel that was laid out below `root` as Debian's packages would be.
    pub(crate) fn at(version: KernelVersion, release: String, root: PathBuf) -> Self {
        Self { version, release, root }
    }

    /// The line this kernel belongs to.
    pub fn version(&self) -> KernelVersion {
        self.version
    }

    /// What `uname -r` says in the guest.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Tells kernels of the same release apart that were built from different patches.
    pub(crate) fn identity(&self) -> String {
        self.root.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The bootable image.
    pub fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The kernel's configuration file.
    pub fn config(&self) -> PathBuf {
        self.root.join("boot").join(format!("config-{}", self.release))
    }

    /// The tree to build modules against (`make -C`).
    pub fn headers(&self) -> PathBuf {
        self.root.join("usr/src").join(format!("linux-headers-{}", self.release))
    }

    /// The kernel's own modules (`/lib/modules/RELEASE`).
    pub fn modules_dir(&self) -> PathBuf {
        let merged = self.root.join("usr/lib/modules").join(&self.release);
        if merged.exists() { merged } else { self.root.join("lib/modules").join(&self.release) }
    }
}

/// `6.12.117+deb12-cloud-amd64` as `[6, 12, 117, 12, 64]`: orders releases of
/// one line by age.
fn sort_key(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Whether a release is an ordinary cloud kernel of the line.
fn belongs(release: &str, version: KernelVersion) -> bool {
    release
        .strip_suffix("-cloud-amd64")
        .and_then(|numbers| numbers.strip_prefix(version.as_str()))
        .is_some_and(|rest| rest.starts_with('.') && !rest.contains("~") && !rest.contains("rc"))
}

fn newest(releases: Vec<String>, version: KernelVersion) -> Option<String> {
    releases
        .into_iter()
        .filter(|release| belongs(release, version))
        .max_by_key(|release| sort_key(release))
}

fn cached_releases(store: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(store) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context("reading", store)?,
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// The newest release of the line whose image and headers apt can get.
fn available(version: KernelVersion) -> Result<Option<String>> {
    let prefix = format!("linux-image-{version}.");
    let mut releases: Vec<String> = apt::names(&prefix)?
        .iter()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .filter(|release| belongs(release, version))
        .map(str::to_owned)
        .collect();
    releases.sort_by_key(|release| std::cmp::Reverse(sort_key(release)));
    for release in releases {
        let image = apt::candidate(&format!("linux-image-{release}"))?;
        let headers = apt::candidate(&format!("linux-headers-{release}"))?;
        if image.is_some() && headers.is_some() {
            return Ok(Some(release));
        }
    }
    Ok(None)
}

/// Which release was the newest, as long as apt's lists do not change: asking
/// apt takes seconds.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    lists_changed: SystemTime,
    release: String,
}

fn known_path(store: &Path, version: KernelVersion) -> PathBuf {
    store.join(format!(".newest-{version}.json"))
}

fn known_newest(store: &Path, version: KernelVersion) -> Option<String> {
    let text = fs::read(known_path(store, version)).ok()?;
    let known: Known = serde_json::from_slice(&text).ok()?;
    (known.lists_changed == apt::lists_changed()?).then_some(known.release)
}

/// Failing to remember only costs time.
fn remember_newest(store: &Path, version: KernelVersion, release: &str) {
    let Some(lists_changed) = apt::lists_changed() else { return };
    let known = Known { lists_changed, release: release.to_owned() };
    let saved = serde_json::to_vec(&known)
        .map_err(std::io::Error::from)
        .and_then(|text| cache::write_whole(&known_path(store, version), &text));
    if let Err(error) = saved {
        tracing::warn!(%error, "cannot remember the newest kernel");
    }
}

/// Downloads and unpacks a release into the store.
fn fetch(release: &str, store: &Path) -> Result<()> {
    let _lock = FileLock::acquire(&store.join(".lock"))?;
    let destination = store.join(release);
    if destination.exists() {
        return Ok(());
    }
    cache::remove_leftovers(store)?;
    tracing::info!(release, "fetching the kernel's packages");
    let pending = PendingDir::new(&destination)?;
    let downloads = cache::temporary_dir(store)?;
    let packages = packages(release)?;
    let files = apt::download(&packages, downloads.path()).or_else(|error| {
        // The lists may name packages that the archive has replaced.
        apt::update().map_err(|_| error)?;
        apt::download(&packages, downloads.path())
    })?;
    for file in files {
        command::output(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(pending.path()))?;
    }
    repoint_headers(pending.path(), release)?;
    pending.publish()
}

/// Image, headers, and what the headers refer to.
fn packages(release: &str) -> Result<Vec<Package>> {
    let wanted = |name: String| {
        apt::candidate(&name)?
            .ok_or_else(|| LabError::Unsupported(format!("apt cannot get {name}")))
    };
    let image = wanted(format!("linux-image-{release}"))?;
    let headers = wanted(format!("linux-headers-{release}"))?;
    let mut packages = vec![image];
    for name in apt::dependencies(&headers)? {
        if name.starts_with("linux-headers-") || name.starts_with("linux-kbuild-") {
            packages.push(wanted(name)?);
        }
    }
    packages.push(headers);
    Ok(packages)
}

/// Replaces absolute paths below /usr/src in the makefiles of the unpacked
/// headers by paths relative to the makefile itself.
fn repoint_headers(root: &Path, release: &str) -> Result<()> {
    let makefile = root.join("usr/src").join(format!("linux-headers-{release}")).join("Makefile");
    let text = fs::read_to_string(&makefile).context("reading", &makefile)?;
    let relative =
        text.replace("include /usr/src/", "include $(dir $(lastword $(MAKEFILE_LIST)))../");
    if relative.contains("/usr/src/") || relative == text {
        return Err(LabError::Unsupported(format!(
            "the headers package of {release} is laid out in a way the lab does not know"
        )));
    }
    fs::write(&makefile, relative).context("writing", &makefile)
}

/// The compiler that built the kernel, as its configuration names it.
pub(crate) fn compiler(kernel: &Kernel) -> Result<String> {
    let config = kernel.config();
    let text = fs::read_to_string(&config).context("reading", &config)?;
    text.lines()
        .find_map(|line| line.strip_prefix("CONFIG_CC_VERSION_TEXT=\""))
        .and_then(|value| value.split_whitespace().next())
        .map(str::to_owned)
        .ok_or_else(|| LabError::Unsupported(format!("{} names no compiler", config.display())))
}

/// The Debian package of a compiler such as `x86_64-linux-gnu-gcc-12`.
pub(crate) fn compiler_package(compiler: &str) -> &str {
    compiler.strip_prefix("x86_64-linux-gnu-").unwrap_or(compiler)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn releases(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn newest_compares_numbers_not_text() {
        let names = releases(&[
            "6.12.9+deb12-cloud-amd64",
            "6.12.117+deb12-cloud-amd64",
            "6.12.22+bpo-cloud-amd64",
            "6.1.0-56-cloud-amd64",
            "6.1.0-9-cloud-amd64",
        ]);
        assert_eq!(
            newest(names.clone(), KernelVersion::V6_12).unwrap(),
            "6.12.117+deb12-cloud-amd64"
        );
        assert_eq!(newest(names, KernelVersion::V6_1).unwrap(), "6.1.0-56-cloud-amd64");
    }

    #[test]
    fn other_flavours_lines_and_leftovers_do_not_belong() {
        for name in [
            "6.12.117+deb12-cloud-amd64-unsigned",
            "6.12.117+deb12-cloud-amd64-dbg",
            "6.12.117+deb12-amd64",
            "6.12.117+deb12-cloud-arm64",
            "6.120.1-cloud-amd64",
            "6.1.0-56-cloud-amd64",
            ".incomplete-abc",
            ".lock",
        ] {
            assert!(!belongs(name, KernelVersion::V6_12), "{name}");
        }
        assert!(belongs("6.12.117+deb12-cloud-amd64", KernelVersion::V6_12));
    }

    #[test]
    fn versions_parse_back() {
        for version in KernelVersion::ALL {
            assert_eq!(version.to_string().parse::<KernelVersion>().unwrap(), version);
        }
        let error = "5.10".parse::<KernelVersion>().unwrap_err();
        assert!(matches!(error, LabError::Unsupported(_)), "{error}");
    }

    #[test]
    fn headers_are_repointed_once_and_only_if_understood() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("usr/src/linux-headers-6.1.0-1-cloud-amd64");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("Makefile"), "include /usr/src/linux-headers-6.1.0-1-common/Makefile\n")
            .unwrap();
        repoint_headers(root.path(), "6.1.0-1-cloud-amd64").unwrap();
        let text = fs::read_to_string(dir.join("Makefile")).unwrap();
        assert_eq!(
            text,
            "include $(dir $(lastword $(MAKEFILE_LIST)))../linux-headers-6.1.0-1-common/Makefile\n"
        );
        let error = repoint_headers(root.path(), "6.1.0-1-cloud-amd64").unwrap_err();
        assert!(matches!(error, LabError::Unsupported(_)), "{error}");
    }

    #[test]
    fn compilers_map_to_packages() {
        assert_eq!(compiler_package("x86_64-linux-gnu-gcc-12"), "gcc-12");
        assert_eq!(compiler_package("gcc-12"), "gcc-12");
    }
}

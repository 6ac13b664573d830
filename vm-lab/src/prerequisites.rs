//! What the host must have.

use std::env;
use std::path::{Path, PathBuf};

use crate::apt;
use crate::error::{LabError, Result};

/// Programs the lab runs, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("make", "make"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("xz", "xz-utils"),
    ("perl", "perl"),
];

/// Further packages: libraries of the kernel's build tools (objtool).
const LIBRARIES: [&str; 1] = ["libelf-dev"];

/// Makes sure that the host has everything the lab runs, and installs
/// missing Debian packages when running as root.
///
/// The compiler that a kernel's modules need is not known here; building a
/// module installs it the same way.
///
/// # Errors
/// [`LabError::Unsupported`] on anything but a Debian system on x86-64;
/// [`LabError::Setup`] naming the missing packages when not root;
/// [`LabError::Command`] when apt fails.
pub fn prerequisites() -> Result<()> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(LabError::Unsupported(
            "the lab boots x86-64 kernels and needs an x86-64 host".into(),
        ));
    }
    for tool in ["apt-get", "apt-cache", "dpkg-deb", "dpkg-query"] {
        if find_program(tool).is_none() {
            return Err(LabError::Unsupported(format!(
                "`{tool}` not found: the lab gets its kernels from Debian's package archive and needs a Debian host"
            )));
        }
    }
    let programs = PROGRAMS
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package);
    let libraries = LIBRARIES.iter().copied().filter(|package| !apt::is_installed(package));
    let missing: Vec<String> = programs.chain(libraries).map(str::to_owned).collect();
    apt::install(&missing)
}

/// Finds an executable file as a shell would, also in the folders for administrators.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        let path = Path::new(name);
        return is_executable(path).then(|| path.to_owned());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    // The sbin folders are not in every user's path.
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}

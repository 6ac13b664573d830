//! Why BPF cannot be used.

use std::fs;
use std::io;

use aya::maps::MapError;
use aya::{Btf, EbpfError};

/// Why BPF cannot be used on this machine, or not by this user.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// Neither root nor the capabilities.
    #[error(
        "no permission to use BPF: run as root, or with CAP_BPF and CAP_PERFMON (a container needs \
         both added)"
    )]
    NoPermission,
    /// The kernel does not describe its types.
    #[error(
        "the kernel does not describe its types in /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF): {0}"
    )]
    NoBtf(aya::BtfError),
    /// The kernel has BPF, and something in it does not suit this program.
    #[error("the kernel does not take the BPF programs: {0}")]
    Refused(String),
}

impl Unavailable {
    pub(crate) fn from_error(error: impl std::error::Error + 'static) -> Self {
        let mut text = briefly(&error.to_string());
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(cause) = next {
            let errno = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            if matches!(errno, Some(libc::EPERM | libc::EACCES)) && !may_use_bpf() {
                return Self::NoPermission;
            }
            let line = briefly(&cause.to_string());
            if !text.contains(&line) {
                text = format!("{text}: {line}");
            }
            next = cause.source();
        }
        Self::Refused(text)
    }
}

/// One line of what may be pages of the kernel's verifier: the first line,
/// and the last one that says something about the program.
fn briefly(text: &str) -> String {
    const STATISTICS: [&str; 3] = ["verification time", "stack depth", "processed"];
    let first = text.lines().next().unwrap_or_default();
    let first = first.split(". Verifier output").next().unwrap_or(first);
    let says = |line: &&str| !line.is_empty() && !STATISTICS.iter().any(|s| line.starts_with(s));
    match text.lines().skip(1).filter(says).last() {
        Some(last) => format!("{first}: {last}"),
        None => first.to_owned(),
    }
}

/// Whether this process has both capabilities, or the one that includes them.
pub(crate) fn may_use_bpf() -> bool {
    const SYS_ADMIN: u32 = 21;
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;

    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let has = |capability: u32| effective & 1 << capability != 0;
    has(SYS_ADMIN) || (has(BPF) && has(PERFMON))
}

/// What the kernel says of its types.
///
/// # Errors
/// See [`Unavailable`].
pub(crate) fn kernel_types() -> Result<Btf, Unavailable> {
    if !may_use_bpf() {
        return Err(Unavailable::NoPermission);
    }
    Btf::from_sys_fs().map_err(Unavailable::NoBtf)
}

/// The object is part of this program, so this is a mistake in it.
pub(crate) fn missing(name: &str) -> Unavailable {
    Unavailable::Refused(format!("bug: the BPF object has no {name}"))
}

impl From<EbpfError> for Unavailable {
    fn from(error: EbpfError) -> Self {
        Self::from_error(error)
    }
}

impl From<MapError> for Unavailable {
    fn from(error: MapError) -> Self {
        Self::from_error(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_verifier_says_fits_on_a_line() {
        let text = "load failed. Verifier output: 0: R1=ctx()\n; code\nR5 unbounded\n\
                    verification time 2 usec\nprocessed 47 insns\n";
        assert_eq!(briefly(text), "load failed: R5 unbounded");
        assert_eq!(briefly("no such thing"), "no such thing");
    }
}

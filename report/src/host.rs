//! What kind of machine this is: the facts that label every figure.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The facts without which a figure means nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// What executes the instructions: `bare-metal`, `kvm`, `tcg`, `xen`,
    /// `hyperv`, `vmware`, or `unknown-hypervisor`.
    pub accelerator: String,
    /// `uname -r`.
    pub kernel: String,
    /// `uname -v`.
    pub kernel_build: String,
    /// Model name of the CPU.
    pub cpu: String,
    /// Whether user space runs on its own page tables; `None` if unknown.
    pub kpti: Option<bool>,
    /// `/sys/devices/system/cpu/vulnerabilities`, by file name.
    pub mitigations: BTreeMap<String, String>,
}

impl Environment {
    /// Asks this machine. Facts that it does not tell are left empty.
    #[must_use]
    pub fn detect() -> Self {
        let uname = nix::sys::utsname::uname().ok();
        let text = |part: Option<&std::ffi::OsStr>| {
            part.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let cpu = CpuInfo::read();
        let mitigations = read_mitigations();
        Self {
            accelerator: accelerator().to_owned(),
            kernel: text(uname.as_ref().map(|u| u.release())),
            kernel_build: text(uname.as_ref().map(|u| u.version())),
            kpti: kpti(&cpu, &mitigations),
            cpu: cpu.model,
            mitigations,
        }
    }
}

/// The name of full emulation in [`Environment::accelerator`].
pub const EMULATED: &str = "tcg";

impl Environment {
    /// The four facts without which a figure means nothing, in one line.
    #[must_use]
    pub fn facts(&self) -> String {
        let kpti = match self.kpti {
            Some(true) => "on",
            Some(false) => "off",
            None => "unknown",
        };
        let Self { accelerator, kernel, cpu, .. } = self;
        format!("{cpu}, {accelerator}, kernel {kernel}, KPTI {kpti}")
    }

    /// Whether times say nothing about real hardware.
    #[must_use]
    pub fn emulated(&self) -> bool {
        self.accelerator == EMULATED
    }
}

/// The first processor of `/proc/cpuinfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuInfo {
    /// `model name`.
    pub model: String,
    /// `flags`: what the kernel found and did not turn off.
    pub flags: Vec<String>,
    /// `bugs`: the hardware's, whether worked around or not.
    pub bugs: Vec<String>,
}

impl CpuInfo {
    /// Reads this machine's; empty where there is no `/proc`.
    #[must_use]
    pub fn read() -> Self {
        fs::read_to_string("/proc/cpuinfo").map_or_else(|_| Self::default(), |t| Self::parse(&t))
    }

    fn parse(text: &str) -> Self {
        let field = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim())
        };
        let words = |name: &str| {
            field(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
        };
        Self {
            model: field("model name").unwrap_or_default().to_owned(),
            flags: words("flags"),
            bugs: words("bugs"),
        }
    }

    /// Whether the flag `name` is there.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.flags.iter().any(|flag| flag == name)
    }
}

fn kpti(cpu: &CpuInfo, mitigations: &BTreeMap<String, String>) -> Option<bool> {
    if cpu.has("pti") {
        return Some(true);
    }
    match mitigations.get("meltdown") {
        Some(text) => Some(text.contains("PTI")),
        None if cpu.flags.is_empty() => None,
        None => Some(false),
    }
}

fn read_mitigations() -> BTreeMap<String, String> {
    let Ok(dir) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return BTreeMap::new();
    };
    dir.filter_map(|entry| {
        let entry = entry.ok()?;
        let text = fs::read_to_string(entry.path()).ok()?;
        Some((entry.file_name().to_string_lossy().into_owned(), text.trim().to_owned()))
    })
    .collect()
}

/// What the hypervisor leaf of CPUID says. The first twelve bytes of the
/// signature are registered by convention between the vendors.
fn accelerator() -> &'static str {
    use std::arch::x86_64::__cpuid;

    const HYPERVISOR_PRESENT: u32 = 1 << 31;
    if __cpuid(1).ecx & HYPERVISOR_PRESENT == 0 {
        return "bare-metal";
    }
    let leaf = __cpuid(0x4000_0000);
    let mut signature = [0; 12];
    for (bytes, register) in signature.chunks_exact_mut(4).zip([leaf.ebx, leaf.ecx, leaf.edx]) {
        bytes.copy_from_slice(&register.to_le_bytes());
    }
    match &signature {
        b"KVMKVMKVM\0\0\0" => "kvm",
        b"TCGTCGTCGTCG" => EMULATED,
        b"XenVMMXenVMM" => "xen",
        b"Microsoft Hv" => "hyperv",
        b"VMwareVMware" => "vmware",
        _ => "unknown-hypervisor",
    }
}

/// `/proc/PID/status` of a process or a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessStatus(String);

impl ProcessStatus {
    /// Reads that of the process or thread `id`; `None` if it has gone.
    #[must_use]
    pub fn read(id: u32) -> Option<Self> {
        // Names of programs need not be text.
        let bytes = fs::read(format!("/proc/{id}/status")).ok()?;
        Some(Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// Takes what was read from there.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The value of the field `name`, if it is there and can be understood.
    #[must_use]
    pub fn field<T: FromStr>(&self, name: &str) -> Option<T> {
        let value = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value?.trim().parse().ok()
    }
}

/// A file's text without surrounding white space, if it can be read.
#[must_use]
pub fn read_line(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuinfo_of_the_first_processor_counts() {
        let info = CpuInfo::parse(
            "processor\t: 0\nmodel name\t: A B\nflags\t\t: fpu smap pti\n\nprocessor\t: 1\n\
             model name\t: C\nflags\t\t: x\n",
        );
        assert_eq!(info.model, "A B");
        assert!(info.has("smap") && info.has("pti") && !info.has("x") && !info.has("sma"));
    }

    #[test]
    fn page_table_isolation_is_read_from_either_place() {
        let with = CpuInfo { flags: vec!["pti".into()], ..Default::default() };
        let without = CpuInfo { flags: vec!["fpu".into()], ..Default::default() };
        let said = |text: &str| BTreeMap::from([("meltdown".to_owned(), text.to_owned())]);
        assert_eq!(kpti(&with, &BTreeMap::new()), Some(true));
        assert_eq!(kpti(&without, &said("Mitigation: PTI")), Some(true));
        assert_eq!(kpti(&without, &said("Not affected")), Some(false));
        assert_eq!(kpti(&CpuInfo::default(), &BTreeMap::new()), None);
    }

    #[test]
    fn fields_of_a_status_are_found_by_their_whole_name() {
        let status = ProcessStatus::parse("Name:\tPPid: 9\nSeccomp_filters:\t9\nSeccomp:\t2\n");
        assert_eq!(status.field("Seccomp"), Some(2));
        assert_eq!(status.field::<String>("Name").as_deref(), Some("PPid: 9"));
        assert_eq!((status.field::<u32>("PPid"), status.field::<u32>("Name")), (None, None));
        let own = ProcessStatus::read(std::process::id()).unwrap();
        assert_eq!(own.field("Tgid"), Some(std::process::id()));
        assert_eq!(ProcessStatus::read(0), None);
    }

    #[test]
    fn this_machine_has_a_kernel() {
        let environment = Environment::detect();
        assert!(!environment.kernel.is_empty() && !environment.accelerator.is_empty());
    }
}

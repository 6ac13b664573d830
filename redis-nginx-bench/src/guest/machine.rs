//! The facts that label every figure.

use std::collections::BTreeMap;
use std::fs;

use crate::outcome::Machine;
use crate::{Error, Result};

/// Describes the machine this runs on.
///
/// # Errors
/// If `/proc` is not mounted.
pub fn machine() -> Result<Machine> {
    let cpuinfo =
        fs::read_to_string("/proc/cpuinfo").map_err(Error::io("reading /proc/cpuinfo"))?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_err(Error::io("reading the kernel's release"))?;
    Ok(Machine {
        kernel: kernel.trim().to_owned(),
        cpu: field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, Into::into),
        kpti: kpti(&cpuinfo),
        vulnerabilities: vulnerabilities(),
    })
}

/// The flag "pti", not the Meltdown line in `/sys`: that one says "Not
/// affected" on a CPU without the bug even when isolation is forced on.
fn kpti(cpuinfo: &str) -> Option<bool> {
    field(cpuinfo, "flags").map(|flags| flags.split_whitespace().any(|flag| flag == "pti"))
}

fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

/// Empty where `/sys` is not mounted.
fn vulnerabilities() -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return BTreeMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let state = fs::read_to_string(entry.path()).ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), state.trim().to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str =
        "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu vme pti\n";

    #[test]
    fn fields_of_cpuinfo() {
        assert_eq!(field(CPUINFO, "model name"), Some("Some CPU @ 2 GHz"));
        assert_eq!(field(CPUINFO, "bogomips"), None);
        assert_eq!(kpti(CPUINFO), Some(true));
        assert_eq!(kpti("flags : fpu ptix"), Some(false));
        assert_eq!(kpti(""), None);
    }

    #[test]
    fn this_machine_has_a_name_and_a_kernel() {
        let machine = machine().unwrap();
        assert!(!machine.kernel.is_empty() && machine.cpus > 0);
        assert!(machine.kpti.is_some());
    }
}

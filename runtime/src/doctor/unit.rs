//! Whether a unit of systemd can ride, and what in it has a say in that.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use super::{Check, State};
use crate::cgroup;
use crate::host::ProcessStatus;

/// Where the control groups are that systemd names.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Settings that keep `ub run` from working inside a unit, with the values that do
/// not. They are no concern of a supervisor that attaches from outside.
const HARDENING: [(&str, &[&str]); 8] = [
    ("User", &["", "root"]),
    ("PrivateDevices", &["no"]),
    ("DevicePolicy", &["auto"]),
    ("NoExecPaths", &[""]),
    ("RootDirectory", &[""]),
    ("MemoryDenyWriteExecute", &["no"]),
    ("SystemCallFilter", &[""]),
    ("RestrictAddressFamilies", &[""]),
];

/// What was found about a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unit {
    /// Its name as given, without `.service`.
    pub name: String,
    /// What was looked at.
    pub checks: Vec<Check>,
}

/// What matters about one process of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Process {
    pid: u32,
    /// `Seccomp` in its status: 0 none, 1 strict, 2 filter.
    seccomp: u32,
    /// Who traces it, or 0.
    tracer: u32,
    is_32_bit: bool,
}

impl Unit {
    /// Asks systemd about the service `name`, and looks at its processes.
    #[must_use]
    pub fn look(name: &str) -> Self {
        let name = name.strip_suffix(".service").unwrap_or(name);
        let properties = match show(name) {
            Ok(properties) => properties,
            Err(why) => {
                let check = Check::new("unit", State::Blocks, why)
                    .remedy("attach to processes instead: `ub attach PID`");
                return Self { name: name.to_owned(), checks: vec![check] };
            }
        };
        let group = properties.get("ControlGroup").map_or("", String::as_str);
        let pids = match group {
            "" => Default::default(),
            group => cgroup::members(Path::new(&format!("{CGROUPS}{group}"))).unwrap_or_default(),
        };
        let processes: Vec<_> = pids.into_iter().filter_map(Process::look).collect();
        let attached = show(&format!("ub@{name}")).ok();
        let attached = attached.and_then(|unit| unit.get("ActiveState").cloned());
        Self {
            name: name.to_owned(),
            checks: checks(name, &properties, &processes, attached.as_deref()),
        }
    }

    /// Whether nothing in the unit keeps it from riding.
    #[must_use]
    pub fn rides_possible(&self) -> bool {
        self.checks.iter().all(|check| check.state != State::Blocks)
    }
}

impl Process {
    /// `None` if it has gone.
    fn look(pid: u32) -> Option<Self> {
        let status = ProcessStatus::read(pid)?;
        let mut magic = [0; 5];
        let program = File::open(format!("/proc/{pid}/exe"));
        let is_32_bit = program.and_then(|mut file| file.read_exact(&mut magic)).is_ok()
            && magic == *b"\x7fELF\x01";
        Some(Self { is_32_bit, ..Self::from_status(pid, &status) })
    }

    fn from_status(pid: u32, status: &ProcessStatus) -> Self {
        let field = |name: &str| status.field(name).unwrap_or(0);
        Self { pid, seccomp: field("Seccomp"), tracer: field("TracerPid"), is_32_bit: false }
    }
}

/// The unit's properties, or why there are none.
fn show(name: &str) -> Result<BTreeMap<String, String>, String> {
    let hardening = HARDENING.map(|(name, _)| name).join(",");
    let output = Command::new("systemctl")
        .args(["show", "--no-pager"])
        .arg(format!("--property=LoadState,ActiveState,ControlGroup,{hardening}"))
        .arg("--")
        .arg(format!("{name}.service"))
        .output()
        .map_err(|error| format!("systemctl: {error}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(format!("systemctl: {}", message.lines().next().unwrap_or("it failed")));
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

fn parse(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn checks(
    name: &str,
    properties: &BTreeMap<String, String>,
    processes: &[Process],
    attached: Option<&str>,
) -> Vec<Check> {
    let property = |name: &str| properties.get(name).map_or("", String::as_str);
    if property("LoadState") != "loaded" {
        return vec![
            Check::new("unit", State::Blocks, format!("{name}.service: {}", property("LoadState")))
                .remedy("`systemctl list-units --type=service` lists what there is"),
        ];
    }
    let mut checks = vec![if processes.is_empty() {
        Check::new("unit", State::Note, format!("{}, no processes", property("ActiveState")))
            .remedy(format!("start it to have its processes looked at: `systemctl start {name}`"))
    } else {
        let found = format!("{}, {} processes", property("ActiveState"), processes.len());
        Check::new("unit", State::Ok, found)
    }];
    checks.push(if attached == Some("active") {
        Check::new("attached", State::Ok, format!("ub@{name} is active"))
    } else {
        Check::new("attached", State::Note, format!("ub@{name} is not active"))
            .remedy(format!("to let it ride: `systemctl enable --now ub@{name}`"))
    });
    checks.push(filters(property("SystemCallFilter"), processes));
    if let Some(traced) = processes.iter().find(|process| process.tracer != 0) {
        let found = format!("process {} is traced by {}", traced.pid, traced.tracer);
        checks.push(
            Check::new("tracing", State::Blocks, found)
                .remedy("end the tracer; the process rides again by itself"),
        );
    }
    if let Some(process) = processes.iter().find(|process| process.is_32_bit) {
        let found = format!("process {} is a 32-bit program, which never rides", process.pid);
        checks.push(
            Check::new("program", State::Blocks, found)
                .remedy("install the 64-bit program, if any"),
        );
    }
    checks.push(hardening(properties));
    checks
}

/// What system-call filters mean: they are asked about every call of a ride.
fn filters(configured: &str, processes: &[Process]) -> Check {
    let check = |state, found: String| Check::new("system-call filter", state, found);
    if let Some(strict) = processes.iter().find(|process| process.seccomp == 1) {
        return check(
            State::Blocks,
            format!("process {} is in seccomp's strict mode, which never rides", strict.pid),
        )
        .remedy("only the program itself can use a filter instead");
    }
    let filtered = processes.iter().filter(|process| process.seccomp == 2).count();
    if filtered == 0 && configured.is_empty() {
        return check(State::Ok, "none".to_owned());
    }
    let whose = if processes.is_empty() {
        "configured".to_owned()
    } else {
        format!("{filtered} of {} processes", processes.len())
    };
    check(
        State::Ok,
        format!("{whose}; they ride, and the kernel asks it about each of their calls"),
    )
}

/// What keeps `ub run` out of the unit, for whoever thinks of a drop-in.
fn hardening(properties: &BTreeMap<String, String>) -> Check {
    let set: Vec<_> = HARDENING
        .iter()
        .filter(|(name, harmless)| {
            properties.get(*name).is_some_and(|value| !harmless.contains(&value.as_str()))
        })
        .map(|(name, _)| *name)
        .collect();
    if set.is_empty() {
        Check::new("hardening", State::Ok, "nothing that matters")
    } else {
        Check::new("hardening", State::Ok, format!("{}: none keeps it from riding", set.join(", ")))
            .remedy("leave it on, and attach from outside (ub@NAME); `ub run` in ExecStart= may fail under it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REDIS: &str = "LoadState=loaded\nActiveState=active\nControlGroup=/system.slice/x\n\
        User=redis\nPrivateDevices=yes\nDevicePolicy=auto\nNoExecPaths=/\nRootDirectory=\n\
        MemoryDenyWriteExecute=yes\nSystemCallFilter=~_sysctl\nRestrictAddressFamilies=\n";

    fn find(checks: &[Check], name: &str) -> Check {
        checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("{name}")).clone()
    }

    #[test]
    fn a_hardened_unit_with_a_filter_rides() {
        let status = "Name:\tredis-server\nTracerPid:\t0\nSeccomp:\t2\nSeccomp_filters:\t9\n";
        let process = Process::from_status(7, &ProcessStatus::parse(status));
        assert_eq!((process.seccomp, process.tracer), (2, 0));
        let checks = checks("redis-server", &parse(REDIS), &[process], None);
        assert!(checks.iter().all(|check| check.state != State::Blocks), "{checks:?}");
        let filter = find(&checks, "system-call filter");
        assert!(filter.found.starts_with("1 of 1 processes; they ride"), "{filter:?}");
        let hardening = find(&checks, "hardening").found;
        assert!(hardening.starts_with("User, PrivateDevices, NoExecPaths, Memory"), "{hardening}");
        assert_eq!(find(&checks, "attached").state, State::Note);
    }

    #[test]
    fn strict_mode_tracers_and_32_bit_programs_force_native_execution() {
        let base = Process { pid: 7, ..Process::default() };
        for (process, name) in [
            (Process { seccomp: 1, ..base }, "system-call filter"),
            (Process { tracer: 9, ..base }, "tracing"),
            (Process { is_32_bit: true, ..base }, "program"),
        ] {
            let unit = Unit {
                name: "x".to_owned(),
                checks: checks("x", &parse(REDIS), &[process], Some("active")),
            };
            assert!(!unit.rides_possible());
            let check = find(&unit.checks, name);
            assert_eq!(check.state, State::Blocks);
            assert!(check.remedy.is_some() && check.found.contains('7'), "{check:?}");
            assert_eq!(find(&unit.checks, "attached").state, State::Ok);
        }
    }

    #[test]
    fn units_that_do_not_exist_or_run_are_named_so() {
        let missing = checks("x", &parse("LoadState=not-found\n"), &[], None);
        assert_eq!((missing.len(), missing[0].state), (1, State::Blocks));
        let stopped = checks("x", &parse(REDIS), &[], None);
        assert_eq!(stopped[0].state, State::Note);
        assert!(find(&stopped, "system-call filter").found.starts_with("configured; they ride"));
        let plain = checks("x", &parse("LoadState=loaded\nUser=\nPrivateDevices=no\n"), &[], None);
        assert_eq!(find(&plain, "system-call filter").found, "none");
        assert_eq!(find(&plain, "hardening").found, "nothing that matters");
    }
}

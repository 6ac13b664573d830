//! What this machine supports and what blocks it.

mod backends;
mod predict;
mod unit;
mod vulnerabilities;

use std::path::Path;

use serde::Serialize;
use ub_ebpf_fallback::costs::exercise::Exercise;

use crate::abi::{self, Action, Info, Refusal};
use crate::config;
use crate::device::{Device, OpenError};
use crate::exercise::NotMeasured;
use crate::host::{CpuInfo, Environment, read_line};
use crate::machine;
pub use backends::Backend;
pub use predict::Facts;
pub use unit::Unit;
pub use vulnerabilities::{Vulnerability, on_machine, without_policy};

/// Kernel series that the module was tested on; it does not build on others.
const TESTED_SERIES: [&str; 2] = ["6.1.", "6.12."];

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// Worth knowing; does not prevent rides.
    Note,
    /// Prevents rides.
    Blocks,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether it is all right.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// One line of the mitigation policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyLine {
    /// [`Refusal::name`] or [`Action::name`].
    pub name: &'static str,
    /// What it means.
    pub description: &'static str,
    /// `refuse` or `act`.
    pub kind: &'static str,
    /// Whether it applies to this machine.
    pub applies: bool,
}

/// The whole finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// Version of this format.
    pub schema: u32,
    /// Whether a program run now by this user can ride.
    pub rides_possible: bool,
    /// Whether rides save enough on this machine; programs are let go where they do
    /// not, unless they are to ride anyway. Absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rides_pay: Option<bool>,
    /// The machine.
    pub environment: Environment,
    /// The ways in which this machine can be served.
    pub backends: Vec<Backend>,
    /// What was looked at, in the order in which problems should be solved.
    pub checks: Vec<Check>,
    /// `module` if the loaded module said so, else `predicted`.
    pub policy_source: &'static str,
    /// The mitigation policy on this machine.
    pub policy: Vec<PolicyLine>,
    /// The same by what the kernel says about the processor.
    pub vulnerabilities: Vec<Vulnerability>,
    /// The unit that was asked about, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
}

impl Check {
    fn new(name: &'static str, state: State, found: impl Into<String>) -> Self {
        Self { name, state, found: found.into(), remedy: None }
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl Diagnosis {
    /// Looks at this machine; with `measure` also at what rides cost on it,
    /// where that is not known yet. The caller has a single thread.
    #[must_use]
    pub fn make(measure: bool) -> Self {
        let environment = Environment::detect();
        let device = Device::open();
        let facts = Facts {
            cpu: CpuInfo::read(),
            mitigations: environment.mitigations.clone(),
            xen_guest_type: read_line("/sys/hypervisor/guest_type"),
        };
        let info = device.as_ref().ok().map(|device| *device.info());
        let policy = policy(info.as_ref(), &facts);
        let mut checks = vec![kernel(&environment), module(&environment.kernel)];
        checks.extend(signatures());
        checks.push(device_check(&device));
        checks.extend(cpu_checks(&facts.cpu));
        checks.push(kpti(&environment));
        checks.push(refusals(&policy));
        let vulnerabilities = on_machine(&environment.mitigations);
        let unknown = without_policy(&environment.mitigations);
        checks.extend(unknown_vulnerabilities(&unknown));
        let rides_possible = info.is_some_and(|info| info.refusals == 0) && unknown.is_empty();
        let costs = rides_possible.then(|| known_costs(measure));
        checks.extend(costs.as_ref().map(ride_costs));
        Self {
            schema: 1,
            rides_possible,
            rides_pay: costs.and_then(|known| Some(known.ok()??.is_gain())),
            backends: Backend::all(&checks, rides_possible),
            environment,
            checks,
            policy_source: if info.is_some() { "module" } else { "predicted" },
            policy,
            vulnerabilities,
            unit: None,
        }
    }
}

/// See [`without_policy`].
fn unknown_vulnerabilities(unknown: &[String]) -> Option<Check> {
    (!unknown.is_empty()).then(|| {
        Check::new(
            "vulnerabilities",
            State::Blocks,
            format!("no policy for {}", unknown.join(", ")),
        )
        .remedy("look for a newer version of ub")
    })
}

fn kernel(environment: &Environment) -> Check {
    let found = format!("{} ({})", environment.kernel, environment.kernel_build);
    if is_tested(&environment.kernel) && environment.kernel_build.contains("Debian") {
        Check::new("kernel", State::Ok, found)
    } else {
        // A module that loaded nevertheless says more than this list.
        Check::new("kernel", State::Note, found)
            .remedy("the module was tested on Debian's 6.1 and 6.12 kernels only")
    }
}

fn is_tested(release: &str) -> bool {
    TESTED_SERIES.iter().any(|series| release.starts_with(series))
}

fn module(release: &str) -> Check {
    let loaded = |name: &str| Path::new("/sys/module").join(name).exists();
    match (loaded("ub_gate"), loaded("ub")) {
        (true, true) => Check::new("module", State::Ok, "ub_gate and ub are loaded"),
        (true, false) => Check::new("module", State::Blocks, "ub_gate is loaded, ub is not")
            .remedy("run `modprobe ub`, or `insmod ub.ko`"),
        (false, _) if installed(release) => {
            Check::new("module", State::Blocks, "installed, not loaded").remedy("run `modprobe ub`")
        }
        (false, _) => Check::new("module", State::Blocks, "not loaded and not installed")
            .remedy(how_to_get_it(release)),
    }
}

/// For machines on which the module is not installed.
fn how_to_get_it(release: &str) -> &'static str {
    if is_tested(release) {
        "install the package userspace-bypass-dkms (`make deb`), or run make in \
         kernel-patch/module and insmod ub_gate.ko and ub.ko"
    } else {
        "it does not build for this kernel: boot one of Debian's 6.1 or 6.12, or look at \
         `ub profile` and `ub predict`, which need no module"
    }
}

/// Whether depmod knows ub.ko for kernel `release`.
fn installed(release: &str) -> bool {
    read_line(format!("/lib/modules/{release}/modules.dep")).is_some_and(|index| {
        index.lines().filter_map(|line| line.split(':').next()).any(|path| {
            path.rsplit('/')
                .next()
                .is_some_and(|file| file == "ub.ko" || file.starts_with("ub.ko."))
        })
    })
}

/// Rules of the kernel about which modules it loads.
fn signatures() -> Vec<Check> {
    let mut checks = Vec::new();
    let enforced = read_line("/sys/module/module/parameters/sig_enforce");
    match enforced.as_deref() {
        Some("Y") => checks.push(
            Check::new("module signatures", State::Note, "enforced")
                .remedy("sign both modules with a key that this kernel trusts"),
        ),
        Some(_) => checks.push(Check::new("module signatures", State::Ok, "not enforced")),
        None => checks.push(Check::new("module signatures", State::Note, "unknown")),
    }
    let lockdown = read_line("/sys/kernel/security/lockdown").unwrap_or_default();
    let mode = lockdown.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    match mode {
        None | Some(("none", _)) => checks.push(Check::new("lockdown", State::Ok, "off")),
        Some((mode, _)) => checks.push(
            Check::new("lockdown", State::Note, mode)
                .remedy("unsigned modules do not load under lockdown (secure boot)"),
        ),
    }
    checks
}

fn device_check(device: &Result<Device, OpenError>) -> Check {
    match device {
        Ok(device) => {
            let Info { arena_bytes, arena_free, sessions, .. } = device.info();
            Check::new(
                "device",
                State::Ok,
                format!(
                    "{} usable, ABI {}, {} of {} KiB of code memory free, {sessions} sessions",
                    abi::DEVICE_PATH,
                    abi::ABI_VERSION,
                    arena_free / 1024,
                    arena_bytes / 1024
                ),
            )
        }
        Err(OpenError::NoModule) => {
            Check::new("device", State::Blocks, format!("{} is absent", abi::DEVICE_PATH))
        }
        Err(error) => Check::new("device", State::Blocks, error.to_string()),
    }
}

fn cpu_checks(cpu: &CpuInfo) -> Vec<Check> {
    let required = [
        ("smap", "SMAP", "fragments rely on it; it cannot be added, but `nosmap` can be removed"),
        ("fsgsbase", "FSGSBASE", "remove `nofsgsbase` from the kernel command line if it is there"),
    ];
    let mut checks: Vec<_> = required
        .into_iter()
        .map(|(flag, name, remedy)| {
            if cpu.has(flag) {
                Check::new(name, State::Ok, "present")
            } else {
                Check::new(name, State::Blocks, "absent or turned off").remedy(remedy)
            }
        })
        .collect();
    checks.push(if cpu.has("bmi2") {
        Check::new("BMI2", State::Ok, "present")
    } else {
        Check::new("BMI2", State::Note, "absent; instructions of that extension end rides")
    });
    checks
}

fn kpti(environment: &Environment) -> Check {
    match environment.kpti {
        Some(true) => Check::new("KPTI", State::Ok, "on"),
        Some(false) => Check::new("KPTI", State::Ok, "off"),
        None => Check::new("KPTI", State::Note, "unknown"),
    }
}

fn refusals(policy: &[PolicyLine]) -> Check {
    let reasons: Vec<_> = policy
        .iter()
        .filter(|line| line.kind == "refuse" && line.applies)
        .map(|line| line.description)
        .collect();
    if reasons.is_empty() {
        Check::new("mitigations", State::Ok, "nothing that excludes rides")
    } else {
        Check::new("mitigations", State::Blocks, reasons.join("; "))
            .remedy("programs run natively on this machine; nothing is less safe or slower for it")
    }
}

/// What rides cost, if that is known or to be measured.
fn known_costs(measure: bool) -> Result<Option<Exercise>, NotMeasured> {
    let measure = measure && config::disabled_by_environment() != Some(true);
    if measure { machine::measure().map(Some) } else { Ok(machine::remembered()) }
}

/// Whether rides save enough to be worth it, see [`Exercise::is_gain`].
fn ride_costs(known: &Result<Option<Exercise>, NotMeasured>) -> Check {
    const NAME: &str = "cost of rides";
    match known {
        Ok(Some(exercise)) if exercise.is_gain() => {
            let Exercise { native, ridden } = exercise;
            let found = format!(
                "a call that does nothing takes {:.0} ns in a ride, {:.0} ns natively; a small \
                 message {:.0} and {:.0}",
                ridden.null_call_ns, native.null_call_ns, ridden.message_ns, native.message_ns
            );
            Check::new(NAME, State::Ok, found)
        }
        Ok(Some(exercise)) => Check::new(NAME, State::Note, machine::why_native(exercise))
            .remedy("programs run natively here and lose nothing"),
        Ok(None) => Check::new(NAME, State::Ok, "measured when something is about to ride")
            .remedy("`ub doctor --measure` does it now"),
        Err(reason) => {
            let check = Check::new(NAME, State::Note, format!("not measured: {reason}"));
            match reason {
                NotMeasured::Native { reason: Some(_), .. } => {
                    check.remedy("docs/operating.md says what each reason means")
                }
                _ => check,
            }
        }
    }
}

fn policy(info: Option<&Info>, facts: &Facts) -> Vec<PolicyLine> {
    let refusals = Refusal::ALL.iter().map(|refusal| PolicyLine {
        name: refusal.name(),
        description: refusal.description(),
        kind: "refuse",
        applies: info
            .map_or_else(|| facts.expects(*refusal), |info| info.refusals & *refusal as u32 != 0),
    });
    let actions = Action::ALL.iter().map(|action| PolicyLine {
        name: action.name(),
        description: action.description(),
        kind: "act",
        applies: info
            .map_or_else(|| facts.expects_action(*action), |i| i.actions & *action as u32 != 0),
    });
    refusals.chain(actions).collect()
}

#[cfg(test)]
mod tests {
    use ub_ebpf_fallback::costs::exercise::Times;

    use super::*;

    fn kernel_of(release: &str, build: &str) -> State {
        let environment = Environment {
            kernel: release.to_owned(),
            kernel_build: build.to_owned(),
            ..Environment::detect()
        };
        kernel(&environment).state
    }

    #[test]
    fn only_tested_kernels_pass_without_a_note() {
        let debian = "#1 SMP PREEMPT_DYNAMIC Debian 6.12.48-1";
        assert_eq!(kernel_of("6.12.48+deb13-cloud-amd64", debian), State::Ok);
        assert_eq!(kernel_of("6.1.0-39-cloud-amd64", debian), State::Ok);
        assert_eq!(kernel_of("6.12.48", "#1 SMP"), State::Note);
        assert_eq!(kernel_of("6.18.4", debian), State::Note);
        assert_eq!(kernel_of("6.13.1", debian), State::Note);
    }

    #[test]
    fn nobody_is_told_to_build_the_module_for_a_kernel_that_it_refuses() {
        assert!(how_to_get_it("6.12.48+deb13-cloud-amd64").contains("make deb"));
        assert!(how_to_get_it("6.18.4").contains("does not build"));
    }

    #[test]
    fn a_loaded_module_overrides_predictions() {
        let facts = Facts::default();
        let info = Info { actions: Action::ClearBuffers as u32, ..Default::default() };
        let lines = policy(Some(&info), &facts);
        let applying: Vec<_> = lines.iter().filter(|line| line.applies).map(|l| l.name).collect();
        assert_eq!(applying, ["clear_buffers"]);
        assert!(policy(None, &facts).iter().any(|line| line.name == "no_smap" && line.applies));
    }

    #[test]
    fn rides_that_save_next_to_nothing_are_a_note() {
        let times = |ns| Times { null_call_ns: ns, code_alone_ns: ns, message_ns: ns };
        let costs = |native, ridden| {
            let exercise = Exercise { native: times(native), ridden: times(ridden) };
            ride_costs(&Ok(Some(exercise)))
        };
        let check = costs(100.0, 95.0);
        assert_eq!(check.state, State::Note);
        assert!(check.found.contains("do not pay") && check.remedy.is_some(), "{check:?}");
        assert_eq!(costs(100.0, 50.0).state, State::Ok);
        assert_eq!(ride_costs(&Ok(None)).state, State::Ok);
        assert_eq!(ride_costs(&Err(NotMeasured::Refused)).state, State::Note);
    }

    #[test]
    fn every_blocking_check_says_what_to_do_or_why() {
        let diagnosis = Diagnosis::make(false);
        assert_eq!(diagnosis.policy.len(), Refusal::ALL.len() + Action::ALL.len());
        for check in diagnosis.checks.iter().filter(|check| check.state == State::Blocks) {
            assert!(check.remedy.is_some() || check.name == "device", "{check:?}");
            assert!(!check.found.is_empty());
        }
    }
}

//! Hostile users of `/dev/ub`: an errno for each, nothing half done, and the
//! program that was there before goes on.

mod support;

use support::{Machine, lab, run, with_program};

/// Printed with every failure; another one finds other mistakes.
const SEED: &str = "0x5eed5eed5eed5eed";

/// The checks that tests/guest/device.c makes.
const LEAST_CHECKS: usize = 100;

#[track_caller]
fn refuses_hostile_requests(machine: Machine) {
    let lab = lab();
    let mut job = with_program(machine.job(&lab, "device", true), "device", &["device.c"])
        .shell(format!("device {SEED} || echo \"exit $?\""));
    // Nothing that a request left behind may keep the modules.
    job.unload_modules = true;
    let outcome = run(&lab, &job);
    let stdout = outcome.stdout_text();
    let (passed, other): (Vec<&str>, Vec<&str>) =
        stdout.lines().partition(|line| line.ends_with(": ok"));
    assert_eq!(
        other,
        [format!("random: seed {}", &SEED[2..]), "0 failures".to_owned()],
        "after {} checks\nlogs: {}",
        passed.len(),
        outcome.directory.display()
    );
    assert!(passed.len() >= LEAST_CHECKS, "only {} checks: {passed:?}", passed.len());
    assert_eq!(outcome.stderr_text(), "");
}

#[test]
fn vm_device_on_6_12() {
    refuses_hostile_requests(Machine::V6_12_KPTI_ON);
}

#[test]
fn vm_device_on_6_1() {
    refuses_hostile_requests(Machine::V6_1_KPTI_OFF);
}

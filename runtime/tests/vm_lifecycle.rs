//! Supervisors that die and modules that are unloaded while programs ride.

mod support;

use std::time::Duration;

use support::{
    Machine, assert_ridden, assert_steps, assert_takes_kernel_down, lab, result, run, scripted,
    with_debian_program,
};
use ub_vm_lab::{Job, Outcome};

const REDIS_CYCLES: u32 = 5;

/// Runs `tests/guest/NAME.sh`.
fn with_script(job: Job, name: &str) -> Job {
    scripted(job, name, &["module", "supervisors", "worker"])
}

/// Kills a supervisor, and then lets the modules come and go so often.
fn with_cycles(job: Job, cycles: u32) -> Job {
    let mut job = with_script(job, "lifecycle");
    job.command.push(cycles.to_string());
    job.timeout = job.timeout.max(Duration::from_secs(60) * cycles);
    job
}

#[track_caller]
fn survives_supervisor_and_module(machine: Machine, cycles: u32) {
    let lab = lab();
    let job = machine.job(&lab, "lifecycle", false);
    survives_cycles(&run(&lab, &with_cycles(job, cycles)), cycles);
}

#[track_caller]
fn survives_cycles(outcome: &Outcome, cycles: u32) {
    let mut steps = vec![
        "load: ok ok".to_owned(),
        "kill: 1 killed".into(),
        "kill: exit 0".into(),
        "kill: sequence intact".into(),
        "kill: unloaded".into(),
        "kill: gate unloaded".into(),
    ];
    for cycle in 1..=cycles {
        let step = |text: &str| format!("cycle {cycle}: {text}");
        steps.extend([
            "load: ok ok".into(),
            step("unloaded"),
            // The thread asleep in a call that the gate made keeps the gate.
            step("gate under a sleeper: EAGAIN"),
            step("sleeper exit 0"),
            step("busy exit 0"),
            step("woken by y, sequence intact"),
            step("gate unloaded"),
        ]);
    }
    assert_steps(outcome, &steps);
    assert_ridden(outcome, "killed.json");
    for cycle in 1..=cycles {
        assert_ridden(outcome, &format!("busy-{cycle}.json"));
        assert_ridden(outcome, &format!("sleeper-{cycle}.json"));
    }
}

/// Whoever is still inside has nowhere to go back to.
#[test]
#[ignore = "long: builds the modules twice"]
fn vm_lifecycle_fails_without_the_wait() {
    let lab = lab();
    let job = |build| {
        with_cycles(Machine::V6_12_KPTI_OFF.job_without(&lab, "lifecycle-control", false, build), 2)
    };
    survives_cycles(&run(&lab, &job("NOTHING")), 2);
    assert_takes_kernel_down(&lab, &job("WAIT_FOR_LEAVERS"));
}

#[track_caller]
fn redis_survives_the_module(machine: Machine) {
    let lab = lab();
    let job = ["redis-server", "redis-cli", "redis-benchmark"]
        .into_iter()
        .fold(with_script(machine.job(&lab, "redis", true), "redis"), with_debian_program);
    let outcome = run(&lab, &job.timeout(Duration::from_secs(300 + 60 * u64::from(REDIS_CYCLES))));
    let stdout = outcome.stdout_text();
    let digest = |which: &str| {
        let prefix = format!("{which} digest: ");
        let digest = stdout.lines().find_map(|line| line.strip_prefix(&prefix));
        digest.unwrap_or_else(|| panic!("no {which} digest in {stdout}")).to_owned()
    };
    let native = digest("native");
    assert!(native.len() == 40 && native.bytes().any(|digit| digit != b'0'), "{native}");
    let mut steps = vec![format!("native digest: {native}"), "exit 0".into()];
    for cycle in 1..=REDIS_CYCLES {
        steps.extend(
            ["unloaded", "serves", "load: ok", "rides"]
                .map(|step| format!("cycle {cycle}: {step}")),
        );
    }
    steps.extend([
        "the clients never lost their connections".into(),
        format!("ridden digest: {native}"),
        "errors: 0".into(),
        "exit 0".into(),
    ]);
    assert_steps(&outcome, &steps);
    assert_ridden(&outcome, "redis.json");
}

/// What the first process of a program showed is known when it is started again,
/// by another supervisor.
#[test]
fn vm_programs_started_again_are_known_on_6_12_without_kpti() {
    let lab = lab();
    let machine = Machine::V6_12_KPTI_OFF;
    let job = scripted(machine.job(&lab, "started_again", true), "started_again", &["pace"]);
    let outcome = run(&lab, &job);
    let stdout = outcome.stdout_text();
    assert_steps(&outcome, &["kept: 1".to_owned()]);
    let first_line = |run: &str, text: &str| {
        let log = result(&outcome, &format!("{run}.log"));
        let line = log.lines().find(|line| line.contains(text)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no {text:?} in {log}\n{stdout}"))
    };
    let known = |run| first_line(run, "program known");
    let installed = |run| first_line(run, " installed ");
    assert!(known("first").ends_with("instructions=0"), "{}", known("first"));
    assert!(installed("first").ends_with("reach=Near"), "{}", installed("first"));
    assert!(!known("second").ends_with("instructions=0"), "{}", known("second"));
    assert!(installed("second").ends_with("reach=Far"), "{}", installed("second"));
}

#[test]
fn vm_lifecycle_on_6_12_with_kpti() {
    survives_supervisor_and_module(Machine::V6_12_KPTI_ON, 5);
}

#[test]
fn vm_lifecycle_on_6_12_without_kpti() {
    survives_supervisor_and_module(Machine::V6_12_KPTI_OFF, 2);
}

#[test]
fn vm_lifecycle_on_6_1_with_kpti() {
    survives_supervisor_and_module(Machine::V6_1_KPTI_ON, 2);
}

#[test]
fn vm_lifecycle_on_6_1_without_kpti() {
    survives_supervisor_and_module(Machine::V6_1_KPTI_OFF, 2);
}

#[test]
#[ignore = "long: 20 cycles on each kernel"]
fn vm_lifecycle_twenty_cycles() {
    survives_supervisor_and_module(Machine::V6_12_KPTI_ON, 20);
    survives_supervisor_and_module(Machine::V6_1_KPTI_OFF, 20);
}

#[test]
fn vm_redis_on_6_12_with_kpti() {
    redis_survives_the_module(Machine::V6_12_KPTI_ON);
}

#[test]
fn vm_redis_on_6_1_without_kpti() {
    redis_survives_the_module(Machine::V6_1_KPTI_OFF);
}

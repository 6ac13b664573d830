//! Hostile users of `/dev/ub`: an errno for each, nothing half done, and the
//! program that was there before goes on.

mod support;

use std::time::Duration;

use support::{
    Machine, assert_takes_kernel_down, lab, result, run, with_modules_without, with_program,
};
use ub_vm_lab::{Job, Lab, Outcome};

/// Printed with every failure; another one finds other mistakes.
const SEED: &str = "0x5eed5eed5eed5eed";

/// The checks that tests/guest/device.c makes.
const LEAST_CHECKS: usize = 130;

/// The checks that tests/guest/device_sampling.c makes, the ends of its victims included.
const CHECKS_OF_SAMPLING: usize = 23;

/// Runs `tests/guest/PROGRAM.c`, which prints a line for each check. Those
/// that do not say "ok" must be `expected`; returns how many do.
#[track_caller]
fn checks(machine: Machine, program: &str, arguments: &str, expected: &[&str]) -> usize {
    let lab = lab();
    let source = format!("{program}.c");
    let mut job = with_program(machine.job(&lab, program, true), program, &[&source])
        .shell(format!("{program} {arguments} || echo \"exit $?\""))
        .timeout(Duration::from_secs(3600));
    // Nothing that a request left behind may keep the modules.
    job.unload_modules = true;
    let outcome = run(&lab, &job);
    let stdout = outcome.stdout_text();
    let (passed, other): (Vec<&str>, Vec<&str>) =
        stdout.lines().partition(|line| line.ends_with(": ok"));
    // Only kernels built for it can make allocations fail.
    let other: Vec<&str> =
        other.into_iter().filter(|line| *line != "failing: not on this kernel").collect();
    assert_eq!(
        other,
        expected,
        "after {} checks\nlogs: {}",
        passed.len(),
        outcome.directory.display()
    );
    assert_eq!(outcome.stderr_text(), "");
    passed.len()
}

#[track_caller]
fn refuses_hostile_requests(machine: Machine) {
    let passed = checks(machine, "device", "", &["0 failures"]);
    assert!(passed >= LEAST_CHECKS, "only {passed} checks");
}

#[track_caller]
fn survives_random_requests(machine: Machine, calls: u64) {
    let summary = format!("random: {calls} calls, seed {SEED}");
    checks(machine, "device_fuzz", &format!("{calls} {SEED}"), &[&summary, "0 failures"]);
}

#[track_caller]
fn survives_storms(machine: Machine, seconds: u32) {
    let passed = checks(machine, "device_storm", &seconds.to_string(), &["0 failures"]);
    assert!(passed >= 9, "only {passed} checks");
}

#[track_caller]
fn loses_nobody_who_exits(machine: Machine) {
    let passed = checks(machine, "device_exits", "50", &["0 failures"]);
    assert_eq!(passed, 2);
}

/// Runs `tests/guest/PROGRAM.c` in builds that make its race wide: first with
/// everything that is needed, then without `protection`. What it printed is in
/// the results, under NOTHING and the name of the protection.
#[track_caller]
fn without(machine: Machine, protection: &str, program: &str, arguments: &str) -> Outcome {
    let lab = lab();
    run(&lab, &job_without(&lab, machine, &["NOTHING", protection], program, arguments))
}

/// The job of [`without`], in these builds.
fn job_without(
    lab: &Lab,
    machine: Machine,
    builds: &[&str],
    program: &str,
    arguments: &str,
) -> Job {
    let kernel = machine.kernel(lab);
    let job = machine.job(lab, &format!("{program}-controls"), false);
    let job = with_program(job, "module", &["module.c"]);
    let mut job = with_program(job, program, &[&format!("{program}.c")]);
    let mut script = String::from("cd /results\n");
    for build in builds {
        job = with_modules_without(job, &kernel, build);
        script += &format!(
            "module load /ub/without/{build}/ub_gate.ko\n\
             module load /ub/without/{build}/ub.ko\n\
             {program} {arguments} >{build} || true\n\
             until module unload ub; do sleep 0.1; done\n\
             until module unload ub_gate; do sleep 0.1; done\n"
        );
    }
    job.shell(script)
}

#[track_caller]
fn loses_who_exits_without_the_check(machine: Machine) {
    const CHECK: &str = "ATTACH_EXIT_CHECK";
    let outcome = without(machine, CHECK, "device_exits", "20");
    let [with, without] = ["NOTHING", CHECK].map(|build| result(&outcome, build));
    assert_eq!(with, "exits: attached: ok\nexits: nobody is left behind: ok\n0 failures\n");
    assert!(
        without.contains("exits: nobody is left behind: in ") && without.ends_with("1 failures\n"),
        "passes without the check: {without}"
    );
}

/// Nobody but the kernel knows of a record that outlives its task.
#[track_caller]
fn forgets_who_leaves_without_the_mark(machine: Machine) {
    const MARK: &str = "MARK_OF_LEAVING";
    const COMPLAINT: &str = "ub: broken: ";
    let outcome = without(machine, MARK, "device_leaving", "20");
    for build in ["NOTHING", MARK] {
        assert_eq!(result(&outcome, build), "leaving: attached twice: ok\n0 failures\n");
    }
    let loaded = format!("TEST BUILD without {MARK}");
    let (with, without) = outcome.console.split_once(&loaded).expect("both builds were loaded");
    assert!(!with.contains(COMPLAINT), "fails with everything: {with}");
    assert!(without.contains(COMPLAINT), "passes without the mark: {without}");
}

/// What is used behind its end is counted by the kernel, which complains, or waits for
/// ever for a count that is wrong already.
#[track_caller]
fn reads_what_ended_without_the_check(machine: Machine) {
    const CHECK: &str = "END_OF_FILES";
    let lab = lab();
    let job = |build| job_without(&lab, machine, &[build], "device_reading", "20");
    let expected = "reading: detached: ok\nreading: code was read: ok\n\
                    reading: refused at last: ok\n0 failures\n";
    assert_eq!(result(&run(&lab, &job("NOTHING")), "NOTHING"), expected);
    let error = lab.run(&job(CHECK)).expect_err("passes without the check").to_string();
    let is_known = ["refcount_t", "no result after"].iter().any(|what| error.contains(what));
    assert!(is_known, "{error}");
}

/// Whoever follows a link to what was retired runs into memory that was given back.
#[test]
#[ignore = "long: builds the modules twice"]
fn vm_device_linked_fails_with_links_left() {
    let lab = lab();
    let job = |build| job_without(&lab, Machine::V6_12_KPTI_OFF, &[build], "device_linked", "10");
    let passed = result(&run(&lab, &job("NOTHING")), "NOTHING");
    assert!(passed.ends_with("\n0 failures\n"), "{passed}");
    assert_takes_kernel_down(&lab, &job("LINKS_CUT"));
}

#[test]
fn vm_device_linked_on_6_1() {
    let passed = checks(Machine::V6_1_KPTI_ON, "device_linked", "20", &["0 failures"]);
    assert_eq!(passed, 6);
}

#[track_caller]
fn samples_as_often_as_it_takes(machine: Machine) {
    let passed = checks(machine, "device_sampling", "", &["0 failures"]);
    assert_eq!(passed, CHECKS_OF_SAMPLING);
}

#[test]
fn vm_device_sampling_on_6_12() {
    samples_as_often_as_it_takes(Machine::V6_12_KPTI_ON);
}

#[test]
fn vm_device_sampling_on_6_1() {
    samples_as_often_as_it_takes(Machine::V6_1_KPTI_OFF);
}

#[test]
fn vm_device_exits_on_6_12() {
    loses_nobody_who_exits(Machine::V6_12_KPTI_ON);
}

#[test]
#[ignore = "long: builds the modules twice"]
fn vm_device_exits_fail_without_the_check() {
    loses_who_exits_without_the_check(Machine::V6_12_KPTI_OFF);
}

#[test]
#[ignore = "long: builds the modules twice"]
fn vm_device_leaving_fails_without_the_mark() {
    forgets_who_leaves_without_the_mark(Machine::V6_12_KPTI_OFF);
}

#[test]
#[ignore = "long: builds the modules twice"]
fn vm_device_reading_fails_without_the_check() {
    reads_what_ended_without_the_check(Machine::V6_12_KPTI_OFF);
}

#[test]
fn vm_device_on_6_12() {
    refuses_hostile_requests(Machine::V6_12_KPTI_ON);
}

#[test]
fn vm_device_on_6_1() {
    refuses_hostile_requests(Machine::V6_1_KPTI_OFF);
}

#[test]
fn vm_device_random_on_6_12() {
    survives_random_requests(Machine::V6_12_KPTI_OFF, 20_000);
}

#[test]
fn vm_device_random_on_6_1() {
    survives_random_requests(Machine::V6_1_KPTI_ON, 20_000);
}

#[test]
#[ignore = "long: an hour under emulation"]
fn vm_device_a_million_random_requests() {
    survives_random_requests(Machine::V6_12_KPTI_OFF, 1_000_000);
}

#[test]
fn vm_device_storm_on_6_12() {
    survives_storms(Machine::V6_12_KPTI_ON, 10);
}

#[test]
#[ignore = "long: five minutes of storm"]
fn vm_device_long_storm_on_6_1() {
    survives_storms(Machine::V6_1_KPTI_OFF, 300);
}

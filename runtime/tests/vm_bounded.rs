//! How long a ride keeps its CPU from what is urgent, in instructions.

mod support;

use support::{Machine, assert_ridden, lab, result, run, with_program};
use ub_vm_lab::{Job, Lab};

/// Instructions between two polls, at most, with the way out and everything
/// else that a native thread would not have to wait for. The virtual clock
/// counts them as nanoseconds. Where interrupts wait until a fragment is left, that is when
/// its budget is used up (`UB_WAITING_BUDGET`).
const BOUND: i64 = 10_000;
/// A processor on which they wait.
const WAITING_CPU: &str = "Cascadelake-Server";

/// The figure called `name` in the program's output.
#[track_caller]
fn figure(output: &str, name: &str) -> i64 {
    let line = output.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or_else(|| panic!("{name}: {output}"))
}

/// How much later than natively what is urgent is served, at worst: behind an interrupt,
/// and behind a softirq.
#[track_caller]
fn later_than_natively(lab: &Lab, job: Job) -> [i64; 2] {
    let mut job = with_program(job, "bounded", &["bounded.c", "session.c"]).shell(
        "bounded >/results/native && \
         ub run --require --report /results/ub.json -- bounded >/results/ub",
    );
    job.smp = 1;
    job.icount = Some(0);
    let outcome = run(lab, &job);
    let (native, ridden) = (result(&outcome, "native"), result(&outcome, "ub"));
    println!("native: {native:?}, ub: {ridden:?}");
    assert_ridden(&outcome, "ub.json");
    let report: serde_json::Value =
        serde_json::from_str(&result(&outcome, "ub.json")).expect("checked above");
    // In the time that was looked at.
    assert!(figure(&ridden, "ridden") > 1000, "{ridden}\n{report}");
    ["interrupt", "softirq"].map(|what| figure(&ridden, what) - figure(&native, what))
}

#[track_caller]
fn serves_what_is_pending(machine: Machine, cpu: Option<&str>) {
    let lab = lab();
    let mut job = machine.job(&lab, "bounded", true);
    job.la57 &= cpu.is_none();
    job.cpu = cpu.map(str::to_owned);
    let later = later_than_natively(&lab, job);
    assert!(later.iter().all(|&later| later <= BOUND), "{later:?} instructions later");
}

#[test]
#[ignore = "long: counts instructions"]
fn vm_bounded_fails_without_polls() {
    let lab = lab();
    let job = Machine::V6_12_KPTI_OFF.job_without(&lab, "bounded-control", true, "POLLS");
    let later = later_than_natively(&lab, job);
    assert!(later.iter().all(|&later| later > BOUND), "{later:?} instructions later");
}

#[test]
#[ignore = "long: counts instructions"]
fn vm_bounded_on_6_12() {
    serves_what_is_pending(Machine::V6_12_KPTI_OFF, None);
}

#[test]
#[ignore = "long: counts instructions"]
fn vm_bounded_on_6_1() {
    serves_what_is_pending(Machine::V6_1_KPTI_ON, None);
}

#[test]
#[ignore = "long: counts instructions"]
fn vm_bounded_where_interrupts_wait_on_6_12() {
    serves_what_is_pending(Machine::V6_12_KPTI_ON, Some(WAITING_CPU));
}

#[test]
#[ignore = "long: counts instructions"]
fn vm_bounded_where_interrupts_wait_on_6_1() {
    serves_what_is_pending(Machine::V6_1_KPTI_ON, Some(WAITING_CPU));
}

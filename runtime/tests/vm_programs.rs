//! Programs that do what is hard to get right in a ride, natively and in a
//! session: the same output and the same end, on both kernels with page-table
//! isolation on and off.

mod support;

use std::time::Duration;

use serde_json::Value;
use support::compare::{self, Comparison, Run};
use support::{Machine, lab, run, with_program};
use ub_vm_lab::Job;

const COMPARISONS: [Comparison; 10] = [
    // Each instruction is tried with operands of every kind; the reasons show
    // that it happened in a fragment.
    Comparison {
        name: "faults",
        command: "faults",
        ridden: 4000,
        exits: &[("fault", 150), ("guard", 100)],
    },
    Comparison { name: "timer", command: "signals timer", ridden: 5000, exits: &[("poll", 50)] },
    Comparison {
        name: "interrupted",
        command: "signals interrupted",
        ridden: 500,
        exits: &[("restart", 1)],
    },
    Comparison {
        name: "restarted",
        command: "signals restarted",
        ridden: 500,
        exits: &[("restart", 1)],
    },
    Comparison {
        name: "stopped",
        command: "signals stopped",
        ridden: 500,
        exits: &[("restart", 1)],
    },
    // Each of three children is stopped once and killed once.
    // One by each SIGSTOP; the second signal may find the program running natively.
    Comparison { name: "endless", command: "signals endless", ridden: 5000, exits: &[("poll", 3)] },
    Comparison { name: "seccomp", command: "tracing seccomp", ridden: 2000, exits: &[] },
    Comparison { name: "ptrace", command: "tracing ptrace", ridden: 3000, exits: &[] },
    Comparison { name: "tsc", command: "tracing tsc", ridden: 2000, exits: &[] },
    Comparison { name: "processes", command: "processes", ridden: 20_000, exits: &[] },
];

fn with_programs(job: Job) -> Job {
    let job = with_program(job, "faults", &["faults.c", "fault_gaps.S", "session.c"]);
    ["signals", "tracing", "processes"]
        .into_iter()
        .fold(job, |job, name| with_program(job, name, &[&format!("{name}.c"), "session.c"]))
}

#[track_caller]
fn programs_behave_as_natively(machine: Machine) {
    let lab = lab();
    let job = machine.job(&lab, "programs", true).timeout(Duration::from_secs(900));
    let job = with_programs(job).shell(compare::script(&COMPARISONS));
    let outcome = run(&lab, &job);
    compare::check(&COMPARISONS, &outcome);
}

#[test]
fn vm_programs_on_6_12_with_kpti() {
    programs_behave_as_natively(Machine::V6_12_KPTI_ON);
}

#[test]
fn vm_programs_on_6_12_without_kpti() {
    programs_behave_as_natively(Machine::V6_12_KPTI_OFF);
}

#[test]
fn vm_programs_on_6_1_with_kpti() {
    programs_behave_as_natively(Machine::V6_1_KPTI_ON);
}

#[test]
fn vm_programs_on_6_1_without_kpti() {
    programs_behave_as_natively(Machine::V6_1_KPTI_OFF);
}

/// The checks above are worth nothing if they cannot fail.
#[test]
fn every_kind_of_difference_is_found() {
    let comparison = Comparison { name: "x", command: "x", ridden: 5, exits: &[("fault", 1)] };
    let run = |status: &str, stdout: &str, stderr: &str| Run {
        status: status.into(),
        stdout: stdout.into(),
        stderr: stderr.into(),
    };
    let good = run("0", "a\nb\n", "");
    let report = |ridden: u64, faults: u64, bugs: u64| {
        serde_json::json!({
            "ridden": ridden,
            "exits": { "fault": faults },
            "translations": { "failed": { "translator_bug": bugs } },
        })
    };
    let fine = report(5, 1, 0);
    let complaints = |native: &Run, ridden: &Run, report: &Value| {
        comparison.complaints(native, ridden, report).len()
    };
    assert_eq!(complaints(&good, &good, &fine), 0);
    assert_eq!(complaints(&good, &run("1", "a\nb\n", ""), &fine), 1);
    assert_eq!(complaints(&good, &run("0", "a\nc\n", ""), &fine), 1);
    assert_eq!(complaints(&good, &run("0", "a\nb\nc\n", ""), &fine), 1);
    assert_eq!(complaints(&good, &run("0", "a\nb", ""), &fine), 1);
    assert_eq!(complaints(&good, &run("0", "a\nb\n", "x"), &fine), 1);
    assert_eq!(complaints(&good, &good, &report(4, 1, 0)), 1);
    assert_eq!(complaints(&good, &good, &report(5, 0, 0)), 1);
    assert_eq!(complaints(&good, &good, &report(5, 1, 1)), 1);
    assert_eq!(complaints(&good, &good, &Value::Null), 2);
    let broken = run("99", "FAILED read\n", "");
    assert_eq!(complaints(&broken, &broken, &fine), 1);
}

//! strace, perf, `ub profile` and gdb, attached to a program that rides and
//! detached again: they see what they see natively, and so does the program.

mod support;

use std::path::Path;
use std::time::Duration;

use support::both_ways::{assert_equal_steps, run_both_ways};
use support::{Machine, lab, result, run, with_debian_program, with_program};
use ub_vm_lab::Job;

#[track_caller]
fn tools_see_what_they_see_natively(machine: Machine) {
    let lab = lab();
    let job = machine.job(&lab, "debuggers", true).timeout(Duration::from_secs(900));
    let job = ["gdb", "perf", "strace"].into_iter().fold(job, with_debian_program);
    let tools = ["cksum", "cut", "kill", "mkdir", "mount", "sed", "uniq", "wc"];
    let job = tools.into_iter().fold(job, Job::program);
    let job = with_program(job, "debugged", &["debugged.c"]);
    let commands = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/debuggers.gdb");
    let job = job.file(commands, "/usr/share/debuggers.gdb");
    let outcome = run(&lab, &run_both_ways(job, "debuggers.sh", ""));
    assert_equal_steps(&outcome, 15);
    let steps = result(&outcome, "ridden.out");
    for step in [
        "strace: 0 calls missed",
        "inject: 1 changed",
        "perf: 1 counted",
        "gdb: 100 single steps",
        "gdb: watched: 1",
        "gdb: called: 1",
        "gdb: user code: 1 1",
        "gdb: hits: 200",
        "end: exit 0",
        "end: strange results: 1",
    ] {
        assert!(steps.lines().any(|line| line == step), "no {step:?} in {steps}");
    }
    // The BPF programs of the profiler saw each call, too: the two take turns.
    let profile: serde_json::Value =
        serde_json::from_str(&result(&outcome, "ridden/profile.out")).expect("a profile");
    let gaps = profile["profile"]["gaps"].as_array().expect("gaps");
    let count = |call: &str, next: &str| -> u64 {
        let gaps = gaps.iter().filter(|gap| gap["call"] == call && gap["next"] == next);
        gaps.filter_map(|gap| gap["count"].as_u64()).sum()
    };
    assert!(count("getuid", "getgid") > 100, "{gaps:#?}");
    assert_eq!((count("getuid", "getuid"), count("getgid", "getgid")), (0, 0), "{gaps:#?}");
}

#[test]
#[ignore = "long: five tools, twice"]
fn vm_debuggers_on_6_12() {
    tools_see_what_they_see_natively(Machine::V6_12_KPTI_ON);
}

#[test]
#[ignore = "long: five tools, twice"]
fn vm_debuggers_on_6_1() {
    tools_see_what_they_see_natively(Machine::V6_1_KPTI_OFF);
}

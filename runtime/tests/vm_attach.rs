//! Running processes that join a session and leave it.

mod support;

use support::{Machine, assert_ridden, assert_steps, lab, result, run, scripted};

#[track_caller]
fn processes_join_and_leave(machine: Machine, short_lived: u32) {
    let lab = lab();
    let job = machine.job(&lab, "attach", true).program("mkdir").program("mount").program("sed");
    let mut job = scripted(job, "attach", &["worker"]);
    job.command.push(short_lived.to_string());
    job.unload_modules = true;
    let outcome = run(&lab, &job);
    let expected = [
        "nice: program 0, supervisor 5",
        "second: exit 1",
        "second: ub: process PID: already in another session; take it out with `ub detach PID` or end that session",
        "detach: exit 0",
        "first supervisor: exit 0",
        "detached: alive",
        "again: exit 1",
        "supervisor killed: alive",
        "worker: exit 0",
        "third supervisor: exit 0",
        "worker: sequence intact",
        "threads: \"threads\":7,\"threads_now\":7",
        "threads' supervisor: exit 0",
        "threads: exit 0",
        "threads: sequences intact",
        "group: the new member joined",
        "group: a member without calls is known",
        "group: detach exit 0",
        "group's supervisor: exit 0",
        "inside: exit 0",
        "later: exit 0",
        "group: sequence intact, sequence intact",
        "nobody: exit 1",
        "nobody: ub: process 999999: no such process",
        "kernel thread: exit 1",
        "kernel thread: ub: process 2: a kernel thread or ub itself; give the pid of a program",
        "short-lived: children right",
        "short-lived: all gone",
    ];
    assert_steps(&outcome, &expected.map(str::to_owned));
    for report in ["first", "second", "third", "threads", "group"] {
        assert_ridden(&outcome, &format!("{report}.json"));
    }
    let churn: serde_json::Value =
        serde_json::from_str(&result(&outcome, "churn.json")).expect("checked above");
    assert_eq!(churn["threads"].as_u64(), Some(u64::from(short_lived) + 1), "{churn}");
    // Too short to get hot, each in an address space of its own.
    assert!(churn["address_spaces"].as_u64() > Some(u64::from(short_lived)), "{churn}");
    assert!(churn["syscalls"].as_u64() >= Some(20 * u64::from(short_lived)), "{churn}");
}

#[test]
fn vm_attach_on_6_12() {
    processes_join_and_leave(Machine::V6_12_KPTI_ON, 300);
}

#[test]
fn vm_attach_on_6_1() {
    processes_join_and_leave(Machine::V6_1_KPTI_OFF, 300);
}

#[test]
#[ignore = "long: thousands of processes"]
fn vm_attach_and_thousands_of_processes() {
    processes_join_and_leave(Machine::V6_12_KPTI_OFF, 5000);
}

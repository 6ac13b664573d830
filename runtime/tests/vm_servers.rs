//! Redis and nginx through what their operators do to them, natively and in
//! sessions: every step must end in the same way.

mod support;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::{
    Machine, RESULTS, difference, lab, result, run, with_debian_program, with_library, with_program,
};
use ub_vm_lab::{Job, Outcome};

/// Units of Redis's own test suite: every data type, scripting, access rights,
/// persistence and replication.
const SUITE: [&str; 13] = [
    "unit/type/incr",
    "unit/type/string",
    "unit/type/list",
    "unit/type/hash",
    "unit/type/set",
    "unit/type/zset",
    "unit/type/stream",
    "unit/scripting",
    "unit/acl",
    "unit/multi",
    "unit/pubsub",
    "integration/aof",
    "integration/replication-2",
];

/// Adds a script of `tests/guest` that is told "native" or "ridden", then
/// `arguments`, and runs it as both.
fn run_both_ways(job: Job, script: &str, arguments: &str) -> Job {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest").join(script);
    let place = format!("/usr/bin/{script}");
    job.file(source, &place).shell(format!(
        "for mode in native ridden; do\n\
             sh -e {place} $mode {arguments} >{RESULTS}/$mode.out || echo \"status $?\" >>{RESULTS}/$mode.out\n\
         done"
    ))
}

/// Prints the steps side by side, and fails unless they are equal, `least` of
/// them, and servers in that number reported that they rode.
#[track_caller]
fn check(outcome: &Outcome, least: usize, reports: RangeInclusive<usize>) {
    let (native, ridden) = (result(outcome, "native.out"), result(outcome, "ridden.out"));
    let mut others = ridden.lines();
    for native in native.lines() {
        let ridden = others.next().unwrap_or("-");
        let verdict = if native == ridden { "equal" } else { "DIFFERENT" };
        println!("{verdict:9} native {native:60} ub {ridden}");
    }
    let context = format!("{}\nlogs: {}", outcome.stderr_text(), outcome.directory.display());
    assert_eq!(difference("steps", &native, &ridden), None, "{context}");
    assert!(native.lines().count() >= least, "the script ended early: {native}\n{context}");
    let found: Vec<_> = outcome
        .files
        .iter()
        .filter(|(path, _)| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    assert!(reports.contains(&found.len()), "{} reports\n{context}", found.len());
    let rode = |content: &Vec<u8>| {
        let report: Value = serde_json::from_slice(content).unwrap_or(Value::Null);
        report["ridden"].as_u64() > Some(0)
    };
    let idle = found.iter().filter(|(_, content)| !rode(content)).count();
    // The suite starts servers that answer a handful of requests.
    let may_be_idle = if reports.start() == reports.end() { 0 } else { found.len() / 2 };
    assert!(idle <= may_be_idle, "of {} servers {idle} never rode\n{context}", found.len());
}

#[track_caller]
fn redis_survives_its_operator(machine: Machine) {
    let lab = lab();
    let job = machine.job(&lab, "redis-steps", true).timeout(Duration::from_secs(900));
    let job =
        ["redis-server", "redis-cli", "redis-benchmark"].into_iter().fold(job, with_debian_program);
    let job = ["head", "mkdir", "tail", "tr"].into_iter().fold(job, Job::program);
    let job = with_library(job, "redis-module.so", "redis_module.c", &[]);
    check(&run(&lab, &run_both_ways(job, "redis_steps.sh", "")), 60, 14..=14);
}

/// Unpacked by `scripts/redis-tests`, from Debian's source package.
fn redis_suite() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/redis-tests");
    let output = Command::new(&script).output().expect("the script is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

#[track_caller]
fn redis_passes_its_own_tests(machine: Machine) {
    let lab = lab();
    let job = machine.job(&lab, "redis-suite", true).timeout(Duration::from_secs(3 * 3600));
    let programs = ["redis-server", "redis-cli", "redis-benchmark"];
    let job = programs.into_iter().fold(job, with_debian_program);
    let tools = [
        "chmod", "echo", "env", "head", "hostname", "kill", "ln", "mkdir", "ps", "sed", "tail",
        "tclsh", "tr", "uname", "wc",
    ];
    let job = tools.into_iter().fold(job, Job::program);
    let job = job
        .file("/usr/share/tcltk/tcl8.6", "/usr/share/tcltk/tcl8.6")
        .file(redis_suite(), "/usr/share/redis-tests");
    let job = run_both_ways(job, "redis_suite.sh", &SUITE.join(" "));
    check(&run(&lab, &job), 500, 20..=1000);
}

#[track_caller]
fn nginx_survives_its_operator(machine: Machine) {
    let lab = lab();
    let job = machine.job(&lab, "nginx-steps", true).timeout(Duration::from_secs(600));
    let job = with_debian_program(job, "nginx");
    let job = ["mkdir", "mv"].into_iter().fold(job, Job::program);
    let job = with_program(job, "requests", &["requests.c"]);
    check(&run(&lab, &run_both_ways(job, "nginx_steps.sh", "")), 20, 1..=1);
}

#[test]
#[ignore = "long: fourteen servers, twice"]
fn vm_redis_steps_on_6_12_with_kpti() {
    redis_survives_its_operator(Machine::V6_12_KPTI_ON);
}

#[test]
#[ignore = "long: fourteen servers, twice"]
fn vm_redis_steps_on_6_1_without_kpti() {
    redis_survives_its_operator(Machine::V6_1_KPTI_OFF);
}

#[test]
#[ignore = "very long: Redis's own tests, twice"]
fn vm_redis_suite_on_6_12_without_kpti() {
    redis_passes_its_own_tests(Machine::V6_12_KPTI_OFF);
}

#[test]
#[ignore = "long: eight steps under load, twice"]
fn vm_nginx_steps_on_6_12_without_kpti() {
    nginx_survives_its_operator(Machine::V6_12_KPTI_OFF);
}

#[test]
#[ignore = "long: eight steps under load, twice"]
fn vm_nginx_steps_on_6_1_with_kpti() {
    nginx_survives_its_operator(Machine::V6_1_KPTI_ON);
}

//! Redis and nginx through what their operators do to them, natively and in
//! sessions: every step must end in the same way.

mod support;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::both_ways::{assert_equal_steps, run_both_ways};
use support::{Machine, lab, run, with_debian_program, with_library, with_program};
use ub_vm_lab::{Job, Outcome};

/// Units of Redis's own test suite, about as long as one another: the data types ...
const FIRST_TYPES: [&str; 4] =
    ["unit/type/incr", "unit/type/string", "unit/type/hash", "unit/type/set"];
/// ... the larger ones ...
const OTHER_TYPES: [&str; 3] = ["unit/type/list", "unit/type/zset", "unit/type/stream"];
/// ... scripting, access rights and transactions ...
const COMMANDS: [&str; 4] = ["unit/scripting", "unit/acl", "unit/multi", "unit/pubsub"];
/// ... persistence and replication.
const PERSISTENCE: [&str; 2] = ["integration/aof", "integration/replication-2"];

/// Prints the steps side by side, and fails unless they are equal, `least` of
/// them, and servers in that number reported that they rode, but for
/// `may_be_idle` of them.
#[track_caller]
fn check(
    outcome: &Outcome,
    least: usize,
    reports: RangeInclusive<usize>,
    may_be_idle: impl Fn(usize) -> usize,
) {
    assert_equal_steps(outcome, least);
    let context = format!("{}\nlogs: {}", outcome.stderr_text(), outcome.directory.display());
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
    assert!(
        idle <= may_be_idle(found.len()),
        "of {} servers {idle} never rode\n{context}",
        found.len()
    );
}

#[track_caller]
fn redis_survives_its_operator(machine: Machine) {
    let lab = lab();
    let job = machine.job(&lab, "redis-steps", true).timeout(Duration::from_secs(1800));
    let job =
        ["redis-server", "redis-cli", "redis-benchmark"].into_iter().fold(job, with_debian_program);
    let job = ["head", "mkdir", "tail", "tr"].into_iter().fold(job, Job::program);
    let job = with_library(job, "redis-module.so", "redis_module.c", &[]);
    // Three are started only to look at what another one saved.
    check(&run(&lab, &run_both_ways(job, "redis_steps.sh", "")), 60, 14..=14, |_| 3);
}

/// Unpacked by `scripts/redis-tests`, from Debian's source package.
fn redis_suite() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/redis-tests");
    let output = Command::new(&script).output().expect("the script is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

#[track_caller]
fn redis_passes_its_own_tests(name: &str, units: &[&str], least: usize) {
    let lab = lab();
    let job = Machine::V6_12_KPTI_OFF.job(&lab, name, true).timeout(Duration::from_secs(3 * 3600));
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
    let job = run_both_ways(job, "redis_suite.sh", &units.join(" "));
    // Most of its servers answer a handful of requests.
    check(&run(&lab, &job), least, 1..=1000, |servers| servers - 1);
}

#[track_caller]
fn nginx_survives_its_operator(machine: Machine) {
    let lab = lab();
    let job = machine.job(&lab, "nginx-steps", true).timeout(Duration::from_secs(600));
    let job = with_debian_program(job, "nginx");
    let job = ["mkdir", "mv", "sed", "sort"].into_iter().fold(job, Job::program);
    let job = with_program(job, "requests", &["requests.c"]);
    check(&run(&lab, &run_both_ways(job, "nginx_steps.sh", "")), 20, 1..=1, |_| 0);
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
fn vm_redis_suite_first_types() {
    redis_passes_its_own_tests("redis-first-types", &FIRST_TYPES, 150);
}

#[test]
#[ignore = "very long: Redis's own tests, twice"]
fn vm_redis_suite_other_types() {
    redis_passes_its_own_tests("redis-other-types", &OTHER_TYPES, 150);
}

#[test]
#[ignore = "very long: Redis's own tests, twice"]
fn vm_redis_suite_commands() {
    redis_passes_its_own_tests("redis-commands", &COMMANDS, 150);
}

#[test]
#[ignore = "very long: Redis's own tests, twice"]
fn vm_redis_suite_persistence() {
    redis_passes_its_own_tests("redis-persistence", &PERSISTENCE, 10);
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

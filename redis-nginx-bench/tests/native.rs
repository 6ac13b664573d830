//! The guest driver on this machine, natively: real servers on loopback ports
//! that the system chooses.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use ub_bench::interpose::Interposer;
use ub_bench::outcome::Outcome;
use ub_bench::plan::{Mode, Plan, Plant, Programs, Workload};
use ub_bench::report;

const DRIVER: &str = env!("CARGO_BIN_EXE_ub-bench-guest");
const WORKLOAD: &str = env!("CARGO_BIN_EXE_ub-workload");

/// Where Debian's servers are: `scripts/deps` says.
fn program(name: &str) -> PathBuf {
    ub_bench::demo::find_program(name).unwrap_or_else(|error| panic!("{error}"))
}

fn plan(scratch: &Path, workloads: &[Workload]) -> Plan {
    Plan {
        workloads: workloads.to_vec(),
        modes: vec![Mode::Native],
        ways: vec![],
        rounds: 2,
        timed_ms: 50,
        warmup_ms: 0,
        settle_ms: 0,
        settle_looks: 1,
        operations: (500, 5000),
        ub_options: vec![],
        programs: Programs {
            ub: "/nonexistent/ub".into(),
            workload: WORKLOAD.into(),
            redis_server: program("redis-server"),
            redis_benchmark: program("redis-benchmark"),
            nginx: program("nginx"),
            wrk: program("wrk"),
            memcached: program("memcached"),
            sqlite: program("sqlite3"),
            ip: program("ip"),
        },
        scratch: scratch.to_owned(),
        prepare_guest: false,
        redis_keys: 300,
        disk: None,
        disk_image: None,
        modules: vec![],
        plant: Plant::default(),
    }
}

fn drive(plan: &Plan, folder: &Path) -> Output {
    let file = folder.join("plan.json");
    fs::write(&file, serde_json::to_vec(plan).unwrap()).unwrap();
    Command::new(DRIVER)
        .arg("run")
        .arg("--plan")
        .arg(&file)
        .arg("--out")
        .arg(folder.join("out.json"))
        .output()
        .unwrap()
}

fn measure(workloads: &[Workload]) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let output = drive(&plan(folder.path(), workloads), folder.path());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&fs::read(folder.path().join("out.json")).unwrap()).unwrap()
}

/// Two runs of the driver compute the same, without faults.
fn check(workloads: &[Workload], fixed_operations: bool) {
    let [first, second] = [measure(workloads), measure(workloads)];
    for outcome in [&first, &second] {
        let cells = report::cells(outcome, false);
        assert_eq!(cells.len(), workloads.len());
        for (cell, workload) in cells.iter().zip(workloads) {
            assert_eq!(cell.workload, *workload);
            assert!(cell.results_match, "{outcome:#?}");
            assert!(cell.ops_per_s > 0.0);
            assert_eq!(cell.syscalls_per_op, None, "nothing counted natively");
        }
    }
    if fixed_operations {
        for (one, other) in first.cells.iter().zip(&second.cells) {
            assert_eq!(one.digest, other.digest);
        }
    }
}

#[test]
fn calls() {
    // The number of calls follows the machine's speed, and with it the digest.
    check(&[Workload::Null, Workload::read(64), Workload::read(4096)], false);
    // Rewriting needs privileges.
    check(
        &[Interposer::Dispatch, Interposer::Seccomp].map(|by| Workload::Interposed { by }),
        false,
    );
}

#[test]
fn redis() {
    check(&[Workload::REDIS_SET, Workload::REDIS_GET], true);
}

#[test]
fn nginx() {
    check(&[Workload::NGINX], true);
}

#[test]
fn missing_programs_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut plan = plan(folder.path(), &[Workload::REDIS_GET]);
    plan.programs.redis_server = "/nonexistent/redis-server".into();
    let output = drive(&plan, folder.path());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(stderr.contains("/nonexistent/redis-server"), "{stderr}");
}

#[test]
fn a_server_that_does_not_start_is_shown_with_its_words() {
    let folder = tempfile::tempdir().unwrap();
    let mut plan = plan(folder.path(), &[Workload::REDIS_GET]);
    plan.programs.redis_server = "/bin/false".into();
    let output = drive(&plan, folder.path());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(stderr.contains("false") && stderr.contains("exit status: 1"), "{stderr}");
}

#[test]
fn pinned_programs_have_one_cpu_and_keep_their_status() {
    let status = Command::new(DRIVER)
        .args(["pin", "0", "--", "/bin/sh", "-c", "test $(nproc) = 1 && exit 7"])
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(7));
    let output = Command::new(DRIVER).args(["pin", "0", "--", "/nonexistent"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent"));
}

#[test]
fn the_workload_notices_wrong_content() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data");
    fs::write(&file, ub_bench::content::bytes(1, 4096)).unwrap();
    let run = |seed: &str| {
        Command::new(WORKLOAD)
            .args(["pread", "--size", "64", "--calls", "100", "--seed", seed, "--file"])
            .arg(&file)
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(run("1"));
    assert!(!run("2"));
}

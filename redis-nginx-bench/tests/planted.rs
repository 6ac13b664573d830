//! The harness finds mistakes that are planted on purpose. Needs no guest: a
//! stand-in for `ub` runs programs natively and reports as `ub run` does, so
//! what differs between the modes is the planted mistake alone.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use ub_bench::harness::compare::{Comparison, Verdict};
use ub_bench::harness::record::{Record, Settings, Target};
use ub_bench::plan::{Mode, Plant, Workload};

/// `run --require --report FILE -- PROGRAM ...`: keeps FILE new, as readers
/// wait for that, and becomes PROGRAM.
const STAND_IN: &str = r#"#!/bin/sh
report=$4
while [ "$1" != -- ]; do shift; done
shift
(
    trap '' TERM
    while kill -0 $$ 2>/dev/null; do
        echo '{"schema": 1, "active": true, "ended": true, "syscalls": 10, "ridden": 5,
               "rides": 1, "exits": {}}' > "$report.new"
        mv "$report.new" "$report"
        sleep 0.1
    done
) >/dev/null 2>&1 &
exec "$@"
"#;

/// Runs `workload` with `plant`; returns the exit status and the record.
fn run(folder: &Path, workload: Workload, rounds: u32, plant: Plant) -> (u8, Record) {
    let programs = folder.join("bin");
    fs::create_dir_all(&programs).unwrap();
    for (name, path) in [
        ("ub-workload", env!("CARGO_BIN_EXE_ub-workload")),
        ("ub-bench-guest", env!("CARGO_BIN_EXE_ub-bench-guest")),
    ] {
        symlink(path, programs.join(name)).unwrap();
    }
    let ub = programs.join("ub");
    fs::write(&ub, STAND_IN).unwrap();
    fs::set_permissions(&ub, fs::Permissions::from_mode(0o755)).unwrap();
    let settings = Settings {
        workloads: vec![workload],
        modes: vec![Mode::Native, Mode::Ub],
        rounds,
        launches: 1,
        timed_ms: 20,
        warmup_ms: 5,
        settle_ms: 0,
        ub_options: vec![],
        icount: false,
        plant,
    };
    Record::new(settings, &[Target::Here]).write(folder).unwrap();
    // A run of which nothing was measured is a run to be resumed.
    let words = ["--resume".into(), folder.into(), "--bin-dir".into(), programs.into()];
    let status = ub_bench::harness::cli(words.map(|word: OsString| word));
    (status, Record::read(folder).unwrap())
}

#[test]
fn a_sleep_in_the_path_of_ub_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let sleepy = Plant { sleep_us: Some(50), ..Plant::default() };
    let part = |name: &str, plant| {
        let folder = folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        run(&folder, Workload::Null, 8, plant)
    };
    let (status, good) = part("good", Plant::default());
    assert_eq!(status, 0);
    let (status, slow) = part("slow", sleepy);
    assert_eq!(status, 0, "slow, but right");
    let verdict = |old, new| Comparison::of(old, new).rows[0].verdict;
    assert_eq!(verdict(&good, &slow), Verdict::Slower);
    assert_eq!(verdict(&slow, &good), Verdict::Faster);
    assert_eq!(verdict(&good, &good), Verdict::NoDifference);
}

#[test]
fn other_results_fail_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let plant = Plant { mismatch: true, ..Plant::default() };
    let (status, record) = run(folder.path(), Workload::read(64), 1, plant);
    assert_eq!(status, 1);
    let figures = ub_bench::harness::analysis::Figures::of(&record.machines[0].cells[0]);
    assert!(!figures.results_match);
    assert!(figures.faults.iter().any(|fault| fault.contains("something else")), "{figures:?}");
    assert!(figures.faults.iter().any(|fault| fault.starts_with("ub: what was read")));
}

#[test]
fn the_same_results_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let (status, record) = run(folder.path(), Workload::read(64), 1, Plant::default());
    assert_eq!(status, 0);
    assert_eq!(record.machines[0].cells[0].rounds(), 1);
}

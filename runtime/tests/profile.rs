//! `ub profile` and `ub predict` on this machine's own kernel. Where the user
//! who runs the tests may not use BPF, only that is tested; the guests of
//! `vm_profile.rs` have everything.

#[path = "../../ebpf-fallback/tests/support/not_tested.rs"]
mod not_tested;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use not_tested::not_tested;
use serde_json::Value;

const UB: &str = env!("CARGO_BIN_EXE_ub");
/// A user without capabilities.
const NOBODY: u32 = 65534;

/// Whether there is a profiler for this user.
fn available() -> bool {
    let available = ub_ebpf_fallback::Profiler::new();
    if let Err(reason) = &available {
        not_tested(reason);
    }
    available.is_ok()
}

fn ub(words: &[&str]) -> Command {
    let mut command = Command::new(UB);
    command.args(words).env_remove("UB_DISABLE").stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `ub profile` of `program` and returns its output with the JSON.
fn profile(program: &[&str]) -> (Output, Value) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("profile.json");
    let output = ub(&["profile", "--format", "json", "--output"])
        .arg(&file)
        .arg("--")
        .args(program)
        .output()
        .expect("ub starts");
    let json = fs::read(&file).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output, serde_json::from_slice(&json).unwrap())
}

/// Passages of all threads from one call to the next.
fn passages(json: &Value, call: &str, next: &str) -> u64 {
    let gaps = json["profile"]["gaps"].as_array().unwrap().iter();
    gaps.filter(|gap| gap["call"] == call && gap["next"] == next)
        .map(|gap| gap["count"].as_u64().unwrap())
        .sum()
}

const COPY: [&str; 6] =
    ["dd", "if=/dev/zero", "of=/dev/null", "bs=3", "count=100000", "status=none"];

#[test]
fn every_passage_is_counted_and_named() {
    if !available() {
        return;
    }
    let (output, json) = profile(&COPY);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!((text(&output.stdout), text(&output.stderr)), Default::default());
    assert_eq!(json["source"], "profile");
    assert_eq!(json["profile"]["lost"]["passages"], 0);
    // The first read follows something else, and what follows the last write
    // is not a read.
    assert_eq!(passages(&json, "read", "write"), 100_000);
    assert_eq!(passages(&json, "write", "read"), 99_999);
    let gaps = json["profile"]["gaps"].as_array().unwrap();
    let hot: Vec<_> = gaps.iter().filter(|gap| gap["call"] == "write").collect();
    let bytes: u64 = hot.iter().map(|gap| gap["bytes"].as_u64().unwrap()).sum();
    assert_eq!(bytes, 300_000);
    let named = hot.iter().find(|gap| gap["calling"].is_string()).expect("a named call site");
    assert!(named["calling"].as_str().unwrap().starts_with("dd"), "{named}");
    assert!(named["function"].as_str().unwrap().starts_with("libc!"), "{named}");
    let report = json["hot_gaps"].as_array().unwrap();
    assert!(report[0]["from"].as_str().unwrap().contains("libc!"), "{}", report[0]);
    // Every call but the first of a thread ends a gap.
    assert_eq!(
        json["syscalls"].as_u64().unwrap(),
        gaps.iter().map(|gap| gap["count"].as_u64().unwrap()).sum::<u64>()
    );
}

#[test]
fn children_are_followed_and_the_status_is_theirs() {
    if !available() {
        return;
    }
    let copy = COPY.join(" ");
    let (output, json) =
        profile(&["sh", "-c", &format!("{copy} & {copy}; wait; echo out; exit 7")]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("out\n".into(), String::new()));
    assert_eq!(passages(&json, "read", "write"), 200_000);
    let programs: Vec<_> =
        json["processes"].as_array().unwrap().iter().filter(|p| p["name"] == "dd").collect();
    assert_eq!(programs.len(), 2, "{}", json["processes"]);
}

#[test]
fn a_program_that_cannot_be_executed_is_reported_as_env_does() {
    if !available() {
        return;
    }
    let output = ub(&["profile", "--", "/nonexistent/program"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(text(&output.stderr).starts_with("ub: /nonexistent/program: "), "{output:?}");
}

#[test]
fn a_running_process_is_watched_until_the_time_is_over() {
    if !available() {
        return;
    }
    let mut copy = Command::new("dd")
        .args(["if=/dev/zero", "of=/dev/null", "bs=1", "status=none"])
        .spawn()
        .unwrap();
    let pid = copy.id().to_string();
    let output = ub(&["profile", "--duration", "0.3", "--format", "folded", "-p", &pid]).output();
    copy.kill().unwrap();
    copy.wait().unwrap();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let stacks = text(&output.stdout);
    assert!(stacks.lines().any(|line| line.starts_with("dd;dd")), "{stacks}");
    assert!(stacks.contains(";libc!write;[gap to read] "), "{stacks}");
}

/// What is only counted in between passes neither for a gap nor for a call.
#[test]
fn calls_are_timed_and_counted_in_turns() {
    /// Powers of two of nanoseconds: half a second, of which nothing here takes as much.
    const LONG: usize = 29;
    if !available() {
        return;
    }
    let stop = AtomicBool::new(false);
    let mut profiler = ub_ebpf_fallback::Profiler::new().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let profile = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
                for _ in 0..1000 {
                    nix::unistd::getppid();
                }
            }
        });
        profiler.watch_process(std::process::id()).unwrap();
        for (only_count, milliseconds) in [(true, 1000), (false, 100), (true, 10), (false, 100)] {
            thread::sleep(Duration::from_millis(100));
            profiler.only_count(only_count).unwrap();
            thread::sleep(Duration::from_millis(milliseconds));
        }
        stop.store(true, Ordering::Relaxed);
        profiler.finish()
    });
    let often = profile.gaps.iter().max_by_key(|gap| gap.count).unwrap();
    let long = |log2: &[u64]| log2[LONG..].iter().sum::<u64>();
    assert_eq!((long(&often.gap_log2), long(&often.call_log2)), (0, 0), "{often:?}");
    assert!(often.timed() > 1000 && profile.counted.calls > 1000, "{profile:?}");
    let seconds = |ns: u64| ns as f64 / 1e9;
    assert!(seconds(profile.counted.elapsed_ns) > 1.0, "{:?}", profile.counted);
    assert!(seconds(profile.elapsed_ns) > 0.4, "{profile:?}");
}

#[test]
fn predictions_tell_programs_apart() {
    if !available() {
        return;
    }
    let verdict = |program: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("prediction.json");
        let words = ["predict", "--format", "json", "--output", file.to_str().unwrap(), "--"];
        let output = ub(&words).args(program).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let json: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        (json["verdict"].as_str().unwrap().to_owned(), json["counted"]["calls"].as_u64().unwrap())
    };
    assert_eq!(
        verdict(&["sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"]).0,
        "not_bound"
    );
    let copy = ["dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=1000000", "status=none"];
    let (verdict, counted) = verdict(&copy);
    assert_ne!(verdict, "not_bound");
    assert!(counted > 1000, "{counted}");
}

#[test]
fn processes_that_are_not_there_are_an_error() {
    if !available() {
        return;
    }
    let output = ub(&["profile", "-p", "4194305"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).starts_with("ub: process 4194305: "), "{output:?}");
    let output = ub(&["profile", "--cgroup", "/nonexistent"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("not a control group"), "{output:?}");
}

/// As in a container that is given no more.
#[test]
fn two_capabilities_are_enough() {
    if !available() || !nix::unistd::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("profile");
    let capabilities = ["--bounding-set", "--inh-caps"];
    let output = Command::new("setpriv")
        .args(capabilities.map(|set| format!("{set}=-all,+bpf,+perfmon")))
        .args([UB, "profile", "--format", "json", "--output"])
        .arg(&file)
        .arg("--")
        .args(COPY)
        .env_remove("UB_DISABLE")
        .output()
        .unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    let json: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(passages(&json, "read", "write"), 100_000);
    let gaps = json["profile"]["gaps"].as_array().unwrap();
    assert!(gaps.iter().any(|gap| gap["function"].is_string()), "no gap has a name");
}

#[test]
fn without_permission_the_program_runs_natively() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("ub");
    fs::copy(UB, &copy).unwrap();
    fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    for subcommand in ["profile", "predict"] {
        let mut command = Command::new(&copy);
        command.args([subcommand, "--", "sh", "-c", "echo out; exit 7"]).stdin(Stdio::null());
        command.env_remove("UB_DISABLE").current_dir("/");
        if nix::unistd::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        assert_eq!(text(&output.stdout), "out\n");
        let error = text(&output.stderr);
        assert!(error.contains("CAP_BPF") && error.contains("running natively"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

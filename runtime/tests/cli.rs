//! `ub run` and `ub stat` on a machine without the kernel module: the program
//! must not notice anything. Where `env` defines the behaviour, `env` is the
//! reference.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, signal, sigprocmask};
use nix::unistd::Pid;

const UB: &str = env!("CARGO_BIN_EXE_ub");

/// `ub` with a clean slate.
fn ub() -> Command {
    assert!(
        !Path::new("/dev/ub").exists(),
        "these tests are about machines without the kernel module"
    );
    let mut command = Command::new(UB);
    command.env_remove("UB_DISABLE").env_remove("UB_LOG").stdin(Stdio::null());
    command
}

fn output(command: &mut Command) -> Output {
    command.output().expect("ub starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The one line that a native run may print.
fn assert_native_notice(stderr: &[u8]) {
    let stderr = text(stderr);
    assert!(stderr.starts_with("ub: kernel module not loaded"), "{stderr:?}");
    assert!(stderr.contains("running natively"), "{stderr:?}");
    assert_eq!(stderr.matches('\n').count(), 1, "{stderr:?}");
}

#[test]
fn without_the_module_it_runs_natively_and_says_so_in_one_line() {
    let output = output(ub().args(["run", "--", "sh", "-c", "echo out; exit 42"]));
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(output.stdout, b"out\n");
    assert_native_notice(&output.stderr);
}

#[test]
fn require_makes_that_a_failure() {
    for subcommand in ["run", "stat"] {
        let output = output(ub().args([subcommand, "--require", "--", "echo", "must not run"]));
        assert_eq!(output.status.code(), Some(125));
        assert!(output.stdout.is_empty());
        assert_eq!(text(&output.stderr).lines().count(), 1, "{}", text(&output.stderr));
    }
}

#[test]
fn disabled_it_is_silent() {
    for subcommand in ["run", "stat"] {
        let output = output(ub().env("UB_DISABLE", "1").args([
            subcommand,
            "--require",
            "sh",
            "-c",
            "exit 7",
        ]));
        assert_eq!(output.status.code(), Some(7));
        assert_eq!(text(&output.stderr), "");
    }
    let zero = output(ub().env("UB_DISABLE", "0").args(["run", "true"]));
    assert_native_notice(&zero.stderr);
}

#[test]
fn the_program_has_the_launchers_pid() {
    let mut child = ub()
        .args(["run", "sh", "-c", "echo $$"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    child.wait().unwrap();
    assert_eq!(said.trim(), pid.to_string());
}

#[test]
fn death_by_signal_is_passed_on() {
    for subcommand in ["run", "stat"] {
        for (name, number) in [("KILL", 9), ("TERM", 15), ("SEGV", 11)] {
            let script = format!("kill -{name} $$");
            let output = output(ub().args([subcommand, "sh", "-c", &script]));
            assert_eq!(output.status.signal(), Some(number), "{subcommand} {name}");
        }
    }
}

#[test]
fn standard_streams_are_the_programs_own() {
    let mut child = ub()
        .args(["run", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(output.stdout, bytes);
    assert_native_notice(&output.stderr);
}

/// Runs `words` under `launcher` after `prepare`, and returns its output.
fn under(launcher: &[&str], words: &[&str], prepare: fn()) -> Output {
    let mut command = Command::new(launcher[0]);
    command.args(&launcher[1..]).args(words).env_remove("UB_DISABLE").stdin(Stdio::null());
    // SAFETY: every `prepare` in this file makes async-signal-safe calls only.
    unsafe {
        command.pre_exec(move || {
            prepare();
            Ok(())
        });
    }
    output(&mut command)
}

#[test]
fn signal_settings_are_untouched() {
    fn nothing() {}
    fn ignored() {
        for number in [Signal::SIGCHLD, Signal::SIGPIPE, Signal::SIGINT] {
            // SAFETY: ignoring runs no code.
            unsafe { signal(number, SigHandler::SigIgn) }.unwrap();
        }
    }
    fn defaults() {
        // SAFETY: the default disposition runs no code.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.unwrap();
    }
    fn blocked() {
        let set: SigSet = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGUSR1].into_iter().collect();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None).unwrap();
    }
    // Not SigQ: it counts the signals of all processes of the user.
    let words = ["grep", "-E", "^(Sig[^Q]|Shd)", "/proc/self/status"];
    for prepare in [nothing, ignored, defaults, blocked] {
        let reference = under(&["env"], &words, prepare);
        assert!(text(&reference.stdout).contains("SigIgn"));
        for launcher in [&[UB, "run", "--"], &[UB, "stat", "--"]] {
            let output = under(launcher, &words, prepare);
            assert_eq!(text(&output.stdout), text(&reference.stdout), "{launcher:?}");
        }
    }
}

#[test]
fn descriptors_are_untouched_even_closed_ones() {
    let script = "echo /proc/$$/fd/* >&9";
    for redirections in ["9>&1", "9>&1 </dev/null", "9>&1 <&-", "9>&1 >&-", "9>&1 <&- >&- 2>&-"] {
        let run = |launcher: &str| {
            let line = format!("exec {launcher} sh -c '{script}' {redirections}");
            output(ub_shell(&line)).stdout
        };
        // The names contain the pid, which differs.
        let numbers = |stdout: Vec<u8>| {
            let stdout = text(&stdout);
            let names: Vec<_> = stdout
                .split_whitespace()
                .map(|path| path.rsplit('/').next().unwrap_or_default().to_owned())
                .collect();
            assert!(!names.is_empty(), "{redirections}");
            names
        };
        let reference = numbers(run("env"));
        assert_eq!(numbers(run(&format!("{UB} run --"))), reference, "{redirections}");
    }
}

/// A shell that starts something with unusual redirections.
fn ub_shell(line: &str) -> &mut Command {
    let mut command = Command::new("sh");
    command.args(["-c", line]).env_remove("UB_DISABLE").stdin(Stdio::null());
    Box::leak(Box::new(command))
}

#[test]
fn the_program_has_no_unexpected_children() {
    // The shell reads it itself: what it starts would be among them, or not yet.
    let script = "wait; for list in /proc/$$/task/*/children; do children=; \
                  read -r children <$list; echo \"[$children]\"; done";
    let reference = output(Command::new("env").args(["sh", "-c", script]));
    assert_eq!(text(&reference.stdout), "[]\n");
    let output = output(ub().args(["run", "sh", "-c", script]));
    assert_eq!(text(&output.stdout), text(&reference.stdout));
}

#[test]
fn what_cannot_be_executed_is_reported_as_env_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let file = |name: &str, content: &[u8], mode| {
        fs::write(path(name), content).unwrap();
        fs::set_permissions(path(name), Permissions::from_mode(mode)).unwrap();
    };
    file("plain", b"hello", 0o644);
    file("garbage", b"\x7fELF\x02\x01\x01 truncated", 0o755);
    file("empty", b"", 0o755);
    file("script", b"#!/bin/sh\necho script \"$1\"; exit 5\n", 0o755);
    file("no-interpreter", b"#!/absent/interpreter\n", 0o755);
    file("no-shebang", b"echo hello\nexit 6\n", 0o755);
    let mut codes = Vec::new();
    for name in
        ["absent", "plain", "garbage", "empty", "script", "no-interpreter", "no-shebang", "."]
    {
        let program = path(name);
        let reference = output(Command::new("env").args([&program, "x"]));
        for subcommand in ["run", "stat"] {
            let mut command = ub();
            let output = output(command.args([subcommand, "--", &program, "x"]));
            assert_eq!(output.status.code(), reference.status.code(), "{subcommand} {name}");
            assert_eq!(text(&output.stdout), text(&reference.stdout), "{subcommand} {name}");
            if matches!(output.status.code(), Some(126 | 127)) && name != "garbage" {
                let stderr = text(&output.stderr);
                let last = stderr.lines().last().unwrap();
                assert!(last.starts_with(&format!("ub: {program}: ")), "{stderr}");
            }
        }
        codes.push((name, reference.status.code().unwrap()));
    }
    // The reference itself is what this project promises.
    for expected in [("absent", 127), ("plain", 126), (".", 126), ("script", 5)] {
        assert!(codes.contains(&expected), "{codes:?}");
    }
    // By name, through PATH.
    let output = output(ub().env("PATH", dir.path()).args(["run", "script", "y"]));
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(5), "script y\n".to_owned()));
}

#[test]
fn bad_usage_is_125_and_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent/file");
    let absent = absent.to_str().unwrap();
    let cases: [&[&str]; 14] = [
        &[],
        &["no-such-command"],
        &["run"],
        &["run", "--"],
        &["run", "--no-such-option", "true"],
        &["run", "--hot-count", "x", "true"],
        &["run", "--hot-count", "0", "true"],
        &["run", "--gap-max-us", "99999999999999999999", "true"],
        &["run", "--report", absent, "true"],
        &["run", "--log", absent, "true"],
        &["stat", "-v", "true"],
        &["stat"],
        &["report"],
        &["top", "--interval", "0"],
    ];
    for case in cases {
        let output = output(ub().args(case));
        assert_eq!(output.status.code(), Some(125), "{case:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.starts_with("ub: ") && stderr.lines().count() == 1, "{case:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{case:?}");
    }
}

#[test]
fn options_after_the_program_are_the_programs() {
    let output = output(ub().args(["run", "echo", "--require", "-v", "--", "--help"]));
    assert_eq!(text(&output.stdout), "--require -v -- --help\n");
}

#[test]
fn arguments_need_not_be_text() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let word = OsStr::from_bytes(b"\xff\xfe");
    let output = output(ub().args(["run", "printf", "%s"]).arg(word));
    assert_eq!(output.stdout, b"\xff\xfe");
}

#[test]
fn the_report_of_a_native_run_says_why() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, name) in
        [(["run", "--report"], "run.json"), (["stat", "--report"], "stat.json")]
    {
        let path = dir.path().join(name);
        // Relative, as a user would name it.
        let output =
            output(ub().current_dir(dir.path()).args(arguments).args([name, "--", "true", "x"]));
        assert!(output.status.success());
        let report: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(report["schema"], 1);
        assert_eq!(report["active"], false);
        assert_eq!(report["command"], serde_json::json!(["true", "x"]));
        assert!(report["inactive_reason"].as_str().unwrap().contains("module not loaded"));
        assert_eq!(report["syscalls"], 0);
        assert!(report["environment"]["kernel"].is_string());
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn stat_tells_programs_that_nothing_was_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("result.json");
    let words = ["stat", "--format", "json", "--output", path.to_str().unwrap()];
    let output = output(ub().args(words).args(["--", "sh", "-c", "exit 3"]));
    assert_eq!(output.status.code(), Some(3));
    let report: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!((&report["schema"], &report["active"]), (&1.into(), &false.into()));

    // Behind what the program wrote, whatever standard output is.
    for file in ["-", "/dev/stdout"] {
        let log = fs::File::create(&path).unwrap();
        let words = ["stat", "--format", "json", "--output", file, "--", "echo", "hello"];
        let status = ub().args(words).stdout(log).stderr(Stdio::null()).status().unwrap();
        assert!(status.success());
        let written = fs::read_to_string(&path).unwrap();
        let (said, json) = written.split_once('\n').unwrap();
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!((said, &json["command"]), ("hello", &serde_json::json!(["echo", "hello"])));
    }

    // A result that goes nowhere is a failure, but the program's is the first.
    for (program, expected) in [("true", 125), ("false", 1)] {
        let words = ["stat", "--format", "json", "--output", "/absent/file", "--", program];
        let output = self::output(ub().args(words));
        assert_eq!(output.status.code(), Some(expected), "{program}");
        assert!(text(&output.stderr).contains("cannot write /absent/file: "), "{output:?}");
    }
}

/// Every result can be had as JSON with its version, in the same way.
#[test]
fn results_have_a_form_for_programs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("result.json");
    for (words, expected) in [
        (&["doctor"][..], 1),
        (&["doctor", "--unit", "absent.service"], 1),
        (&["config", "show"], 0),
        (&["coverage", "/usr/bin/true"], 0),
    ] {
        let printed = output(ub().args(words).args(["-f", "json"]));
        assert_eq!(printed.status.code(), Some(expected), "{words:?}");
        let json: serde_json::Value = serde_json::from_slice(&printed.stdout).unwrap();
        assert_eq!(json["schema"], 1, "{words:?}");
        let file = ["-f", "json", "-o", path.to_str().unwrap()];
        let written = output(ub().args(words).args(file));
        assert_eq!((written.status.code(), written.stdout.len()), (Some(expected), 0), "{words:?}");
        let again: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(again["schema"], 1, "{words:?}");
        let nowhere = output(ub().args(words).args(["-f", "json", "-o", "/absent/file"]));
        assert_eq!(nowhere.status.code(), Some(125), "{words:?}");
    }
}

#[test]
fn stat_passes_signals_on() {
    let mut child = ub()
        .args([
            "stat",
            "sh",
            "-c",
            "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.05; done",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready\n");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "got it\n");
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[test]
fn a_closed_stderr_harms_nobody() {
    let line = format!("exec {UB} run -- sh -c 'exit 9' 2>&-");
    assert_eq!(output(ub_shell(&line)).status.code(), Some(9));
    let line = format!("exec {UB} run -- sh -c 'exit 9' 2>/dev/full");
    assert_eq!(output(ub_shell(&line)).status.code(), Some(9));
}

#[test]
fn every_backend_leaves_the_program_alone() {
    let run = |backend: &str, require: bool| {
        let mut command = ub();
        command.args(["run", "--backend", backend]);
        if require {
            command.arg("--require");
        }
        output(command.args(["--", "sh", "-c", "echo out; exit 42"]))
    };
    let may_filter = ub_ebpf_fallback::packet_filter::permitted().is_ok();
    for backend in ["auto", "kmod", "bpf", "none"] {
        let output = run(backend, false);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(42), "out\n".into()));
        let silent = match backend {
            "none" => true,
            "bpf" => may_filter,
            _ => false,
        };
        let notices = usize::from(!silent);
        assert_eq!(text(&output.stderr).matches("running natively\n").count(), notices);
        assert_eq!(text(&output.stderr).lines().count(), notices, "{backend}");
    }
    let expected = |possible: bool| if possible { (Some(42), 4) } else { (Some(125), 0) };
    for (backend, possible) in [("kmod", false), ("bpf", may_filter)] {
        let required = run(backend, true);
        assert_eq!((required.status.code(), required.stdout.len()), expected(possible));
    }
}

#[test]
fn doctor_says_what_is_missing() {
    let plain = output(ub().arg("doctor"));
    assert_eq!(plain.status.code(), Some(1));
    let said = text(&plain.stdout);
    for part in ["not loaded", "/dev/ub is absent", "->"] {
        assert!(said.contains(part), "{part} missing in {said}");
    }

    let json = output(ub().args(["doctor", "--format", "json"]));
    assert_eq!(json.status.code(), Some(1));
    let diagnosis: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(diagnosis["rides_possible"], false);
    assert_eq!(diagnosis["policy_source"], "predicted");
    let backends = diagnosis["backends"].as_array().unwrap();
    assert_eq!(backends.len(), 3);
    for backend in backends {
        assert!(backend["available"] == true || backend["missing"].is_string(), "{backend}");
    }
    assert_eq!(backends[0]["available"], false);
    let blocked = diagnosis["checks"].as_array().unwrap().iter();
    assert!(blocked.clone().any(|c| c["name"] == "device" && c["state"] == "blocks"));
}

//! `ub stat -p`, `ub top` and `ub report`: looking into sessions. Without the
//! kernel module there are none, so these tests play the supervisor.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::pty::{Winsize, openpty};
use ub_report::{GapRow, GapState, Process, Report, Source};
use ub_runtime::inspect::{Answer, Question, Server};

/// A session of which there is only the supervisor's socket.
struct Session {
    runtime_dir: tempfile::TempDir,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Session {
    /// One whose program is this process.
    fn start() -> Self {
        let runtime_dir = tempfile::tempdir().unwrap();
        let folder = runtime_dir.path().join("ub");
        std::fs::create_dir(&folder).unwrap();
        let server = Server::start_in(&folder).unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let mut fds = [PollFd::new(server.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, 50u16).unwrap();
                server.serve(|question| match question {
                    Question::Report => Answer::Report(Box::new(report())),
                    Question::Fragment { .. } => Answer::Fragment(None),
                });
            }
        });
        Self { runtime_dir, end, thread: Some(thread) }
    }

    fn ub(&self) -> Command {
        let mut command = ub();
        command.env("XDG_RUNTIME_DIR", self.runtime_dir.path());
        command
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn report() -> Report {
    let pid = std::process::id();
    let mut report = Report::new(Source::Session, vec!["a-program".into()], Default::default());
    report.pid = Some(pid);
    report.elapsed_ns = 1_000_000_000;
    report.totals.syscalls = 1000;
    report.totals.ridden = 600;
    report.totals.settle();
    report.hot_gaps = vec![GapRow {
        space: 1,
        address: 0x1000,
        from: Some("libc!write+0x14".into()),
        to: Some("epoll_wait".into()),
        count: 100,
        state: GapState::Retired,
        reason: Some("cost time, with confidence".into()),
        ..GapRow::default()
    }];
    report.processes = vec![Process { space: 1, pid: Some(pid), name: "a-program".into() }];
    report
}

fn ub() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ub"));
    command.env_remove("UB_DISABLE").env_remove("UB_LOG").stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Output {
    command.output().expect("ub starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).expect("JSON")
}

#[test]
fn stat_shows_a_running_session_to_its_members_only() {
    let session = Session::start();
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    for member in [std::process::id(), child.id()] {
        let output = run(session.ub().args(["stat", "-p", &member.to_string()]));
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said = text(&output.stdout);
        assert!(said.contains("session so far of `a-program`"), "{said}");
        assert!(said.contains("60.0 % of system calls"), "{said}");
    }
    child.kill().unwrap();
    child.wait().unwrap();

    let output = run(session.ub().args(["stat", "-p", "1"]));
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("process 1 is in no session"));
    let output = run(session.ub().args(["stat", "-p", "4194305"]));
    assert!(text(&output.stderr).contains("no process 4194305"));
}

#[test]
fn json_of_a_running_session_can_be_read_back() {
    let session = Session::start();
    let pid = std::process::id().to_string();
    let output = run(session.ub().args(["stat", "-p", &pid, "--format", "json"]));
    let file = session.runtime_dir.path().join("report.json");
    std::fs::write(&file, &output.stdout).unwrap();
    assert_eq!(ub_report::read(&file).unwrap(), report());
    let shown = run(ub().args(["report", "--format", "json"]).arg(&file));
    assert_eq!(shown.stdout, output.stdout);
}

#[test]
fn a_report_is_shown_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.json");
    std::fs::write(&file, report().to_json()).unwrap();
    for (format, expected) in
        [("text", "session so far"), ("json", "\"schema\":1"), ("html", "<!DOCTYPE html>")]
    {
        let printed = run(ub().args(["report", "--format", format]).arg(&file));
        assert!(printed.status.success() && text(&printed.stdout).contains(expected), "{format}");
        let page = dir.path().join(format);
        let written = run(ub().args(["report", "-f", format, "-o"]).args([&page, &file]));
        assert!(written.status.success() && written.stdout.is_empty());
        assert_eq!(std::fs::read(page).unwrap(), printed.stdout);
    }
}

#[test]
fn what_cannot_be_shown_is_one_line_that_says_what_to_do() {
    let empty = tempfile::tempdir().unwrap();
    let file = empty.path().join("garbage");
    std::fs::write(&file, "garbage").unwrap();
    let file = file.to_str().unwrap();
    let pid = std::process::id().to_string();
    for (arguments, advice) in [
        (vec!["stat", "-p", &pid], "`ub doctor` says"),
        (vec!["report", "-p", &pid], "`ub doctor` says"),
        (vec!["explain", "-p", &pid], "`ub doctor` says"),
        (vec!["top"], "`ub doctor` says"),
        (vec!["top", "--once"], "`ub doctor` says"),
        (vec!["report", file], "ub run --report FILE"),
        (vec!["report", "/absent"], "cannot read /absent"),
    ] {
        let output = run(ub().env("XDG_RUNTIME_DIR", empty.path()).args(&arguments));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {said}");
        assert!(said.contains(advice) && said.lines().count() == 1, "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn explain_says_what_is_known_and_what_is_not() {
    let session = Session::start();
    let pid = std::process::id().to_string();
    let output = run(session.ub().args(["explain", "-p", &pid]));
    let said = text(&output.stdout);
    assert!(said.contains("0x1000  libc!write+0x14 -> epoll_wait"), "{said}");
    assert!(said.contains("retired: cost time"), "{said}");
    let output = run(session.ub().args(["explain", "-p", &pid, "0x1000"]));
    let said = text(&output.stdout);
    assert!(said.contains("gap 0x1000") && said.contains("no fragment for this address"), "{said}");
    let output = run(session.ub().args(["explain", "-p", &pid, "0x2000"]));
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("nothing is known about 0x2000"));
    for address in [&[][..], &["0x1000"]] {
        let arguments = ["explain", "--format", "json", "-p", &pid];
        let json = json(&run(session.ub().args(arguments).args(address)).stdout);
        assert_eq!(json["schema"], 1);
        assert_eq!(json["gaps"][0]["reason"], "cost time, with confidence");
        assert!(json["gaps"][1].is_null() && json["fragment"].is_null(), "{json}");
    }
}

#[test]
fn top_once_is_for_scripts() {
    let session = Session::start();
    let output = run(session.ub().args(["top", "--once", "--interval", "0.1"]));
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains("a-program"), "{said}");
    assert!(!said.contains('\x1b'), "{said}");
    let json = json(&run(session.ub().args(["top", "-i", "0.1", "--format", "json"])).stdout);
    assert_eq!((&json["schema"], &json["processes"][0]["name"]), (&1.into(), &"a-program".into()));
    assert_eq!(json["gaps"][0]["state"], "retired");
    let file = session.runtime_dir.path().join("top");
    let output = run(session.ub().args(["top", "-i", "0.1", "--output"]).arg(&file));
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(std::fs::read_to_string(&file).unwrap().contains("a-program"));
    let output = run(session.ub().arg("top"));
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("ub top --once"));
}

/// Runs `ub top` on a terminal of 80 by 24 until `end` is done to it, and
/// returns what it wrote; it must succeed.
fn on_a_terminal(session: &Session, end: impl FnOnce(&mut std::fs::File, u32)) -> String {
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(&size, None).unwrap();
    let side = || Stdio::from(terminal.slave.try_clone().unwrap());
    let mut child = session
        .ub()
        .args(["top", "--interval", "0.2"])
        .env("TERM", "xterm")
        .stdin(side())
        .stdout(side())
        .stderr(side())
        .spawn()
        .unwrap();
    drop(terminal.slave);
    let mut master = std::fs::File::from(terminal.master);
    let mut written = String::new();
    let mut end = Some(end);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let mut buffer = [0; 4096];
        // At the end of the other side, Linux says EIO.
        let Ok(length @ 1..) = master.read(&mut buffer) else { break };
        written += &String::from_utf8_lossy(&buffer[..length]);
        if written.contains("a-program")
            && written.contains("interval")
            && let Some(end) = end.take()
        {
            end(&mut master, child.id());
        }
        assert!(Instant::now() < deadline, "still running: {written:?}");
    }
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}: {written:?}");
    written
}

#[test]
fn top_leaves_the_terminal_as_it_was() {
    const ENTER: &str = "\x1b[?1049h";
    const LEAVE: &str = "\x1b[?1049l";
    let session = Session::start();
    let by_key = on_a_terminal(&session, |terminal, _| terminal.write_all(b"sq").unwrap());
    let by_signal = on_a_terminal(&session, |_, pid| {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    });
    for written in [by_key, by_signal] {
        assert!(written.contains(ENTER), "{written:?}");
        assert!(written.rfind(LEAVE) > written.rfind(ENTER), "{written:?}");
    }
}

//! `ub run --backend bpf` on this machine's own kernel: a packet counter and
//! programs like it, at the end of a cable or with a UDP socket
//! (`ebpf-fallback/tests/support/cable.rs`).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[path = "../../ebpf-fallback/tests/support/mod.rs"]
mod support;

use support::cable::Cable;
use support::{LAST_PORT, PATIENCE, Random, WANTED_PORT, compile, number};

const UB: &str = env!("CARGO_BIN_EXE_ub");

/// A running packet counter; it ends with the test.
struct Counter {
    child: Child,
    log: Option<PathBuf>,
}

impl Counter {
    fn start(cable: &Cable, program: &Path, deed: &str, log: Option<PathBuf>) -> Self {
        let mut command = match &log {
            None => Command::new(program),
            Some(log) => {
                let mut command = Command::new(UB);
                command.args(["run", "--backend", "bpf", "-v", "--log"]).arg(log);
                command.arg("--report").arg(report_of(log)).arg("--");
                command.arg(program);
                command
            }
        };
        command.args([cable.receiver, deed]).env_remove("UB_DISABLE").stdin(Stdio::null());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let counter = Self { child, log };
        counter.wait_until("it waits for packets", || {
            let process = PathBuf::from(format!("/proc/{}", counter.child.id()));
            let call = fs::read_to_string(process.join("syscall")).unwrap_or_default();
            // `ub` receives, too, before it becomes the program.
            fs::read_link(process.join("exe")).is_ok_and(|exe| exe == program)
                && call.starts_with("45 0x")
        });
        counter
    }

    fn wait_until(&self, what: &str, mut is: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is() {
            assert!(Instant::now() < deadline, "{what}: {}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the supervisor logged.
    fn said(&self) -> String {
        self.log.as_ref().and_then(|log| fs::read_to_string(log).ok()).unwrap_or_default()
    }

    /// Sends what nobody wants until the supervisor says one of `words`.
    fn keep_busy_until(&self, cable: &Cable, words: &[&str]) {
        self.wait_until(&format!("{words:?}"), || {
            cable.send_udp(9, 5);
            let said = self.said();
            words.iter().any(|word| said.contains(word))
        });
    }

    /// Waits without a pause: this is done after each packet.
    fn wait_until_asleep(&self) {
        let deadline = Instant::now() + PATIENCE;
        let path = format!("/proc/{}/stat", self.child.id());
        while !fs::read_to_string(&path).is_ok_and(|stat| stat.contains(") S ")) {
            assert!(Instant::now() < deadline, "the program does not wait for packets");
        }
    }

    /// How often it went to sleep.
    fn sleeps(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse().unwrap()
    }

    /// Ends it; returns what it printed.
    fn finish(mut self, cable: &Cable) -> String {
        cable.send_udp(LAST_PORT, 1);
        let printed = self.end();
        if self.log.is_some() {
            self.wait_until("the log ends", || self.said().contains("the program has ended"));
        }
        printed
    }

    /// Waits until it has ended; returns what it printed.
    fn end(&mut self) -> String {
        let (mut printed, mut errors) = (String::new(), String::new());
        self.child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success() && !errors.contains("ub:"), "{status}: {printed} {errors}");
        printed
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // A test that failed leaves it waiting for packets.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the supervisor that writes `log` leaves its report.
fn report_of(log: &Path) -> PathBuf {
    log.with_extension("json")
}

/// What `ub` with these words says of sessions.
fn shown(words: &[&OsStr]) -> String {
    let output = Command::new(UB).args(words).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// How packets arrive.
#[derive(Clone, Copy, PartialEq)]
enum Arrival {
    /// The next when the program waits for it.
    Single,
    /// Some at once, so that some find the program busy.
    Bursts,
}

impl Arrival {
    /// How many packets come at once; all of them find room in a socket.
    fn next(self, random: &mut Random) -> usize {
        match self {
            Self::Single => 1,
            Self::Bursts => 1 + random.below(32) as usize,
        }
    }
}

/// What became of the packets of one run.
struct Received {
    printed: String,
    wanted: usize,
    calls: usize,
}

/// Runs the counter with and without filter on the same packets, random and
/// captured ones.
fn compare(cable: Option<Cable>, packets: usize, arrival: Arrival) {
    let Some(cable) = cable else { return };
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), &[]);
    let native = receive(&cable, Counter::start(&cable, &program, "", None), packets, arrival);
    let log = dir.path().join("log");
    let filtered = Counter::start(&cable, &program, "", Some(log));
    filtered.keep_busy_until(&cable, &["packets are filtered"]);
    let filtered = receive(&cable, filtered, packets, arrival);
    assert_eq!(native.printed, filtered.printed);
    assert!(native.wanted > packets / 20, "{}", native.printed);
    let Received { wanted, calls, .. } = filtered;
    assert!(calls < packets, "no packet was kept from the program");
    if arrival == Arrival::Single {
        // What came while the program was busy with a wanted packet passes.
        assert!(calls < wanted * 2, "{calls} packets for {wanted} wanted ones");
    }
}

/// Sends packets and ends the program.
fn receive(cable: &Cable, counter: Counter, packets: usize, arrival: Arrival) -> Received {
    let before = counter.sleeps();
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut sent = 0;
    while sent < packets {
        let burst = arrival.next(&mut random).min(packets - sent);
        (0..burst).for_each(|_| cable.transmit(&cable.frame(&mut random)));
        cable.settle();
        if arrival == Arrival::Single {
            counter.wait_until_asleep();
        }
        sent += burst;
    }
    let sleeps = counter.sleeps() - before;
    let log = counter.log.clone();
    let printed = counter.finish(cable);
    let wanted: usize = printed.split(' ').nth(1).unwrap().parse().unwrap();
    let mut calls = packets;
    if let Some(log) = &log {
        let report = ub_report::read(&report_of(log)).unwrap();
        let filters = report.packet_filters.unwrap();
        let log = fs::read_to_string(log).unwrap();
        assert_eq!(filters.dropped, number(&log, "dropped"));
        // Whoever looks at all processes, as ps does, ends a filter for a moment.
        let looked_at = |event: &&ub_report::packet_filter::PacketFilterEvent| {
            event
                .reason
                .as_ref()
                .is_some_and(|reason| reason.starts_with("somebody else uses the memory"))
        };
        let looks = filters.events.iter().filter(looked_at).count();
        let others = filters.events.len() - looks;
        assert!(others == looks || others == looks + 1, "ended otherwise: {filters:?}");
        assert_eq!(log.matches("taken away").count(), looks, "{log}");
        calls = (number(&log, "kept") + number(&log, "passed")) as usize;
    }
    println!(
        "{}: {packets} packets, {wanted} wanted, {calls} received: {:.2} transitions and {:.2} \
         wake-ups per wanted packet",
        if log.is_some() { "filtered" } else { "native" },
        calls as f64 / wanted as f64,
        sleeps as f64 / wanted as f64
    );
    Received { printed, wanted, calls }
}

#[test]
fn the_same_answers_with_fewer_packets() {
    compare(Cable::new(), 20_000, Arrival::Single);
}

#[test]
fn the_same_answers_when_packets_come_in_bursts() {
    compare(Cable::new(), 20_000, Arrival::Bursts);
}

#[test]
fn the_same_answers_with_fewer_datagrams() {
    compare(Cable::udp(), 20_000, Arrival::Single);
}

#[test]
fn the_same_answers_when_datagrams_come_in_bursts() {
    compare(Cable::udp(), 20_000, Arrival::Bursts);
}

#[test]
#[ignore = "long: a million packets, one by one and in bursts, with and without filter"]
fn the_same_answers_over_a_million_packets() {
    for arrival in [Arrival::Single, Arrival::Bursts] {
        compare(Cable::new(), 1_000_000, arrival);
    }
}

#[test]
#[ignore = "long: a million datagrams, one by one and in bursts, with and without filter"]
fn the_same_answers_over_a_million_datagrams() {
    for arrival in [Arrival::Single, Arrival::Bursts] {
        compare(Cable::udp(), 1_000_000, arrival);
    }
}

#[test]
fn programs_with_effects_get_no_filter() {
    let Some(cable) = Cable::new() else { return };
    for (options, reasons) in [
        // Or seen to change, between two looks at it.
        (&["-DCOUNTS_ALL"][..], &["changes memory", "memory that changed"][..]),
        (&["-DLOGS"], &["calls write"]),
        (&["-DREADS_CLOCK"], &["no packet is without effect"]),
        (&["-DLOOPS"], &["loop over the packet"]),
        (&["-DREADS_SHARED"], &["memory that others may change"]),
        (&["-DREADS_UNGUARDED"], &["behind the end of the packet"]),
        (&["-DRECEIVES_ADDRESS"], &["asks for more than the packet"]),
        (&["-DFORKS"], &["another descriptor (fork, dup, passed on)"]),
    ] {
        let names_reason = |text: &str| reasons.iter().any(|reason| text.contains(reason));
        let dir = tempfile::tempdir().unwrap();
        let program = compile(dir.path(), options);
        let counter = Counter::start(&cable, &program, "", Some(dir.path().join("log")));
        println!("{options:?}");
        counter.keep_busy_until(&cable, &["no packet filter", "taken away"]);
        let said = counter.said();
        assert!(names_reason(&said), "{options:?}: {said}");
        // Nothing was dropped, and it still counts.
        cable.send_udp(WANTED_PORT, 10);
        let log = counter.log.clone().unwrap();
        let printed = counter.finish(&cable);
        assert!(printed.starts_with("wanted 10 "), "{options:?}: {printed}");
        assert_eq!(number(&fs::read_to_string(&log).unwrap(), "dropped"), 0, "{options:?}");
        let shown = shown(&["report".as_ref(), report_of(&log).as_os_str()]);
        assert!(names_reason(&shown) && shown.contains("0  transitions saved"), "{shown}");
    }
}

#[test]
fn filters_end_with_their_assumptions() {
    let Some(cable) = Cable::new() else { return };
    for (deed, reason) in [
        ("dup", "the process called dup"),
        ("fork", "the process called clone"),
        ("filter", "the process called setsockopt"),
        ("code", "the process called mprotect"),
        ("close", "the process called socket"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let program = compile(dir.path(), &[]);
        let counter = Counter::start(&cable, &program, deed, Some(dir.path().join("log")));
        counter.keep_busy_until(&cable, &["packets are filtered"]);
        let pid = nix::unistd::Pid::from_raw(counter.child.id().cast_signed());
        let top = shown(&["top", "--once", "--interval", "0.1"].map(OsStr::new));
        let mut lines = top.lines().map(str::trim);
        let ours = lines.find(|line| line.starts_with(&format!("{pid} ")));
        assert!(ours.is_some_and(|line| line.ends_with("packets are filtered")), "{top}");
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
        let pid = OsString::from(pid.to_string());
        let running = shown(&["report".as_ref(), "-p".as_ref(), pid.as_ref()]);
        assert!(running.contains("packets are filtered"), "{running}");
        counter.wait_until(deed, || counter.said().contains("taken away"));
        assert!(counter.said().contains(reason), "{deed}: {}", counter.said());
        cable.send_udp(WANTED_PORT, 10);
        let printed = counter.finish(&cable);
        assert!(printed.starts_with("wanted 10 "), "{deed}: {printed}");
    }
}

#[test]
fn packets_are_judged_by_what_the_program_has_in_memory_now() {
    let Some(cable) = Cable::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), &["-DREADS_GLOBAL", "-no-pie"]);
    let counter = Counter::start(&cable, &program, "", Some(dir.path().join("log")));
    counter.keep_busy_until(&cable, &["packets are filtered"]);
    // The test plays the program: the next packet that wakes it finds another
    // port there.
    let address = symbol(&program, "port_now");
    let memory = fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/{}/mem", counter.child.id()))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&memory, &4343u16.to_le_bytes(), address).unwrap();
    cable.send_udp(WANTED_PORT, 1);
    counter.wait_until("taken away", || counter.said().contains("taken away"));
    assert!(counter.said().contains("memory changed that packets were judged by"));
    cable.send_udp(WANTED_PORT, 5);
    cable.send_udp(4343, 7);
    let printed = counter.finish(&cable);
    assert!(printed.starts_with("wanted 7 "), "{printed}");
}

/// Address of a variable in a program that is not moved.
fn symbol(program: &Path, name: &str) -> u64 {
    let bytes = fs::read(program).unwrap();
    let elf = goblin::elf::Elf::parse(&bytes).unwrap();
    let is_it = |symbol: &goblin::elf::Sym| elf.strtab.get_at(symbol.st_name) == Some(name);
    elf.syms.iter().find(is_it).expect("the symbol").st_value
}

#[test]
fn a_supervisor_that_dies_leaves_the_program_all_its_packets() {
    let Some(cable) = Cable::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), &[]);
    let mut counter = Counter::start(&cable, &program, "", Some(dir.path().join("log")));
    counter.keep_busy_until(&cable, &["packets are filtered"]);
    let supervisor = supervisor_of(counter.log.as_ref().unwrap());
    let pid = nix::unistd::Pid::from_raw(supervisor);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    counter.wait_until("it is gone", || !Path::new(&format!("/proc/{supervisor}/fd/0")).exists());
    // The kernel takes a moment to empty the array of decisions.
    let before = counter.sleeps();
    counter.wait_until("packets are still dropped", || {
        cable.send_udp(9, 1);
        counter.sleeps() > before
    });
    for _ in 0..50 {
        let before = counter.sleeps();
        cable.send_udp(9, 1);
        counter.wait_until("a packet was dropped", || counter.sleeps() > before);
    }
    cable.send_udp(WANTED_PORT, 10);
    cable.send_udp(LAST_PORT, 1);
    let printed = counter.end();
    assert!(printed.starts_with("wanted 10 "), "{printed}");
}

/// The process that has this log open.
fn supervisor_of(log: &Path) -> i32 {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has_log = |pid: &i32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file == log)
    };
    pids.find(has_log).expect("a supervisor")
}

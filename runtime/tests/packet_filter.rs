//! `ub run --backend bpf` on this machine's own kernel: a packet counter and
//! programs like it, between two ends of a virtual cable in a network of
//! their own. Where the user who runs the tests may not use BPF or make
//! networks, nothing is tested, which is said.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[path = "../../ebpf-fallback/tests/support/mod.rs"]
mod support;

use support::{LAST_PORT, Random, WANTED_PORT, compile, random_packet, udp_packet};

const UB: &str = env!("CARGO_BIN_EXE_ub");
const OUR_END: &CStr = c"ub-ours";
const THEIR_END: &str = "ub-theirs";
/// Largest and smallest frames of the cable.
const FRAME: std::ops::RangeInclusive<usize> = 14..=1514;
const PATIENCE: Duration = Duration::from_secs(30);

/// A network of this thread's own, with a cable in it.
struct Cable {
    socket: OwnedFd,
}

impl Cable {
    /// `None` where that is not possible.
    fn new() -> Option<Self> {
        if let Err(reason) = ub_ebpf_fallback::packet_filter::check() {
            eprintln!("not tested: {reason}");
            return None;
        }
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            eprintln!("not tested: no network of its own: {error}");
            return None;
        }
        // Nothing but what the test sends.
        let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        let ours = OUR_END.to_str().unwrap();
        let add = ["link", "add", ours, "type", "veth", "peer", "name", THEIR_END];
        for words in [&add[..], &["link", "set", ours, "up"], &["link", "set", THEIR_END, "up"]] {
            let output = Command::new("ip").args(words).output();
            if !output.as_ref().is_ok_and(|output| output.status.success()) {
                eprintln!("not tested: ip {}: {output:?}", words.join(" "));
                return None;
            }
        }
        Some(Self { socket: packet_socket().unwrap() })
    }

    /// Sends a frame and waits until the receiver has taken it, or lost it to
    /// a filter.
    fn send(&self, frame: &[u8]) {
        // SAFETY: the kernel reads that many bytes.
        let sent =
            unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
        let deadline = Instant::now() + PATIENCE;
        while queued() {
            assert!(Instant::now() < deadline, "the program does not take its packets");
            std::hint::spin_loop();
        }
    }

    fn send_udp(&self, port: u16, times: usize) {
        for _ in 0..times {
            self.send(&udp_packet(port, 5, 40));
        }
    }
}

/// Whether packets wait in any packet socket of this network.
fn queued() -> bool {
    let sockets = fs::read_to_string("/proc/thread-self/net/packet").unwrap();
    // Fields: sk, references, type, protocol, interface, running, memory.
    sockets.lines().skip(1).any(|line| line.split_ascii_whitespace().nth(6) != Some("0"))
}

/// A socket that sends frames into our end and receives none.
fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: `sockaddr_ll` is numbers only.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    // SAFETY: the name ends with a zero.
    address.sll_ifindex = unsafe { libc::if_nametoindex(OUR_END.as_ptr()) }.cast_signed();
    // SAFETY: the address is of that size.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// A frame that the cable takes.
fn frame(random: &mut Random) -> Vec<u8> {
    let mut frame = random_packet(random);
    frame.resize(frame.len().clamp(*FRAME.start(), *FRAME.end()), 0);
    frame
}

/// A running packet counter.
struct Counter {
    child: Child,
    log: Option<PathBuf>,
}

impl Counter {
    fn start(program: &Path, deed: &str, log: Option<PathBuf>) -> Self {
        let mut command = match &log {
            None => Command::new(program),
            Some(log) => {
                let mut command = Command::new(UB);
                command.args(["run", "--backend", "bpf", "-v", "--log"]).arg(log).arg("--");
                command.arg(program);
                command
            }
        };
        command.args([THEIR_END, deed]).env_remove("UB_DISABLE").stdin(Stdio::null());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let counter = Self { child, log };
        counter.wait_until("it waits for packets", || {
            let path = format!("/proc/{}/syscall", counter.child.id());
            let call = fs::read_to_string(path).unwrap_or_default();
            call.starts_with("45 0x")
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

    /// How often it went to sleep.
    fn sleeps(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse().unwrap()
    }

    /// Ends it; returns what it printed.
    fn finish(self, cable: &Cable) -> String {
        cable.send_udp(LAST_PORT, 1);
        let log = self.log.clone();
        let output = self.child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("ub:"), "{output:?}");
        if let Some(log) = log {
            let deadline = Instant::now() + PATIENCE;
            while !fs::read_to_string(&log).unwrap().contains("the program has ended") {
                assert!(Instant::now() < deadline);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        String::from_utf8(output.stdout).unwrap()
    }
}

/// The last number that the log has for `name`.
fn number(log: &str, name: &str) -> u64 {
    let (_, after) = log.rsplit_once(&format!("{name}=")).unwrap_or_else(|| panic!("{log}"));
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// Runs the counter with and without filter on the same random packets.
fn compare(packets: usize) {
    let Some(cable) = Cable::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), &[]);
    let mut results = Vec::new();
    for filtered in [false, true] {
        let log = dir.path().join("log");
        let counter = Counter::start(&program, "", filtered.then(|| log.clone()));
        if filtered {
            counter.keep_busy_until(&cable, &["packets are filtered"]);
        }
        let before = counter.sleeps();
        let mut random = Random(0x1234_5678_9abc_def1);
        for _ in 0..packets {
            cable.send(&frame(&mut random));
        }
        let sleeps = counter.sleeps() - before;
        let printed = counter.finish(&cable);
        let wanted: u64 = printed.split(' ').nth(1).unwrap().parse().unwrap();
        let mut calls = packets as u64;
        if filtered {
            let log = fs::read_to_string(&log).unwrap();
            assert!(!log.contains("taken away"), "{log}");
            calls = number(&log, "kept") + number(&log, "passed");
            assert!(number(&log, "dropped") > 0, "{log}");
        }
        println!(
            "{}: {packets} packets, {wanted} wanted, {calls} received: {:.2} transitions and \
             {:.2} wake-ups per wanted packet",
            if filtered { "filtered" } else { "native" },
            calls as f64 / wanted as f64,
            sleeps as f64 / wanted as f64
        );
        results.push((printed, wanted, calls));
    }
    let [(native, wanted, _), (filtered, _, calls)] = &results[..] else { unreachable!() };
    assert_eq!(native, filtered);
    assert!(*wanted > packets as u64 / 20, "{native}");
    // What came while the program was busy with a wanted packet passes.
    assert!(*calls < wanted * 2, "{calls} packets for {wanted} wanted ones");
}

#[test]
fn the_same_answers_with_fewer_packets() {
    compare(20_000);
}

#[test]
#[ignore = "long: a million packets, one by one, twice"]
fn the_same_answers_over_a_million_packets() {
    compare(1_000_000);
}

#[test]
fn programs_with_effects_get_no_filter() {
    let Some(cable) = Cable::new() else { return };
    for (options, reason) in [
        (&["-DCOUNTS_ALL"][..], "changes memory"),
        (&["-DLOGS"], "calls write"),
        (&["-DREADS_CLOCK"], "no packet is without effect"),
        (&["-DLOOPS"], "loop over the packet"),
        (&["-DREADS_SHARED"], "memory that others may change"),
        (&["-DREADS_UNGUARDED"], "behind the end of the packet"),
        (&["-DRECEIVES_ADDRESS"], "asks for more than the packet"),
        (&["-DFORKS"], "another descriptor (fork, dup, passed on)"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let program = compile(dir.path(), options);
        let counter = Counter::start(&program, "", Some(dir.path().join("log")));
        println!("{options:?}");
        counter.keep_busy_until(&cable, &["no packet filter", "taken away"]);
        let said = counter.said();
        assert!(said.contains(reason), "{options:?}: {said}");
        // Nothing was dropped, and it still counts.
        cable.send_udp(WANTED_PORT, 10);
        let log = counter.log.clone().unwrap();
        let printed = counter.finish(&cable);
        assert!(printed.starts_with("wanted 10 "), "{options:?}: {printed}");
        assert_eq!(number(&fs::read_to_string(log).unwrap(), "dropped"), 0, "{options:?}");
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
        let counter = Counter::start(&program, deed, Some(dir.path().join("log")));
        counter.keep_busy_until(&cable, &["packets are filtered"]);
        let pid = nix::unistd::Pid::from_raw(counter.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
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
    let counter = Counter::start(&program, "", Some(dir.path().join("log")));
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
    let counter = Counter::start(&program, "", Some(dir.path().join("log")));
    counter.keep_busy_until(&cable, &["packets are filtered"]);
    let supervisor = supervisor_of(counter.log.as_ref().unwrap());
    let pid = nix::unistd::Pid::from_raw(supervisor);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    counter.wait_until("it is gone", || !Path::new(&format!("/proc/{supervisor}/fd/0")).exists());
    let before = counter.sleeps();
    cable.send_udp(9, 50);
    assert!(counter.sleeps() - before >= 50, "packets are still dropped");
    cable.send_udp(WANTED_PORT, 10);
    cable.send_udp(LAST_PORT, 1);
    let output = counter.child.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("wanted 10 "), "{output:?}");
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

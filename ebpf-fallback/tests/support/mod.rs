//! C programs that receive packets, and packets for them.

#![allow(dead_code, reason = "each test uses a part")]

pub mod cable;
pub mod not_tested;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ub_ebpf_fallback::packet_filter::Snapshot;

/// The port that `count.c` wants, and the one that ends it.
pub const WANTED_PORT: u16 = 4242;
pub const LAST_PORT: u16 = 1;

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Compiles `tests/programs/count.c` with `options` to a file in `dir`.
pub fn compile(dir: &Path, options: &[&str]) -> PathBuf {
    let (program, source) = (dir.join("count"), dir.join("count.c"));
    fs::write(&source, include_str!("../programs/count.c")).unwrap();
    let output = Command::new("gcc")
        .args(["-O2", "-Wall", "-Wno-unused-variable", "-Wno-unused-but-set-variable", "-o"])
        .arg(&program)
        .args(options)
        .arg(source)
        .output()
        .expect("gcc is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

/// The last number that the log of a supervisor has for `name`.
pub fn number(log: &str, name: &str) -> u64 {
    let (_, after) = log.rsplit_once(&format!("{name}=")).unwrap_or_else(|| panic!("{log}"));
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// A sequence of numbers that is the same in each run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }
}

/// An Ethernet frame with a UDP packet to `port`.
pub fn udp_packet(port: u16, header_words: u8, payload: usize) -> Vec<u8> {
    let header = usize::from(header_words) * 4;
    let mut packet = vec![0; 14 + header + 8 + payload];
    packet[12..14].copy_from_slice(&[0x08, 0x00]);
    packet[14] = 0x40 | header_words;
    packet[23] = 17;
    packet[14 + header + 2..14 + header + 4].copy_from_slice(&port.to_be_bytes());
    packet
}

/// A packet that is wanted, nearly wanted, or anything.
pub fn random_packet(random: &mut Random) -> Vec<u8> {
    let port = match random.below(4) {
        0 => WANTED_PORT,
        1 => WANTED_PORT.wrapping_add(random.below(40) as u16).wrapping_sub(12),
        2 => WANTED_PORT.swap_bytes(),
        _ => 2 + random.below(65_000) as u16,
    };
    let words = if random.below(3) == 0 { 5 + random.below(11) as u8 } else { 5 };
    let mut packet = udp_packet(port, words, random.below(600) as usize);
    for byte in packet.iter_mut().skip(14 + usize::from(words) * 4 + 8) {
        *byte = random.next() as u8;
    }
    for _ in 0..random.below(3) {
        let at = random.below(packet.len().min(64) as u64) as usize;
        packet[at] = random.next() as u8;
    }
    match random.below(8) {
        0 => packet.truncate(random.below(90) as usize),
        1 => packet = (0..random.below(300)).map(|_| random.next() as u8).collect(),
        2 => packet.resize(random.below(4000) as usize, 9),
        _ => {}
    }
    // What ends the program comes when the test wants it.
    let ends = |at: usize| packet.get(at..at + 2) == Some(&LAST_PORT.to_be_bytes()[..]);
    if (5..16).any(|words| ends(14 + words * 4 + 2)) {
        packet.clear();
    }
    packet
}

/// A running program that receives from a socket pair.
pub struct Receiver {
    pub child: Child,
    socket: UnixDatagram,
}

impl Receiver {
    pub fn start(program: &Path) -> Self {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let child = Command::new(program)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, socket: ours }
    }

    pub fn send(&self, packet: &[u8]) {
        self.socket.send(packet).unwrap();
    }

    /// Sends the last packet and returns what the program prints.
    pub fn finish(self) -> String {
        self.send(&udp_packet(LAST_PORT, 5, 40));
        let output = self.child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The program in its receive call, after it has been there before.
    pub fn snapshot(&self) -> Snapshot {
        for _ in 0..3 {
            self.send(&udp_packet(9, 5, 100));
        }
        let pid = self.child.id();
        wait_until_blocked(pid);
        let registers = registers(pid);
        let mut snapshot = Snapshot {
            resume: registers.rip,
            flags: registers.eflags,
            registers: [
                registers.orig_rax,
                registers.rcx,
                registers.rdx,
                registers.rbx,
                registers.rsp,
                registers.rbp,
                registers.rsi,
                registers.rdi,
                registers.r8,
                registers.r9,
                registers.r10,
                registers.r11,
                registers.r12,
                registers.r13,
                registers.r14,
                registers.r15,
            ],
        };
        // As the kernel has it inside a call.
        snapshot.registers[11] = snapshot.flags;
        snapshot
    }
}

/// Waits until the process waits in a call that was made from a socket and
/// there is nothing to take.
pub fn wait_until_blocked(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut before = None;
    while Instant::now() < deadline {
        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        let switches = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
        let receives = call.starts_with("0 0x0 ") || call.starts_with("45 0x0 ");
        let now = receives.then_some(switches);
        if now.is_some() && now == before {
            return;
        }
        before = now;
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the program does not wait for packets");
}

/// The registers of a process that waits in a call, by stopping it.
fn registers(pid: u32) -> libc::user_regs_struct {
    let none = std::ptr::null_mut::<libc::c_void>();
    let pid = pid.cast_signed();
    // SAFETY: `user_regs_struct` is numbers only.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: these requests stop and continue a child of ours and write the
    // structure that the pointer is for.
    unsafe {
        assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, pid, none, none), 0);
        assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, pid, none, none), 0);
        assert_eq!(libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL), pid);
        assert_eq!(libc::ptrace(libc::PTRACE_GETREGS, pid, none, &raw mut registers), 0);
        assert_eq!(libc::ptrace(libc::PTRACE_DETACH, pid, none, none), 0);
    }
    registers
}

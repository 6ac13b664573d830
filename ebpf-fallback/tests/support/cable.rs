//! A network with a virtual cable in it, and what is sent into that. Where the
//! user who runs the tests may not use BPF or make networks, nothing is
//! tested, which is said.

use std::ffi::CStr;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::Instant;

use super::not_tested::not_tested;
use super::{PATIENCE, Random, WANTED_PORT, random_packet, udp_packet};

const OUR_END: &CStr = c"ub-ours";
const THEIR_END: &str = "ub-theirs";
/// Largest and smallest frames of the cable.
const FRAME: std::ops::RangeInclusive<usize> = 14..=1514;

/// What `count.c` calls its UDP socket, and where that is.
const UDP: &str = "udp";
const UDP_ADDRESS: &str = "127.0.0.1:4711";

/// A network of this thread's own, with a cable in it.
pub struct Cable {
    socket: OwnedFd,
    /// Where the programs receive: the other end, or [`UDP`].
    pub receiver: &'static str,
    /// What was seen on the loopback interface.
    captured: Vec<Vec<u8>>,
}

impl Cable {
    /// `None` where that is not possible.
    pub fn new() -> Option<Self> {
        if let Err(reason) = ub_ebpf_fallback::packet_filter::check() {
            not_tested(reason);
            return None;
        }
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            not_tested(format_args!("no network of its own: {error}"));
            return None;
        }
        // Nothing but what the test sends.
        let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        let ours = OUR_END.to_str().unwrap();
        let add = ["link", "add", ours, "type", "veth", "peer", "name", THEIR_END];
        let up = |end| ["link", "set", end, "up"];
        for words in [&add[..], &up(ours), &up(THEIR_END), &up("lo")] {
            let output = Command::new("ip").args(words).output();
            if !output.as_ref().is_ok_and(|output| output.status.success()) {
                not_tested(format_args!("ip {}: {output:?}", words.join(" ")));
                return None;
            }
        }
        let socket = packet_socket(OUR_END, 0).unwrap();
        Some(Self { socket, receiver: THEIR_END, captured: capture().unwrap() })
    }

    /// The same with datagrams of UDP instead of frames.
    pub fn udp() -> Option<Self> {
        let cable = Self::new()?;
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(UDP_ADDRESS).unwrap();
        Some(Self { socket: socket.into(), receiver: UDP, ..cable })
    }

    /// A frame that the cable takes: random, or as it was captured.
    pub fn frame(&self, random: &mut Random) -> Vec<u8> {
        if random.below(4) == 0 {
            return self.captured[random.below(self.captured.len() as u64) as usize].clone();
        }
        let mut frame = random_packet(random);
        frame.resize(frame.len().clamp(*FRAME.start(), *FRAME.end()), 0);
        frame
    }

    /// Sends a frame.
    pub fn transmit(&self, frame: &[u8]) {
        // SAFETY: the kernel reads that many bytes.
        let sent =
            unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    }

    /// Waits until the receiver has taken all frames, or lost them to a
    /// filter.
    pub fn settle(&self) {
        let deadline = Instant::now() + PATIENCE;
        while queued() {
            assert!(Instant::now() < deadline, "the program does not take its packets");
            std::hint::spin_loop();
        }
    }

    /// Sends a frame and waits until it has been taken.
    pub fn send(&self, frame: &[u8]) {
        self.transmit(frame);
        self.settle();
    }

    pub fn send_udp(&self, port: u16, times: usize) {
        for _ in 0..times {
            self.send(&udp_packet(port, 5, 40));
        }
    }
}

/// Whether packets wait in any packet or UDP socket of this network.
fn queued() -> bool {
    let waits = |file: &str, field: usize, nothing: &str| {
        let sockets = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
        let value = |line: &str| line.split_ascii_whitespace().nth(field).map(str::to_owned);
        sockets.lines().skip(1).any(|line| value(line).is_some_and(|value| value != nothing))
    };
    // Memory of the packets; bytes to be sent and received.
    waits("packet", 6, "0") || waits("udp", 4, "00000000:00000000")
}

/// A socket at an interface that sends frames, and receives those of
/// `protocol`.
fn packet_socket(interface: &CStr, protocol: i32) -> io::Result<OwnedFd> {
    let protocol = (protocol as u16).to_be();
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(protocol)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: `sockaddr_ll` is numbers only.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    // SAFETY: the name ends with a zero.
    address.sll_ifindex = unsafe { libc::if_nametoindex(interface.as_ptr()) }.cast_signed();
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

/// Frames that the kernel makes: UDP, TCP, ICMP and, where there is any, IPv6.
fn capture() -> io::Result<Vec<Vec<u8>>> {
    let socket = packet_socket(c"lo", libc::ETH_P_ALL)?;
    for host in ["127.0.0.1", "::1"] {
        let Ok(sender) = UdpSocket::bind((host, 0)) else { continue };
        // To what nobody receives there is an answer of ICMP.
        for port in [WANTED_PORT, WANTED_PORT + 1, 53] {
            let _ = sender.send_to(b"a datagram", (host, port));
        }
        let listener = TcpListener::bind((host, 0))?;
        let mut sender = TcpStream::connect(listener.local_addr()?)?;
        let (mut receiver, _) = listener.accept()?;
        sender.write_all(b"a request")?;
        receiver.read_exact(&mut [0; 9])?;
        receiver.write_all(&[7; 300])?;
        sender.read_exact(&mut [0; 300])?;
    }
    let mut frames = Vec::new();
    let mut frame = [0u8; 2048];
    loop {
        // SAFETY: the kernel writes at most that many bytes.
        let length = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
            )
        };
        match usize::try_from(length) {
            Ok(length) => frames.push(frame[..length].to_vec()),
            Err(_) => break,
        }
    }
    assert!(frames.len() > 10, "only {} frames were captured", frames.len());
    Ok(frames)
}

//! A receiver of raw packets that counts or filters, the same as an eBPF
//! program, and the sender for both.
//!
//! Frames have the ether type for local experiments, so nothing else on the
//! link is counted. Each carries its number and a port that is the number's
//! parity: a filter that looks at the port can be checked with the number.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use ub_ebpf_fallback::packets::{self, PacketCounter};

use crate::workload::Task;

/// IEEE 802 local experimental ether type 1.
const ETHER_TYPE: u16 = 0x88b5;
/// Where the payload begins: behind two addresses and the type.
const PAYLOAD: usize = 14;
/// Bytes of a frame: the smallest on a wire, less its checksum.
const FRAME: usize = 60;
/// The port that the filter counts.
const PORT: u16 = 1000;
/// Receive buffer, in bytes: some hundred packets.
const BUFFER: libc::c_int = 1 << 20;

/// Between two looks at what an eBPF program has counted.
const TICK: Duration = Duration::from_millis(1);

/// A packet at either look may have been counted as one kind and not yet as
/// the other.
const HALF_COUNTED: u64 = 2;

/// A raw socket on one interface.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Opens one. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// What the kernel says; `NotFound` for an unknown interface.
    pub fn open(interface: &str) -> io::Result<Self> {
        let name = CString::new(interface)?;
        // SAFETY: `name` is a terminated string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no interface {interface}"),
            ));
        }
        let protocol = ETHER_TYPE.to_be();
        // SAFETY: socket has no pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                libc::c_int::from(protocol),
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: sockaddr_ll is plain data for which zeros are a valid value.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index.cast_signed();
        let buffer = BUFFER;
        // SAFETY: the address and the buffer size live through the calls and
        // their lengths are given.
        let failed = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                mem::size_of_val(&address) as libc::socklen_t,
            ) != 0
                || libc::setsockopt(
                    fd.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_RCVBUF,
                    (&raw const buffer).cast(),
                    mem::size_of_val(&buffer) as libc::socklen_t,
                ) != 0
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { fd })
    }

    /// Receives `count` packets and does `task`. Returns 1 if the filter found
    /// those packets that it should have found.
    ///
    /// # Errors
    /// What the kernel says.
    #[inline(never)]
    pub fn receive(&self, task: Task, count: u64) -> io::Result<u64> {
        let mut frame = [0; FRAME];
        let (mut found, mut expected) = (0, 0);
        for _ in 0..count {
            // SAFETY: the buffer is FRAME writable bytes.
            let length =
                unsafe { libc::recv(self.fd.as_raw_fd(), frame.as_mut_ptr().cast(), FRAME, 0) };
            if length != FRAME as isize {
                return Err(io::Error::last_os_error());
            }
            if task == Task::Filter {
                found += u64::from(port(&frame) == PORT);
                expected += u64::from(number(&frame).is_multiple_of(2));
            }
        }
        Ok(u64::from(found == expected))
    }

    /// Sends packets without end.
    ///
    /// # Errors
    /// What the kernel says, but for a full queue.
    pub fn send_forever(&self) -> io::Result<()> {
        for number in 0.. {
            let frame = frame(number);
            // SAFETY: the buffer is FRAME readable bytes.
            let length =
                unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), FRAME, 0) };
            if length < 0 {
                let error = io::Error::last_os_error();
                if error.raw_os_error() != Some(libc::ENOBUFS) {
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A raw socket whose packets an eBPF program takes.
#[derive(Debug)]
pub struct BpfSocket {
    counter: PacketCounter,
    /// To it the program is attached.
    _socket: Socket,
}

impl BpfSocket {
    /// Attaches the program that does `task`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(socket: Socket, task: Task) -> io::Result<Self> {
        let task = match task {
            Task::Count => packets::Task::Count,
            Task::Filter => packets::Task::Filter,
        };
        let counter = PacketCounter::attach(&socket, task).map_err(io::Error::other)?;
        Ok(Self { counter, _socket: socket })
    }

    /// Waits for at least `count` packets. Returns what [`Socket::receive`]
    /// does.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn receive(&self, count: u64) -> io::Result<u64> {
        let counts = || self.counter.counts().map_err(io::Error::other);
        let begin = counts()?;
        loop {
            let now = counts()?;
            if now.packets - begin.packets >= count {
                let (found, even) = (now.found - begin.found, now.even - begin.even);
                return Ok(u64::from(found.abs_diff(even) <= HALF_COUNTED));
            }
            thread::sleep(TICK);
        }
    }
}

fn frame(number: u64) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    // To everybody, from an address of local significance.
    frame[..6].fill(0xff);
    frame[6] = 0x02;
    frame[12..PAYLOAD].copy_from_slice(&ETHER_TYPE.to_be_bytes());
    let port = PORT + (number % 2) as u16;
    frame[PAYLOAD..PAYLOAD + 2].copy_from_slice(&port.to_be_bytes());
    frame[PAYLOAD + 2..PAYLOAD + 10].copy_from_slice(&number.to_be_bytes());
    frame
}

fn port(frame: &[u8; FRAME]) -> u16 {
    u16::from_be_bytes([frame[PAYLOAD], frame[PAYLOAD + 1]])
}

fn number(frame: &[u8; FRAME]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&frame[PAYLOAD + 2..PAYLOAD + 10]);
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_say_who_they_are() {
        for count in [0, 7, u64::MAX] {
            let frame = frame(count);
            assert_eq!(number(&frame), count);
            assert_eq!(port(&frame), PORT + (count % 2) as u16);
            assert_eq!(frame[12..14], [0x88, 0xb5]);
        }
    }

    #[test]
    fn unknown_interfaces_are_named() {
        let error = Socket::open("nosuchthing0").unwrap_err();
        assert!(error.to_string().contains("nosuchthing0"));
    }
}

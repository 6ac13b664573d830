//! What kind of socket a descriptor of another process is.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Why a socket gets no filter, although the program might not notice.
#[derive(Debug, thiserror::Error)]
pub enum Unsuitable {
    /// It could not be asked.
    #[error("descriptor {fd}: {error}")]
    Io {
        /// Number of the descriptor.
        fd: u32,
        /// What the system answered.
        error: io::Error,
    },
    /// It is not a packet or UDP socket.
    #[error("it is no packet or UDP socket")]
    Kind,
    /// It has a filter of its own.
    #[error("it has a filter of its own")]
    OwnFilter,
    /// Its receive calls do not wait, or not for long.
    #[error("its receive calls do not wait for a packet (O_NONBLOCK, SO_RCVTIMEO)")]
    Impatient,
    /// Packets raise signals.
    #[error("packets raise signals (O_ASYNC)")]
    Signals,
    /// What is received is not what is on the network.
    #[error("what it receives is not what filters see (PACKET_VNET_HDR, UDP_GRO, UDP_ENCAP)")]
    Transformed,
    /// Packets go through mapped memory.
    #[error("packets go through memory (PACKET_RX_RING)")]
    Ring,
}

/// Options whose numbers libc does not have.
const PACKET_VERSION: i32 = 10;
const PACKET_VNET_HDR: i32 = 15;
const UDP_ENCAP: i32 = 100;
const UDP_GRO: i32 = 104;
/// Length of the header that filters of UDP sockets see.
const UDP_HEADER: u16 = 8;

/// A copy of another process's socket, to be held as shortly as possible.
#[derive(Debug)]
pub(super) struct Socket {
    socket: OwnedFd,
    number: u32,
}

/// Opens the process `pid` itself, not only its number. The descriptor is
/// readable when the process has ended.
///
/// # Errors
/// What the system answers.
pub fn open_process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

impl Socket {
    /// Copies descriptor `number` of `process`.
    ///
    /// # Errors
    /// What the system answers.
    pub(super) fn of(process: &OwnedFd, number: u32) -> io::Result<Self> {
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
        Ok(Self { socket: owned(fd)?, number })
    }

    /// Bytes of each packet that filters see in front of what is received.
    ///
    /// # Errors
    /// See [`Unsuitable`].
    pub(super) fn header(&self) -> Result<u16, Unsuitable> {
        let io = |error| Unsuitable::Io { fd: self.number, error };
        let domain =
            self.option(libc::SOL_SOCKET, libc::SO_DOMAIN).map_err(|_| Unsuitable::Kind)?;
        let kind = self.option(libc::SOL_SOCKET, libc::SO_TYPE).map_err(io)?;
        let protocol = self.option(libc::SOL_SOCKET, libc::SO_PROTOCOL).map_err(io)?;
        let header = match (domain, kind) {
            (libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_DGRAM) => {
                if self.option(libc::SOL_PACKET, PACKET_VNET_HDR).map_err(io)? != 0 {
                    return Err(Unsuitable::Transformed);
                }
                if self.has_ring() {
                    return Err(Unsuitable::Ring);
                }
                0
            }
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM) if protocol == libc::IPPROTO_UDP => {
                for option in [UDP_ENCAP, UDP_GRO] {
                    if self.option(libc::SOL_UDP, option).map_err(io)? != 0 {
                        return Err(Unsuitable::Transformed);
                    }
                }
                UDP_HEADER
            }
            _ => return Err(Unsuitable::Kind),
        };
        // SAFETY: the call takes numbers only.
        let flags = unsafe { libc::fcntl(self.socket.as_raw_fd(), libc::F_GETFL) };
        if flags < 0 {
            return Err(io(io::Error::last_os_error()));
        }
        if flags & libc::O_ASYNC != 0 {
            return Err(Unsuitable::Signals);
        }
        if flags & libc::O_NONBLOCK != 0 || self.has_timeout().map_err(io)? {
            return Err(Unsuitable::Impatient);
        }
        Ok(header)
    }

    /// Whether a filter is attached, whoever did that.
    pub(super) fn has_filter(&self) -> bool {
        let mut count = 0;
        // The answer is the number of instructions; programs that are not of
        // the classic kind cannot be read, which is an error.
        // SAFETY: with no room for instructions the kernel writes none.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_GET_FILTER,
                std::ptr::null_mut(),
                &raw mut count,
            )
        };
        result < 0 || count != 0
    }

    /// Lets `program` decide about packets.
    ///
    /// # Errors
    /// What the system answers.
    pub(super) fn attach(&self, program: RawFd) -> io::Result<()> {
        self.set_option(libc::SOL_SOCKET, libc::SO_ATTACH_BPF, program)
    }

    /// Takes the filter off.
    ///
    /// # Errors
    /// What the system answers.
    pub(super) fn detach(&self) -> io::Result<()> {
        self.set_option(libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0)
    }

    fn has_timeout(&self) -> io::Result<bool> {
        // SAFETY: `timeval` is numbers only.
        let mut time: libc::timeval = unsafe { mem::zeroed() };
        self.get(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &mut time)?;
        Ok(time.tv_sec != 0 || time.tv_usec != 0)
    }

    /// The version of a packet socket's ring cannot be set while it has one.
    fn has_ring(&self) -> bool {
        let version = self.option(libc::SOL_PACKET, PACKET_VERSION);
        version.and_then(|same| self.set_option(libc::SOL_PACKET, PACKET_VERSION, same)).is_err()
    }

    fn option(&self, level: i32, name: i32) -> io::Result<i32> {
        let mut value = 0;
        self.get(level, name, &mut value)?;
        Ok(value)
    }

    fn get<T>(&self, level: i32, name: i32, value: &mut T) -> io::Result<()> {
        let mut size = size_of::<T>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `size` bytes; both types in use are
        // numbers only.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                level,
                name,
                std::ptr::from_mut(value).cast(),
                &raw mut size,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn set_option(&self, level: i32, name: i32, value: i32) -> io::Result<()> {
        // SAFETY: the kernel reads one number.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    /// The same socket, as another process would see it.
    fn copy(socket: &impl AsRawFd) -> Socket {
        let this = open_process(std::process::id()).unwrap();
        Socket::of(&this, socket.as_raw_fd().cast_unsigned()).unwrap()
    }

    #[test]
    fn only_sockets_that_wait_in_the_ordinary_way_are_suitable() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = copy(&udp);
        assert_eq!(socket.header().unwrap(), UDP_HEADER);
        assert!(!socket.has_filter());
        udp.set_read_timeout(Some(Duration::from_secs(9))).unwrap();
        assert!(matches!(socket.header(), Err(Unsuitable::Impatient)));
        udp.set_read_timeout(None).unwrap();
        udp.set_nonblocking(true).unwrap();
        assert!(matches!(socket.header(), Err(Unsuitable::Impatient)));
        udp.set_nonblocking(false).unwrap();
        socket.set_option(libc::SOL_UDP, UDP_GRO, 1).unwrap();
        assert!(matches!(socket.header(), Err(Unsuitable::Transformed)));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(copy(&file).header(), Err(Unsuitable::Kind)));
        let stream = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(copy(&stream).header(), Err(Unsuitable::Kind)));
    }

    #[test]
    fn a_filter_of_its_own_is_seen() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        // One instruction: take the whole packet.
        let mut filter = [libc::sock_filter { code: 6, jt: 0, jf: 0, k: u32::MAX }];
        let program = libc::sock_fprog { len: 1, filter: filter.as_mut_ptr() };
        // SAFETY: the kernel copies the instructions.
        let result = unsafe {
            libc::setsockopt(
                udp.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        };
        assert_eq!(result, 0);
        let socket = copy(&udp);
        assert!(socket.has_filter());
        socket.detach().unwrap();
        assert!(!socket.has_filter());
    }
}

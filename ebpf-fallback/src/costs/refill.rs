//! What crossing into the kernel costs a call that does something there.
//!
//! A call that does nothing shows the way there and back only. Where address
//! translations or branch predictions are lost on it, the code on both sides
//! pays as well, for everything that it touches. How much is measured by the
//! same work done with and without crossing: datagrams sent and received one
//! by one and many in a call.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::ptr::{from_mut, null_mut};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::{Deserialize, Serialize};

use super::{cpu_ns, median};

/// Messages in a call; fewer than a Unix socket holds by default
/// (`net.unix.max_dgram_qlen`, 10 on small machines).
const MESSAGES: usize = 8;
/// Times that so many are sent, in a batch of measurement.
const REPETITIONS: u32 = 64;
/// Batches of which the median counts.
const BATCHES: usize = 15;
/// Bytes of a message.
const BYTES: usize = 16;

/// What code pays for having been left, beyond a call that does nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Refill {
    /// Most that it pays, in nanoseconds: what the calls of the measurement
    /// did.
    pub most_ns: f64,
    /// How long these took besides a call that does nothing, in nanoseconds.
    /// What takes less is taken to pay less in proportion.
    pub within_ns: f64,
}

impl Refill {
    /// Measures it; `switch_ns` is what a call takes that does nothing.
    ///
    /// # Errors
    /// Without Unix sockets.
    pub fn measure(switch_ns: f64) -> io::Result<Self> {
        let (to, from) = sockets()?;
        let mut single = Vec::new();
        let mut together = Vec::new();
        // In turns, so that a slow moment of the machine meets both.
        for _ in 0..BATCHES {
            single.push(timed(&to, &from, 1)?);
            together.push(timed(&to, &from, MESSAGES)?);
        }
        Ok(Self::of(switch_ns, median(&mut single), median(&mut together)))
    }

    /// `single` and `together`: nanoseconds for each message and direction.
    fn of(switch_ns: f64, single: f64, together: f64) -> Self {
        // One of so many calls is still made.
        let crossing = (single - together) / (1.0 - 1.0 / MESSAGES as f64);
        Self::between(switch_ns, single, single - crossing)
    }

    /// From work that takes `crossing` nanoseconds with and `without` nanoseconds
    /// but for the crossing.
    pub(super) fn between(switch_ns: f64, crossing: f64, without: f64) -> Self {
        Self {
            most_ns: (crossing - without - switch_ns).max(0.0),
            within_ns: (crossing - switch_ns).max(1.0),
        }
    }

    /// What of `ns` nanoseconds spent on one side is due to the crossing.
    #[must_use]
    pub fn of_time(&self, ns: f64) -> f64 {
        let share = self.most_ns / self.within_ns.max(1.0);
        (ns * share.min(1.0)).min(self.most_ns)
    }
}

/// Where messages go in and come out.
pub(super) fn sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Nanoseconds to send or to receive a message, with `at_once` in each call.
pub(super) fn timed(to: &OwnedFd, from: &OwnedFd, at_once: usize) -> io::Result<f64> {
    let mut bytes = [0u8; BYTES];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: BYTES };
    // SAFETY: all zeros is a message without address and data.
    let mut messages: [libc::mmsghdr; MESSAGES] = unsafe { zeroed() };
    for message in &mut messages {
        message.msg_hdr.msg_iov = from_mut(&mut part);
        message.msg_hdr.msg_iovlen = 1;
    }
    let count = at_once as libc::c_uint;
    let start = cpu_ns();
    for _ in 0..REPETITIONS {
        for slice in messages.chunks_mut(at_once) {
            // SAFETY: `slice` has `count` messages, whose only part outlives
            // the call.
            let sent = unsafe { libc::sendmmsg(to.as_raw_fd(), slice.as_mut_ptr(), count, 0) };
            whole(sent, at_once)?;
        }
        for slice in messages.chunks_mut(at_once) {
            // SAFETY: as above; the kernel writes to the part and the headers.
            let received = unsafe {
                libc::recvmmsg(from.as_raw_fd(), slice.as_mut_ptr(), count, 0, null_mut())
            };
            whole(received, at_once)?;
        }
    }
    let messages = 2.0 * f64::from(REPETITIONS) * MESSAGES as f64;
    Ok((cpu_ns() - start) / messages)
}

fn whole(result: libc::c_int, wanted: usize) -> io::Result<()> {
    match usize::try_from(result) {
        Ok(done) if done == wanted => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_beyond_the_switch_is_refill() {
        // 1000 of 1800 ns go with the crossing, of which 300 are the switch.
        let together = 1800.0 - 1000.0 * 7.0 / 8.0;
        let refill = Refill::of(300.0, 1800.0, together);
        assert!((refill.most_ns - 700.0).abs() < 1e-9, "{refill:?}");
        assert!((refill.within_ns - 1500.0).abs() < 1e-9, "{refill:?}");
        assert!((refill.of_time(150.0) - 70.0).abs() < 1e-9);
        assert!((refill.of_time(1e6) - 700.0).abs() < 1e-9);
        // Where nothing is lost, nothing is added.
        assert!(Refill::of(300.0, 1800.0, 1600.0).of_time(1e6) < 1e-9);
    }

    #[test]
    fn this_machine_can_be_measured() {
        let refill = Refill::measure(50.0).unwrap();
        assert!(refill.within_ns >= 1.0 && refill.most_ns >= 0.0, "{refill:?}");
    }
}

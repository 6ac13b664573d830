//! Finding a thread that waits for packets, without any BPF.

use std::fs;

/// A receive call that a process waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) number: u32,
    pub(super) fd: u32,
    /// Address behind it.
    pub(super) resume: u64,
}

/// What is seen of a process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// The call that its first thread waits in, if it is a receive call.
    pub(super) call: Option<Call>,
    /// How often the thread has gone to sleep.
    pub(super) sleeps: u64,
}

impl Look {
    /// Looks at the process `pid`; `None` if it is gone.
    pub(super) fn at(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
        let sleeps = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        Some(Self {
            call: receive_call(&call),
            sleeps: sleeps.and_then(|sleeps| sleeps.trim().parse().ok()).unwrap_or(0),
        })
    }
}

/// Reads a line of `/proc/PID/syscall`: number, six arguments, stack pointer,
/// address.
fn receive_call(line: &str) -> Option<Call> {
    let mut words = line.split_ascii_whitespace();
    let hexadecimal = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    let number: u32 = words.next()?.parse().ok()?;
    let receives = [libc::SYS_read, libc::SYS_recvfrom, libc::SYS_recvmsg];
    if !receives.contains(&libc::c_long::from(number)) {
        return None;
    }
    let fd = hexadecimal(words.next()?)?;
    let resume = hexadecimal(words.nth(6)?)?;
    Some(Call { number, fd: u32::try_from(fd).ok()?, resume })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_waiting_receive_calls_are_found() {
        let line = "45 0x3 0x5580 0x800 0x0 0x0 0x0 0x7ffd10 0x7f0a4129\n";
        let call = Call { number: 45, fd: 3, resume: 0x7f0a_4129 };
        assert_eq!(receive_call(line), Some(call));
        assert_eq!(receive_call("running\n"), None);
        assert_eq!(receive_call("7 0x3 0x5580 0x800 0x0 0x0 0x0 0x7ffd10 0x7f0a4129\n"), None);
        assert_eq!(receive_call("-1 0x7ffd10 0x7f0a4129\n"), None);
    }
}

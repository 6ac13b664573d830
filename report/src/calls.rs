//! Names of system calls.

use syscalls::x86_64::Sysno;

/// Name of the x86-64 system call `number`; the number itself for one that
/// this program is too old to know.
#[must_use]
pub fn name(number: u32) -> String {
    match Sysno::new(number as usize) {
        Some(call) => call.name().to_owned(),
        None => format!("syscall_{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_ones_have_a_name() {
        assert_eq!(name(1), "write");
        assert_eq!(name(232), "epoll_wait");
        assert_eq!(name(99_999), "syscall_99999");
    }
}

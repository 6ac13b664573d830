//! Names of system calls.

use syscalls::Sysno;

/// The name of the x86-64 system call `number`.
#[must_use]
pub fn name(number: u32) -> String {
    match Sysno::new(number as usize) {
        Some(call) => call.name().to_owned(),
        None => format!("call {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_unknown_numbers() {
        assert_eq!(name(1), "write");
        assert_eq!(name(232), "epoll_wait");
        assert_eq!(name(9999), "call 9999");
    }
}

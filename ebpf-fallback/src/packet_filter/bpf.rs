//! The two requests to the kernel's `bpf` call that aya does not offer:
//! loading a program given as instructions, and putting it into an array.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::program::Instruction;

const MAP_UPDATE: libc::c_long = 2;
const PROGRAM_LOAD: libc::c_long = 5;
const SOCKET_FILTER: u32 = 1;
const LICENSE: &std::ffi::CStr = c"GPL";
/// Room for what the kernel's verifier says of a program that it refuses.
const LOG_BYTES: usize = 64 * 1024;

/// What the kernel reads for [`PROGRAM_LOAD`].
#[repr(C)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// What it reads for [`MAP_UPDATE`].
#[repr(C)]
struct Update {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the structures above are prefixes of the kernel's, which takes
    // the rest for zeros; what their addresses point at outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *const T, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Loads a socket filter.
///
/// # Errors
/// What the kernel answers; its verifier's last words are in it.
pub(super) fn load(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let mut log = vec![0u8; LOG_BYTES];
    let mut attributes = Load {
        kind: SOCKET_FILTER,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    let fd = bpf(PROGRAM_LOAD, &attributes).or_else(|error| {
        // Once more, to hear why.
        attributes.log_level = 1;
        attributes.log_size = log.len() as u32;
        attributes.log = log.as_mut_ptr() as u64;
        bpf(PROGRAM_LOAD, &attributes).map_err(|_| {
            let text = String::from_utf8_lossy(&log);
            let text = text.trim_end_matches('\0').trim_end();
            let lines: Vec<_> = text.lines().rev().take(3).collect();
            io::Error::new(error.kind(), format!("{error}: {}", lines.join(" / ")))
        })
    })?;
    // SAFETY: the kernel has just made the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Puts `program` into the first place of the array `map`.
///
/// # Errors
/// What the kernel answers.
pub(super) fn set_program(map: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (key, value) = (0u32, program.as_raw_fd());
    let update = Update {
        map: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: &raw const key as u64,
        value: &raw const value as u64,
        flags: 0,
    };
    bpf(MAP_UPDATE, &update).map(drop)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const PROGRAM_TEST_RUN: libc::c_long = 10;
    const ETHERNET_BYTES: usize = 14;

    /// What the kernel reads for [`PROGRAM_TEST_RUN`].
    #[repr(C)]
    struct TestRun {
        program: u32,
        result: u32,
        data_size: u32,
        out_size: u32,
        data: u64,
        out: u64,
        repeat: u32,
        duration: u32,
    }

    /// Runs a socket filter in the kernel on `packet`.
    pub(in super::super) fn run(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<u32> {
        // The kernel takes the first bytes for an Ethernet header, which
        // socket filters do not see here.
        let mut data = vec![0; ETHERNET_BYTES];
        data.extend(packet);
        let mut run = TestRun {
            program: program.as_raw_fd().cast_unsigned(),
            result: 0,
            data_size: data.len() as u32,
            out_size: 0,
            data: data.as_ptr() as u64,
            out: 0,
            repeat: 1,
            duration: 0,
        };
        let attributes = &raw mut run;
        // SAFETY: as above; the kernel writes its answer into the structure.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, PROGRAM_TEST_RUN, attributes, size_of::<TestRun>())
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(run.result) }
    }
}

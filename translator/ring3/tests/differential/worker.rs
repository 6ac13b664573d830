//! Work in forked processes: what a wrong fragment does to its process is
//! seen from outside, and the test lives on.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, AtomicU64};

/// A piece of work that takes longer hangs; in seconds.
const ALARM_SECONDS: u32 = 15;

const HANG: &str = ", it hung";

/// Exit status of a worker that panicked, as of any Rust program.
const PANICKED: i32 = 101;

/// How a worker ended that did not return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death(pub String);

impl Death {
    /// It did not end in time.
    pub fn is_hang(&self) -> bool {
        self.0.contains(HANG)
    }
}

/// A worker.
pub struct Child {
    pid: libc::pid_t,
    results: File,
}

/// Forks; the child does `work`, whose text is the parent's to read.
///
/// The child must not wait for other threads: it has none.
pub fn spawn(work: impl FnOnce() -> String) -> Child {
    spawn_for(ALARM_SECONDS, work)
}

/// As [`spawn`], for work that takes no longer than `seconds`.
pub fn spawn_for(seconds: u32, work: impl FnOnce() -> String) -> Child {
    let mut ends = [0; 2];
    // SAFETY: an array for two descriptors.
    assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0, "pipe");
    // SAFETY: glibc makes its own locks usable in the child; the test's other
    // thread waits for this one and holds none of Rust's.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    // SAFETY: both ends are fresh and owned by nobody else.
    let (reader, mut writer) = unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) };
    if pid == 0 {
        drop(reader);
        alarm(seconds);
        // The panic's message is on standard error already.
        let status = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(text) => i32::from(writer.write_all(text.as_bytes()).is_err()),
            Err(_) => PANICKED,
        };
        // SAFETY: ends the child without the parent's exit handlers.
        unsafe { libc::_exit(status) };
    }
    Child { pid, results: reader }
}

/// In a worker: it is not hanging.
pub fn progress() {
    alarm(ALARM_SECONDS);
}

fn alarm(seconds: u32) {
    // SAFETY: only sets a timer; its signal's default action ends the process.
    unsafe { libc::alarm(seconds) };
}

impl Child {
    /// Waits for its end.
    ///
    /// # Errors
    /// If it was killed, by whatever it did to itself or for hanging.
    ///
    /// # Panics
    /// If it panicked: that is a failed assertion of the test.
    pub fn wait(mut self) -> Result<String, Death> {
        let mut bytes = Vec::new();
        let _ = self.results.read_to_end(&mut bytes);
        let mut status = 0;
        // SAFETY: our child, waited for once.
        while unsafe { libc::waitpid(self.pid, &raw mut status, 0) } < 0 {}
        if libc::WIFSIGNALED(status) {
            let signal = libc::WTERMSIG(status);
            let hung = if signal == libc::SIGALRM { HANG } else { "" };
            return Err(Death(format!("killed by signal {signal}{hung}")));
        }
        match libc::WEXITSTATUS(status) {
            PANICKED => panic!("a worker panicked"),
            0 => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            status => Err(Death(format!("ended with status {status}"))),
        }
    }
}

/// Counters that parent and workers share.
#[repr(C)]
pub struct Shared {
    /// What each worker is at.
    pub current: [AtomicU64; 8],
    /// Whether it runs that natively.
    pub natively: [AtomicU64; 8],
    pub done: AtomicU64,
    pub counts: [AtomicU64; 16],
    /// By code: whether a program held it.
    pub seen: [AtomicU8; 8192],
}

impl Shared {
    /// In memory that stays shared across forks; never unmapped.
    pub fn new() -> &'static Self {
        // SAFETY: a fresh mapping of enough bytes, all zero, which is a valid
        // value of atomics.
        unsafe {
            let rw = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            let at = libc::mmap(std::ptr::null_mut(), size_of::<Self>(), rw, flags, -1, 0);
            assert!(at != libc::MAP_FAILED, "mmap of shared counters");
            &*at.cast::<Self>()
        }
    }
}

//! What the BPF program and this process read of each other: the structures
//! of `bpf/profile.bpf.c`.

use aya::Pod;

/// Powers of two in a histogram.
pub(super) const BUCKETS: usize = 32;
/// Words of a stack in [`SiteEvent`].
pub(super) const STACK_WORDS: usize = 64;
/// [`GapKey::call`] of a passage that does not follow a system call.
pub(super) const NO_CALL: u32 = u32::MAX;
/// First word of [`SpaceEvent`].
pub(super) const EVENT_SPACE: u32 = 1;
/// First word of [`SiteEvent`].
pub(super) const EVENT_SITE: u32 = 2;

/// A watched thread.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Thread {
    pub(super) space: u32,
    pub(super) call: u32,
    pub(super) entered: u64,
    pub(super) left: u64,
    pub(super) resume: u64,
    pub(super) caller: u64,
    pub(super) call_ns: u64,
    pub(super) bytes: u64,
    /// CPU time in nanoseconds when it was first watched.
    pub(super) cpu_start: u64,
    pub(super) site: u64,
    pub(super) site_offset: u64,
    /// Calls that were only counted.
    pub(super) counted: u64,
}

/// Which gap.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GapKey {
    pub(super) resume: u64,
    pub(super) caller: u64,
    pub(super) space: u32,
    pub(super) thread: u32,
    pub(super) call: u32,
    pub(super) next: u32,
}

/// What was counted of it on one CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Gap {
    pub(super) count: u64,
    pub(super) gap_ns: u64,
    pub(super) call_ns: u64,
    pub(super) bytes: u64,
    pub(super) gap_log2: [u64; BUCKETS],
    pub(super) call_log2: [u64; BUCKETS],
}

/// An address at which a program resumes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct SiteKey {
    pub(super) resume: u64,
    pub(super) space: u32,
    pub(super) padding: u32,
}

/// A new address space.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct SpaceEvent {
    pub(super) kind: u32,
    pub(super) space: u32,
    pub(super) process: u32,
    /// The address space that it is a copy of, or 0.
    pub(super) parent: u32,
    /// Name of the program, ended by a zero.
    name: [u8; 16],
}

impl SpaceEvent {
    /// Name of the program, as `ps` prints it.
    pub(super) fn program(&self) -> String {
        let name = self.name.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }
}

/// A new [`SiteKey`], with the stack there.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct SiteEvent {
    pub(super) kind: u32,
    pub(super) space: u32,
    pub(super) process: u32,
    /// How many of the words could be read.
    pub(super) words: u32,
    pub(super) resume: u64,
    pub(super) sp: u64,
    /// Of the thread, to find a caller whose frame is based on it.
    pub(super) bp: u64,
    pub(super) stack: [u64; STACK_WORDS],
}

/// Counters of the BPF program.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    pub(super) spaces: u64,
    pub(super) events_lost: u64,
    pub(super) passages_lost: u64,
    pub(super) threads_lost: u64,
    /// Calls of ended threads that were only counted.
    pub(super) counted: u64,
}

/// Types that may be copied from and to the kernel as bytes.
mod plain {
    use super::*;

    // SAFETY: integers without padding between or behind them.
    unsafe impl Pod for Thread {}
    // SAFETY: integers without padding between or behind them.
    unsafe impl Pod for GapKey {}
    // SAFETY: integers without padding between or behind them.
    unsafe impl Pod for Gap {}
    // SAFETY: integers without padding between or behind them.
    unsafe impl Pod for SiteKey {}
    // SAFETY: integers without padding between or behind them.
    unsafe impl Pod for SpaceEvent {}
    // SAFETY: integers without padding between or behind them.
    unsafe impl Pod for SiteEvent {}
    // SAFETY: integers without padding between or behind them.
    unsafe impl Pod for Totals {}
}

/// Reads an event.
pub(crate) fn read<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: the length is checked, any bytes make a `Pod`, and the read
    // does not need alignment.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_events_are_not_read() {
        let bytes = b"\x01\0\0\0\x07\0\0\0\x09\0\0\0\0\0\0\0server\0\0old data";
        assert!(read::<SpaceEvent>(&bytes[..31]).is_none());
        let event = read::<SpaceEvent>(bytes).unwrap();
        assert_eq!((event.kind, event.space, event.process), (EVENT_SPACE, 7, 9));
        assert_eq!(event.program(), "server");
    }
}

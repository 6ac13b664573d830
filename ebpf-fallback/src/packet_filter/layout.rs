//! What the BPF programs and this process read of each other: the structures
//! of `bpf/filter.bpf.c`.

use aya::Pod;

pub(super) use crate::profiler::read;

/// Registers of `struct pt_regs`, in its order.
pub(super) const REGISTERS: usize = 21;
/// Most pieces of memory that are compared.
pub(super) const MAX_PIECES: usize = 32;
/// Most bytes of one.
pub(super) const PIECE_BYTES: usize = 64;
/// 64-bit words of [`Watch::harmless`].
pub(super) const HARMLESS_WORDS: usize = 8;

/// Values of [`Watch::mode`]: ignore the process, tell of its next receive
/// call, arm the gate when it is as expected.
pub(super) const MODE_OFF: u32 = 0;
pub(super) const MODE_OBSERVE: u32 = 1;
pub(super) const MODE_FILTER: u32 = 2;

/// Values of [`Event::kind`].
pub(super) const EVENT_SNAPSHOT: u32 = 1;
pub(super) const EVENT_STOPPED: u32 = 2;

/// Name of the constant that says what is taken out: a [`Protection`].
pub(super) const WITHOUT_PROTECTION: &str = "without_protection";

/// What keeps a filter from dropping packets that the program would use. Only
/// tests take one out, to see that they notice.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Packets are dropped only while the thread sleeps in its receive call
    /// with nothing in hand.
    Gate = 1,
    /// Memory that packets are judged by is compared at each receive call.
    Comparison = 2,
}

/// Offsets in [`Gate`].
pub(super) const GATE_ARMED: i16 = 0;
pub(super) const GATE_DROPPED: i16 = 8;
pub(super) const GATE_KEPT: i16 = 16;

/// The gate in front of the socket.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Gate {
    pub(super) armed: u64,
    pub(super) dropped: u64,
    /// Packets that the decision kept.
    pub(super) kept: u64,
    /// Packets that came while the gate was not armed.
    pub(super) passed: u64,
    pub(super) sk: u64,
    pub(super) task: u64,
}

/// Memory that must be as it was.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct PieceData {
    pub(super) address: u64,
    pub(super) length: u64,
    pub(super) bytes: [u8; PIECE_BYTES],
}

/// The watch over the thread.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch {
    pub(super) process: u32,
    pub(super) supervisor: u32,
    pub(super) mode: u32,
    pub(super) call: u32,
    pub(super) fd: u32,
    pub(super) program: u32,
    pub(super) is_udp: u32,
    pub(super) pieces: u32,
    pub(super) sk: u64,
    pub(super) flags_mask: u64,
    pub(super) registers_mask: u64,
    pub(super) registers: [u64; REGISTERS],
    pub(super) harmless: [u64; HARMLESS_WORDS],
    pub(super) piece: [PieceData; MAX_PIECES],
}

/// What the kernel tells.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Event {
    pub(super) kind: u32,
    pub(super) reason: u32,
    pub(super) detail: u64,
    pub(super) sk: u64,
    pub(super) registers: [u64; REGISTERS],
}

/// Types that may be copied from and to the kernel as bytes.
mod plain {
    use super::*;

    // SAFETY: integers without padding between or behind them.
    unsafe impl Pod for Gate {}
    // SAFETY: integers without padding between or behind them.
    unsafe impl Pod for Watch {}
    // SAFETY: integers without padding between or behind them.
    unsafe impl Pod for Event {}
}

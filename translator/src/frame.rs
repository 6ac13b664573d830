//! Layout of `struct ub_frame`, the memory at the hardware stack pointer
//! while a fragment runs (`kernel-patch/module/uapi/ub.h`, `docs/fragment.md`).

/// The user's stack pointer, in and out.
pub const USER_RSP: i32 = 0x00;
/// User target of an indirect exit, out.
pub const TARGET: i32 = 0x08;
/// First of [`SPILL_SLOTS`] 64-bit slots.
pub const SPILL: i32 = 0x10;
/// How many spill slots there are.
pub const SPILL_SLOTS: usize = 7;
/// The user's `r11` at entry.
pub const USER_R11: i32 = 0x48;
/// Address of the thread's work flags; a poll loads it.
pub const POLL_FLAGS: i32 = 0x50;
/// Address of the CPU's 16-bit pending-softirq mask; a poll loads it.
pub const POLL_SOFTIRQ: i32 = 0x58;
/// The work flags that end a ride, 32 bits.
pub const POLL_MASK: i32 = 0x60;
/// Index of the exit taken, 32 bits, out.
pub const EXIT_ID: i32 = 0x64;
/// Instructions that may be executed before a poll leaves, 32 bits; each poll takes off
/// what may have been executed since the last one. Bounds a stay where nothing else can
/// end it: with interrupts off.
pub const BUDGET: i32 = 0x68;
/// Size of the frame in bytes.
pub const SIZE: usize = 0x70;

/// Offset of spill slot `index`.
///
/// # Panics
/// If `index` is not below [`SPILL_SLOTS`].
#[must_use]
pub const fn spill(index: usize) -> i32 {
    assert!(index < SPILL_SLOTS);
    SPILL + 8 * index as i32
}

/// Lowest displacement allowed on a confined register.
pub const WINDOW_LOW: i64 = -(1 << 20);
/// One past the highest displacement allowed on a confined register.
pub const WINDOW_HIGH: i64 = 1 << 31;
/// Largest `rcx` with which a `rep` string instruction is run in a fragment;
/// it bounds the time without a poll.
pub const REP_LIMIT: i32 = 1024;
/// Most instructions between two polls, each repetition counted: on any path
/// of a fragment from its entry or a poll to the next poll or out.
pub const WORK_LIMIT: u32 = 8192;
/// How many instructions one counts for that takes far longer than others: divisions,
/// random numbers, flushes of cache lines, `pause`.
pub const SLOW_WORK: u32 = 64;
/// Alignment within which a locked operand must lie: a split lock in ring 0
/// is fatal where the CPU detects it.
pub const CACHE_LINE: u32 = 64;

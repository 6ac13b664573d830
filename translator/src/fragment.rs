//! A fragment and its life: translated, then verified, then installed.

use std::marker::PhantomData;
use std::ops::Range;

/// State of a [`Fragment`] that the emitter produced and nobody checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Translated {}

/// State of a [`Fragment`] that the verifier accepted. Only such a fragment
/// can be installed; only the verifier makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {}

/// Index into [`Parts::exits`], as written to the frame's `exit_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExitId(pub u32);

/// Why a fragment is left (`enum ub_exit_kind`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum ExitKind {
    /// At a `syscall` instruction.
    Syscall = 1,
    /// A direct branch, or falling through, to code outside the region.
    Branch = 2,
    /// An indirect branch whose target is not predicted.
    Indirect = 3,
    /// An instruction that is not on the allow-list.
    Unsupported = 4,
    /// A memory access or arithmetic instruction raised a fault.
    Fault = 5,
    /// A run-time guard refused an operand: pointer with bit 63 set, locked
    /// operand across cache lines, `rep` count over the limit.
    Guard = 6,
    /// Work is pending in the kernel; seen by a poll on a back-edge.
    Poll = 7,
}

/// Why an instruction ends a fragment with [`ExitKind::Unsupported`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Unsupported {
    /// Not unsupported: the value for every other exit kind.
    None = 0,
    /// The bytes do not decode.
    Undecodable = 1,
    /// Not on the allow-list in this form.
    Form = 2,
    /// Traps or is privileged by nature (`int3`, `ud2`, `hlt`, `cpuid`, I/O).
    Trap = 3,
    /// Needs a CPU feature that this machine does not have.
    CpuFeature = 4,
    /// Uses the gs segment, or a far or 16-bit form.
    Segment = 5,
    /// Reads or writes flags as a whole (`pushf`, `popf`, `std`).
    WholeFlags = 6,
    /// Refers to a constant address outside the user half.
    Address = 7,
    /// The code could not be read at this address.
    Unreadable = 8,
    /// x87 or MMX, whose state records addresses of instructions.
    X87 = 9,
    /// Which elements of memory it accesses is data in vector registers
    /// (gathers, scatters, `maskmov`).
    ElementAccess = 10,
    /// Transactional memory: a transaction cannot begin here and end in the
    /// program.
    Transaction = 11,
    /// State that the kernel keeps for the program and checks itself (XSAVE
    /// areas, protection keys, segment bases, shadow stacks).
    KernelManaged = 12,
}

/// One way out of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// User address of [`ExitKind`]'s meaning; see `docs/fragment.md`.
    pub user_ip: u64,
    /// Why.
    pub kind: ExitKind,
    /// More of why, for [`ExitKind::Unsupported`].
    pub reason: Unsupported,
}

/// A fault of the instruction at `fault` continues at `landing`; both are
/// byte offsets into the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fixup {
    /// Offset of the instruction that may fault.
    pub fault: u32,
    /// Offset of the code that leaves with a precise state.
    pub landing: u32,
}

/// What a fragment is made of, whatever its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// User address that the fragment stands for.
    pub entry: u64,
    /// The machine code, position independent but for `relocations`.
    pub code: Vec<u8>,
    /// The ways out, indexed by [`ExitId`].
    pub exits: Vec<Exit>,
    /// Sorted by `fault`, without duplicates.
    pub fixups: Vec<Fixup>,
    /// Offsets of the 32-bit fields of `jmp rel32` that lead to the runner's
    /// exit stub.
    pub relocations: Vec<u32>,
    /// User code this was made from, sorted and disjoint.
    pub sources: Vec<Range<u64>>,
    /// How many user instructions were translated, copies not counted.
    pub guest_instructions: u32,
    /// The most instructions of its own, repetitions counted, that are executed between
    /// its entry or a poll and the next poll or the way out.
    pub work: u32,
    /// (user address, code offset) of each translated instruction in emission
    /// order; for people and tests, not for the module.
    pub map: Vec<(u64, u32)>,
}

/// A translated region in the state `State`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment<State> {
    parts: Parts,
    state: PhantomData<State>,
}

impl<State> Fragment<State> {
    /// What the fragment is made of.
    #[must_use]
    pub fn parts(&self) -> &Parts {
        &self.parts
    }
}

impl Fragment<Translated> {
    /// Wraps what an emitter made. Anyone may call this: nothing trusts it.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self { parts, state: PhantomData }
    }

    /// The verifier's stamp; callable only inside this crate.
    pub(crate) fn into_verified(self) -> Fragment<Verified> {
        Fragment { parts: self.parts, state: PhantomData }
    }
}

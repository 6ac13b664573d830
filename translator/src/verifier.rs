//! Proves that a finished fragment keeps to `docs/fragment.md`.
//!
//! The verifier is what stands between a user's program and ring 0, so it
//! trusts nothing the emitter knows: it decodes the bytes again, has its own
//! list of instructions, and follows every path with an abstract state until
//! nothing changes. It shares the types of [`fragment`](crate::fragment) and
//! the numbers of [`frame`](crate::frame) with the emitter, and no code.
//!
//! * `allowed`, `features`: what may appear at all.
//! * `form`: what instructions of one kind have in common.
//! * `operands`, `encoding`: which operands and bytes an instruction may have.
//! * `effects`: which registers it reads and writes.
//! * `code`: the bytes become lines; jumps, fixups and relocations are resolved.
//! * `sequences`: the fixed sequences (poll, lock guard, `rep` bound) are found.
//! * `value`, `transfer`: ranges of registers, and what instructions make of them.
//! * `state`, `step`: what one instruction does to the state, and what it demands.
//! * `flow`: the fixpoint over all paths.

mod allowed;
mod code;
mod effects;
mod encoding;
mod features;
mod flow;
mod form;
mod operands;
mod sequences;
mod state;
mod step;
#[cfg(test)]
mod tests;
mod transfer;
mod value;
mod work;

use crate::fragment::{Fragment, Parts, Translated, Verified};
pub use features::Features;

/// What a fragment may be, beyond the fixed rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Extensions of the CPU that will run it.
    pub features: Features,
    /// See [`Policy::with_user_half_end`].
    user_half_end: u64,
    /// Most bytes of code.
    pub max_code_bytes: usize,
    /// Most exits.
    pub max_exits: usize,
    /// Most fixups.
    pub max_fixups: usize,
    /// Most source ranges.
    pub max_sources: usize,
    /// A rule left out, to show that tests notice.
    #[cfg(feature = "planted-bugs")]
    pub without: Option<PlantedBug>,
}

/// A rule that a verifier could forget. Only with the feature `planted-bugs`,
/// which no program is built with.
#[cfg(feature = "planted-bugs")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlantedBug {
    /// Bases of accesses may be anything ([`Rule::Confinement`]).
    SkipConfinement,
    /// Indexes of accesses may be anything ([`Rule::Index`]).
    TrustIndex,
    /// What can fault needs no fixup ([`Rule::Fixup`]).
    SkipFixup,
    /// Slots are read although nothing was written ([`Rule::SlotRead`]).
    SkipSlotRead,
}

impl Policy {
    /// The default limits, 4-level paging, with the given extensions.
    #[must_use]
    pub const fn new(features: Features) -> Self {
        Self {
            features,
            user_half_end: 1 << 47,
            max_code_bytes: 256 << 10,
            max_exits: 1 << 14,
            max_fixups: 1 << 14,
            max_sources: 1 << 12,
            #[cfg(feature = "planted-bugs")]
            without: None,
        }
    }

    /// One past the highest user address: `1 << 47`, or `1 << 56` with 5-level
    /// paging. Constants beyond it are not addresses.
    ///
    /// # Panics
    /// Beyond `1 << 56`, where no CPU has user memory: what the rules say about
    /// ranges of addresses would be wrong.
    #[must_use]
    pub const fn with_user_half_end(self, user_half_end: u64) -> Self {
        assert!(user_half_end <= 1 << 56, "no user memory lies beyond 2^56");
        Self { user_half_end, ..self }
    }

    /// This policy with a rule left out.
    #[cfg(feature = "planted-bugs")]
    #[must_use]
    pub const fn without(self, bug: PlantedBug) -> Self {
        Self { without: Some(bug), ..self }
    }

    /// `Err` unless a planted bug leaves the rule out.
    fn violated(&self, violation: Violation) -> Result<(), Violation> {
        #[cfg(feature = "planted-bugs")]
        match (self.without, violation.0) {
            (Some(PlantedBug::SkipConfinement), Rule::Confinement)
            | (Some(PlantedBug::TrustIndex), Rule::Index)
            | (Some(PlantedBug::SkipFixup), Rule::Fixup)
            | (Some(PlantedBug::SkipSlotRead), Rule::SlotRead) => return Ok(()),
            _ => {}
        }
        Err(violation)
    }
}

/// The rules, each with what an attacker could do without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Sizes are within the policy. Stops exhausting the arena and the tables.
    Size,
    /// The bytes decode without gaps, and every instruction is encoded the
    /// one canonical way. Stops hiding instructions behind a decoder that
    /// disagrees with the CPU, and prefixes whose meaning depends on the CPU.
    Encoding,
    /// `endbr64` is the first instruction, and its bytes appear nowhere else.
    /// Stops the fragment from offering further indirect-branch targets to
    /// whoever diverted a kernel pointer.
    EntryPoint,
    /// Only listed instructions. Stops everything privileged, stack and
    /// segment changes, and control flow other than direct jumps.
    Instruction,
    /// Only extensions of this CPU. Stops #UD in ring 0.
    Feature,
    /// Only general, vector and mask registers. Stops `mov` to control, debug
    /// and segment registers, and x87 state, which records kernel addresses.
    Register,
    /// `rsp` appears only as the base of a frame slot. Stops moving the
    /// kernel's stack, and reading its address.
    StackPointer,
    /// Frame slots are accessed as listed. Stops reading or overwriting the
    /// rest of the kernel's stack, and changing what polls read.
    Frame,
    /// A slot is read only after it was written. Stops reading what an
    /// earlier kernel function left there.
    SlotRead,
    /// User memory is named in one of the listed forms. Stops addresses
    /// nobody checked: `gs`, absolute, rip-relative, 32-bit ones.
    MemoryForm,
    /// The base of a user access has bit 63 clear, or is a little below 0.
    /// Stops access to kernel memory.
    Confinement,
    /// The index of a user access is a small number, scale included. Stops
    /// going from a confined base to kernel memory.
    Index,
    /// Everything that can fault has a fixup. Stops a user's bad pointer or
    /// division from being an oops.
    Fixup,
    /// Fixups are sorted, unique and between instruction starts. Stops
    /// landing in the middle of an instruction.
    FixupTable,
    /// A landing leads straight to a FAULT exit. Stops endless faulting, and
    /// going on with a state that the faulting instruction should have made.
    Landing,
    /// Jumps lead to instruction starts inside the code; the code does not
    /// run off its end. Stops executing anything that was not verified.
    JumpTarget,
    /// Jumps to lower addresses only behind a poll, whose exits lead out.
    /// Stops a loop from keeping the CPU with preemption off.
    Loop,
    /// Relocations are the fields of exit jumps. Stops patching other bytes.
    Relocation,
    /// Every exit has written the id of an existing exit, and `target` for an
    /// INDIRECT one. Stops the runner from acting on stale values.
    ExitId,
    /// Exits name user addresses. Stops returning to a kernel address.
    ExitTable,
    /// Entry and sources are user ranges, sorted and disjoint. Stops a
    /// fragment that no change of the program's code would retire.
    Sources,
    /// A register that may hold kernel data is neither read nor alive at an
    /// exit. Stops leaking kernel addresses to the user.
    KernelData,
    /// Locked accesses follow the guard. Stops split locks, which are fatal
    /// in ring 0 where the CPU detects them.
    Lock,
    /// `rep` follows the bound on `rcx`. Stops keeping the CPU with preemption
    /// off.
    Rep,
    /// Between two polls, or a poll and the way out, lie at most
    /// [`WORK_LIMIT`](crate::frame::WORK_LIMIT) instructions. Stops long code
    /// without loops from keeping the CPU with preemption off.
    Work,
    /// All code but padding is reachable, so all of it was proven. Stops
    /// leaving unproven bytes in executable kernel memory.
    Unreachable,
}

/// Why a fragment was refused. Always a bug of the emitter, or an attack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused at code offset {offset:#x} ({instruction}): {rule:?}: {detail}")]
pub struct VerifyError {
    /// Code offset of the instruction, or 0 for the tables.
    pub offset: usize,
    /// The instruction, as text.
    pub instruction: String,
    /// The rule that does not hold.
    pub rule: Rule,
    /// What about it does not hold.
    pub detail: &'static str,
}

/// A [`VerifyError`] before it is known where.
type Violation = (Rule, &'static str);

/// The number of the general register that `register` is a part of.
fn number(register: iced_x86::Register) -> usize {
    register.full_register().number()
}

fn table_error((rule, detail): Violation) -> Box<VerifyError> {
    Box::new(VerifyError { offset: 0, instruction: String::from("tables"), rule, detail })
}

/// Checks `fragment` against every [`Rule`] and, if all hold, marks it as
/// fit to be installed.
///
/// # Errors
/// The first violation found.
pub fn verify(
    fragment: Fragment<Translated>,
    policy: &Policy,
) -> Result<Fragment<Verified>, Box<VerifyError>> {
    let parts = fragment.parts();
    tables(parts, policy).map_err(table_error)?;
    let code = code::Code::new(parts, policy)?;
    flow::prove(&code, policy)?;
    work::prove(&code)?;
    Ok(fragment.into_verified())
}

/// The rules that concern only the tables.
fn tables(parts: &Parts, policy: &Policy) -> Result<(), Violation> {
    let user = |address: u64| address < policy.user_half_end;
    if parts.code.len() > policy.max_code_bytes {
        return Err((Rule::Size, "too much code"));
    }
    if parts.exits.len() > policy.max_exits
        || parts.fixups.len() > policy.max_fixups
        || parts.sources.len() > policy.max_sources
        || parts.relocations.len() > parts.code.len()
    {
        return Err((Rule::Size, "a table is too long"));
    }
    if !parts.exits.iter().all(|exit| user(exit.user_ip)) {
        return Err((Rule::ExitTable, "an exit's address is not in the user half"));
    }
    let sane = |r: &std::ops::Range<u64>| r.start < r.end && r.end <= policy.user_half_end;
    let disjoint = parts.sources.windows(2).all(|w| w[0].end <= w[1].start);
    if !parts.sources.iter().all(sane) || !disjoint {
        return Err((Rule::Sources, "sources are not sorted, disjoint user ranges"));
    }
    if !parts.sources.iter().any(|r| r.contains(&parts.entry)) {
        return Err((Rule::Sources, "the entry is in none of the sources"));
    }
    Ok(())
}

//! Which general registers an instruction reads and writes, implicit ones
//! included, as sets by register number.

use super::{Rule, Violation, state};
use iced_x86::{
    Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, OpKind,
};

/// The effects of one instruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// Read as a value or as part of an address.
    pub reads: u16,
    /// Overwritten with all 64 bits.
    pub writes: u16,
    /// Overwritten in the lower 8 or 16 bits at most.
    pub patches: u16,
    /// Overwritten in any other way, or perhaps not at all.
    pub perhaps: u16,
    /// The memory operand is read, or keeps some of its contents.
    pub memory_read: bool,
    /// The memory operand is written.
    pub memory_write: bool,
    /// The memory operand is accessed in any case: it is not masked, and the
    /// instruction is not just a hint.
    pub accesses: bool,
}

impl Effects {
    /// Those of `instruction`.
    pub fn of(factory: &mut InstructionInfoFactory, instruction: &Instruction) -> Self {
        let info = factory.info_options(instruction, InstructionInfoOptions::NO_MEMORY_USAGE);
        let mut effects = Self::default();
        // With a zero source these leave the destination as it was.
        let keeps = matches!(instruction.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr);
        for used in info.used_registers() {
            let register = used.register();
            if !register.is_gpr() {
                continue;
            }
            let bit = 1 << register.full_register().number();
            let (reads, writes, always) = kinds(used.access());
            if reads {
                effects.reads |= bit;
            }
            if writes {
                let set = if register.is_gpr8() || register.is_gpr16() {
                    &mut effects.patches
                } else if always && !keeps {
                    &mut effects.writes
                } else {
                    &mut effects.perhaps
                };
                *set |= bit;
            }
        }
        for (operand, kind) in instruction.op_kinds().enumerate() {
            if kind == OpKind::Memory {
                let (reads, writes, always) = kinds(info.op_access(operand as u32));
                // What is perhaps not written keeps its old contents.
                effects.memory_read |= reads || !always || instruction.has_op_mask();
                effects.memory_write |= writes;
                effects.accesses = !instruction.has_op_mask()
                    && matches!(
                        info.op_access(operand as u32),
                        OpAccess::Read
                            | OpAccess::Write
                            | OpAccess::ReadWrite
                            | OpAccess::ReadCondWrite
                    );
            }
        }
        effects
    }

    /// All registers that may change.
    pub fn changed(self) -> u16 {
        self.writes | self.patches | self.perhaps
    }

    /// No instruction may write `rsp`, implicitly or not.
    pub fn check(self) -> Result<(), Violation> {
        if self.changed() >> state::RSP & 1 == 1 {
            return Err((Rule::StackPointer, "rsp is written"));
        }
        Ok(())
    }
}

/// (reads, writes, writes in any case)
fn kinds(access: OpAccess) -> (bool, bool, bool) {
    match access {
        OpAccess::None | OpAccess::NoMemAccess => (false, false, false),
        OpAccess::Read | OpAccess::CondRead => (true, false, false),
        OpAccess::Write => (false, true, true),
        OpAccess::CondWrite => (false, true, false),
        OpAccess::ReadWrite => (true, true, true),
        OpAccess::ReadCondWrite => (true, true, false),
    }
}

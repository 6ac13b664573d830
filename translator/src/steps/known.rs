//! What is known of all instructions of one form, found out from the first.
//!
//! Judging an instruction takes a walk through iced's tables and the lists of
//! [`forms`]. Nearly all instructions are of few forms, and what matters of a
//! form depends on its operands only where [`is_ordinary`] says.

use std::sync::{LazyLock, OnceLock};

use iced_x86::{
    Code, Instruction, InstructionInfoFactory, InstructionInfoOptions, OpAccess, OpKind, Register,
};

use crate::cpu::CpuFeatures;
use crate::flags::{self, Effects};
use crate::forms::{self, Class, Form};
use crate::fragment::Unsupported;
use crate::regs::{self, GprSet};

/// What a translation needs to know of an allowed instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Traits {
    pub form: Form,
    /// See [`Guest::effects`](super::Guest::effects).
    pub effects: Effects,
    /// See [`Guest::writes`](super::Guest::writes).
    pub writes: GprSet,
}

/// The traits of all ordinary instructions of one form.
#[derive(Debug)]
struct Known {
    /// The machine they are known to be allowed on.
    cpu: CpuFeatures,
    form: Form,
    effects: Effects,
    /// General registers written without being an operand.
    implied: GprSet,
    /// The operands that are written, by their bits.
    written: u8,
}

/// By `Code`, with a memory operand in the second half. For all threads: the
/// entries are facts.
static KNOWN: LazyLock<Box<[OnceLock<Known>]>> =
    LazyLock::new(|| (0..2 * Code::values().len()).map(|_| OnceLock::new()).collect());

/// Looks up or finds out what instructions are.
pub(super) struct Judge {
    cpu: CpuFeatures,
    factory: InstructionInfoFactory,
    known: &'static [OnceLock<Known>],
}

impl Judge {
    pub(super) fn new(cpu: CpuFeatures) -> Self {
        Self { cpu, factory: InstructionInfoFactory::new(), known: &KNOWN }
    }

    /// The traits of `instruction`, or why it is not allowed.
    #[inline]
    pub(super) fn judge(&mut self, instruction: &Instruction) -> Result<Traits, Unsupported> {
        let Some(memory) = is_ordinary(instruction) else {
            return self.find_out(instruction);
        };
        let half = if memory { self.known.len() / 2 } else { 0 };
        let cell = &self.known[half + instruction.code() as usize];
        if let Some(known) = cell.get().filter(|known| known.cpu == self.cpu) {
            let traits = known.traits_of(instruction);
            // A sample: judging everything twice would make debug builds slow.
            debug_assert!(
                !instruction.ip().is_multiple_of(8) || Ok(traits) == self.find_out(instruction),
                "{instruction}"
            );
            return Ok(traits);
        }
        self.learn(instruction, cell)
    }

    /// The traits of the first instruction of its form on this machine, noted
    /// for those that follow.
    #[cold]
    fn learn(
        &mut self,
        instruction: &Instruction,
        cell: &OnceLock<Known>,
    ) -> Result<Traits, Unsupported> {
        let traits = self.find_out(instruction)?;
        if is_uniform(instruction, traits.form.class) {
            let (implied, written) = self.writes_of_form(instruction);
            let Traits { form, effects, .. } = traits;
            // If another thread was faster, it found the same.
            let _ = cell.set(Known { cpu: self.cpu, form, effects, implied, written });
        }
        Ok(traits)
    }

    /// The traits of any instruction, from the instruction itself.
    fn find_out(&mut self, instruction: &Instruction) -> Result<Traits, Unsupported> {
        let form = forms::classify(instruction, self.cpu)?;
        let effects = match form.class {
            Class::Hint => Effects::default(),
            _ => flags::effects(instruction),
        };
        Ok(Traits { form, effects, writes: self.writes(instruction) })
    }

    fn writes(&mut self, instruction: &Instruction) -> GprSet {
        let options = InstructionInfoOptions::NO_MEMORY_USAGE;
        let mut writes = GprSet::default();
        for used in self.factory.info_options(instruction, options).used_registers() {
            if writes_to(used.access()) && used.register().is_gpr() {
                writes.insert(used.register());
            }
        }
        writes
    }

    /// What every instruction of this form writes: registers that are no
    /// operands, and operands by their bits.
    fn writes_of_form(&mut self, instruction: &Instruction) -> (GprSet, u8) {
        // Registers that no instruction implies, so that they tell operands
        // from what is implied. `syscall`, which writes r11, is no step.
        const OPERANDS: [Register; 5] =
            [Register::R8, Register::R9, Register::R10, Register::R11, Register::R12];
        let mut specimen = *instruction;
        let mut operands = GprSet::default();
        for (i, full) in (0..instruction.op_count()).zip(OPERANDS) {
            if is_general(instruction, i) {
                specimen.set_op_register(i, regs::same_part(full, low(instruction.op_register(i))));
                operands.insert(full);
            }
        }
        let implied = self.writes(&specimen).without(operands);
        let options =
            InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE;
        let info = self.factory.info_options(&specimen, options);
        let written = (0..instruction.op_count())
            .filter(|&i| is_general(instruction, i) && writes_to(info.op_access(i)))
            .fold(0, |written, i| written | 1 << i);
        (implied, written)
    }
}

impl Known {
    fn traits_of(&self, instruction: &Instruction) -> Traits {
        let mut writes = self.implied;
        let mut written = self.written;
        while written != 0 {
            writes.insert(instruction.op_register(written.trailing_zeros()));
            written &= written - 1;
        }
        Traits { form: self.form, effects: self.effects, writes }
    }
}

/// Whether an instruction is judged like the others of its form: it has no
/// prefixes with a meaning and none of its operands is `rsp` or a high byte.
/// Tells whether it has a memory operand.
fn is_ordinary(instruction: &Instruction) -> Option<bool> {
    let prefixed = instruction.has_lock_prefix()
        || instruction.has_rep_prefix()
        || instruction.has_repne_prefix()
        || instruction.segment_prefix() != Register::None;
    if prefixed {
        return None;
    }
    let mut memory = false;
    for i in 0..instruction.op_count() {
        match instruction.op_kind(i) {
            OpKind::Register if is_peculiar(instruction.op_register(i)) => return None,
            OpKind::Memory => memory = true,
            _ => {}
        }
    }
    Some(memory)
}

/// Whether all ordinary instructions with the form of this one are judged
/// alike. Not so if immediates matter, or the width of addresses.
fn is_uniform(instruction: &Instruction, class: Class) -> bool {
    let counts = flags::counts(instruction.mnemonic());
    !counts && !matches!(class, Class::BitString | Class::String | Class::WritesRsp)
}

fn is_peculiar(register: Register) -> bool {
    matches!(register, Register::RSP | Register::ESP | Register::SP | Register::SPL)
        || regs::is_high_byte(register)
}

fn is_general(instruction: &Instruction, operand: u32) -> bool {
    instruction.op_kind(operand) == OpKind::Register && instruction.op_register(operand).is_gpr()
}

/// A low byte instead of a high one.
fn low(register: Register) -> Register {
    if regs::is_high_byte(register) { regs::low8(register.full_register()) } else { register }
}

fn writes_to(access: OpAccess) -> bool {
    use OpAccess as A;
    matches!(access, A::Write | A::CondWrite | A::ReadWrite | A::ReadCondWrite)
}

//! What one instruction demands of the state before it, and what it makes
//! of it.

use super::code::{Code, Role, frame_offset};
use super::effects::Effects;
use super::state::{Exits, RSP, State, TARGET_BIT};
use super::transfer;
use super::value::Value;
use super::{Policy, Rule, Violation, allowed, number, operands};
use crate::fragment::ExitKind;
use crate::frame;
use iced_x86::{Code as Op, Instruction, Mnemonic, OpKind, Register};

/// Executes instructions abstractly.
pub(super) struct Stepper<'a> {
    pub code: &'a Code<'a>,
    pub policy: &'a Policy,
}

impl Stepper<'_> {
    /// The state behind instruction `i`, given the one before it.
    pub fn step(&self, i: usize, before: &State) -> Result<State, Violation> {
        let instruction = &self.code.instructions[i];
        let effects = self.code.effects[i];
        let mut after = *before;
        if self.code.roles[i] == Role::Poll {
            // The sequence as a whole was checked; it changes only T.
            if instruction.op0_kind() == OpKind::Register {
                after.set(number(instruction.op0_register()), Value::KERNEL);
            }
            return Ok(after);
        }
        match instruction.mnemonic() {
            Mnemonic::Int3 => return Err((Rule::Unreachable, "padding is reached")),
            Mnemonic::Nop | Mnemonic::Endbr64 => return Ok(after),
            _ => {}
        }
        let mut touched = effects.reads | effects.changed();
        while touched != 0 {
            let register = touched.trailing_zeros() as usize;
            touched &= touched - 1;
            let (value, bit) = (before.get(register), 1 << register);
            if effects.reads & bit != 0 && register != RSP && value.is_kernel() {
                return Err((Rule::KernelData, "reads a register that may hold kernel data"));
            }
            // In this order: `xchg al,ah` patches, `xadd r64,r64` overwrites.
            if effects.perhaps & bit != 0 {
                after.set(register, Value::ANY.join(value));
            } else if effects.patches & bit != 0 {
                after.set(register, value.patched());
            } else if effects.writes & bit != 0 {
                after.set(register, Value::ANY);
            }
        }
        self.requirements(i, before)?;
        if operands::has_memory(instruction) && instruction.memory_base() == Register::RSP {
            self.frame_access(instruction, effects, before, &mut after)?;
        }
        self.refine(instruction, effects, before, &mut after);
        Ok(after)
    }

    /// What is known of the result, and of the base behind an access.
    fn refine(
        &self,
        instruction: &Instruction,
        effects: Effects,
        before: &State,
        after: &mut State,
    ) {
        let op0 = instruction.op0_register();
        if instruction.op0_kind() == OpKind::Register && (op0.is_gpr64() || op0.is_gpr32()) {
            let written = effects.writes >> number(op0) & 1 == 1 || transfer::is_cmov(instruction);
            if written {
                after.set(number(op0), transfer::result(instruction, before, self.policy));
            }
        }
        let base = instruction.memory_base();
        if effects.accesses
            && accesses_user(instruction)
            && !allowed::prefetch(instruction.mnemonic())
            // The manuals only say that it may fault when it moves nothing.
            && !transfer::is_cmov(instruction)
            && base.is_gpr64()
            && instruction.memory_index() == Register::None
            && effects.changed() >> number(base) & 1 == 0
        {
            let displacement = instruction.memory_displacement64() as i64;
            after.set(number(base), before.get(number(base)).accessed(displacement));
        }
    }

    /// What user memory accesses and faults demand.
    fn requirements(&self, i: usize, before: &State) -> Result<(), Violation> {
        let instruction = &self.code.instructions[i];
        if operands::is_locked(instruction) && self.code.roles[i] != Role::Guarded {
            return Err((Rule::Lock, "a locked access without the guard before it"));
        }
        if operands::is_repeated(instruction) && self.code.roles[i] != Role::Bounded {
            return Err((Rule::Rep, "rep without the bound before it"));
        }
        if accesses_user(instruction) {
            for kind in instruction.op_kinds() {
                let base = match kind {
                    OpKind::Memory => instruction.memory_base(),
                    OpKind::MemorySegRSI => Register::RSI,
                    OpKind::MemoryESRDI => Register::RDI,
                    _ => continue,
                };
                // fs:[disp32]: the runner checked the FS base.
                if base == Register::None {
                    continue;
                }
                if !before.get(number(base)).is_base() {
                    self.policy.violated((Rule::Confinement, "the base is not confined"))?;
                }
                let displacement = instruction.memory_displacement64() as i64;
                if kind == OpKind::Memory
                    && !(frame::WINDOW_LOW..frame::WINDOW_HIGH).contains(&displacement)
                {
                    return Err((Rule::Confinement, "the displacement is outside the window"));
                }
                let (index, scale) = (instruction.memory_index(), instruction.memory_index_scale());
                if kind == OpKind::Memory
                    && index != Register::None
                    && !before.get(number(index)).is_index(scale)
                {
                    self.policy.violated((Rule::Index, "the index is not bounded"))?;
                }
            }
        }
        let hint = allowed::prefetch(instruction.mnemonic());
        let faults = allowed::raises(instruction) || (accesses_user(instruction) && !hint);
        if faults && self.code.landings[i].is_none() {
            self.policy.violated((Rule::Fixup, "can fault and has no fixup"))?;
        }
        Ok(())
    }

    /// An access to the frame, outside polls.
    fn frame_access(
        &self,
        instruction: &Instruction,
        effects: Effects,
        before: &State,
        after: &mut State,
    ) -> Result<(), Violation> {
        let Some(offset) = frame_offset(instruction) else {
            return Err((Rule::Frame, "not a plain frame operand"));
        };
        if offset == frame::EXIT_ID {
            if instruction.code() != Op::Mov_rm32_imm32 {
                return Err((Rule::Frame, "exit_id is written by mov with an immediate only"));
            }
            let exit = self.code.parts.exits.get(instruction.immediate32() as usize);
            let exit = exit.ok_or((Rule::ExitId, "no exit has this id"))?;
            after.exits = Exits::of(exit.kind);
            return Ok(());
        }
        if instruction.memory_size().size() != 8 {
            return Err((Rule::Frame, "frame slots are accessed with 64 bits"));
        }
        let (reading, writing) = (effects.memory_read, effects.memory_write);
        match offset {
            frame::USER_RSP => after.rsp_checked &= !writing,
            frame::USER_R11 if !writing => {}
            frame::TARGET => self.slot(TARGET_BIT, reading, writing, before, after)?,
            _ => {
                let relative = offset.saturating_sub(frame::SPILL);
                let index = usize::try_from(relative / 8).unwrap_or(usize::MAX);
                if relative < 0 || relative % 8 != 0 || index >= frame::SPILL_SLOTS {
                    return Err((Rule::Frame, "not a slot that may be accessed so"));
                }
                self.slot(index, reading, writing, before, after)?;
            }
        }
        Ok(())
    }

    /// An access to a slot that is written before it is read.
    fn slot(
        &self,
        bit: usize,
        reading: bool,
        writing: bool,
        before: &State,
        after: &mut State,
    ) -> Result<(), Violation> {
        if reading && before.written >> bit & 1 == 0 {
            self.policy.violated((Rule::SlotRead, "the slot is not written on every path"))?;
        }
        after.written |= u8::from(writing) << bit;
        Ok(())
    }

    /// What must hold where the fragment is left.
    pub fn leave(&self, state: &State) -> Result<(), Violation> {
        if state.exits.may_be(Exits::UNSET) {
            return Err((Rule::ExitId, "an exit without an exit id"));
        }
        let target = state.written >> TARGET_BIT & 1 == 1;
        if state.exits.may_be(Exits::of(ExitKind::Indirect)) && !target {
            return Err((Rule::ExitId, "an INDIRECT exit without a target"));
        }
        if state.leaks() {
            return Err((Rule::KernelData, "a register may hold kernel data at an exit"));
        }
        Ok(())
    }
}

/// Whether the instruction accesses memory outside the frame.
pub(super) fn accesses_user(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Lea | Mnemonic::Nop => false,
        _ if instruction.is_string_instruction() => true,
        _ => operands::has_memory(instruction) && instruction.memory_base() != Register::RSP,
    }
}

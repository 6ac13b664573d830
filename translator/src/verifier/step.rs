//! What one instruction demands of the state before it, and what it makes
//! of it.

use super::code::{Code, Role, frame_offset};
use super::effects::Effects;
use super::state::{Exits, RSP, State, TARGET_BIT, Value};
use super::{Policy, Rule, Violation, allowed, operands};
use crate::fragment::ExitKind;
use crate::frame;
use iced_x86::{Code as Op, Instruction, Mnemonic, OpKind, Register};

/// The furthest a register may move behind an access through it and stay
/// confined; beyond `d` by one `ret imm16` and the return address.
const MOVE_LIMIT: i64 = (64 << 10) + 8;
/// The furthest down by one access. While the access is still to fault, the
/// code behind it may run ahead; so small a step keeps the register in the
/// hole at the top of the address space for as long as that can last.
const MOVE_DOWN: i64 = -128;

/// Executes instructions abstractly.
pub(super) struct Stepper<'a> {
    pub code: &'a Code<'a>,
    pub policy: &'a Policy,
}

fn number(register: Register) -> usize {
    register.full_register().number()
}

impl Stepper<'_> {
    /// The state behind instruction `i`, given the one before it.
    pub fn step(&self, i: usize, before: &State) -> Result<State, Violation> {
        let instruction = &self.code.instructions[i];
        let effects = self.code.effects[i];
        let mut after = *before;
        after.accessed = None;
        if self.code.roles[i] == Role::Poll {
            // The sequence as a whole was checked; it changes only T.
            if instruction.op0_kind() == OpKind::Register {
                after.registers[number(instruction.op0_register())] = Value::Kernel;
            }
            return Ok(after);
        }
        match instruction.mnemonic() {
            Mnemonic::Int3 => return Err((Rule::Unreachable, "padding is reached")),
            Mnemonic::Nop | Mnemonic::Endbr64 => return Ok(after),
            _ => {}
        }
        let mut touched = effects.reads | effects.writes | effects.partial;
        while touched != 0 {
            let register = touched.trailing_zeros() as usize;
            touched &= touched - 1;
            let value = &before.registers[register];
            let reads = effects.reads >> register & 1 == 1;
            if reads && register != RSP && *value == Value::Kernel {
                return Err((Rule::KernelData, "reads a register that may hold kernel data"));
            }
            if effects.writes >> register & 1 == 1 {
                after.registers[register] = Value::User;
            } else if effects.partial >> register & 1 == 1 {
                after.registers[register] = (*value).max(Value::User);
            }
        }
        self.requirements(i, before)?;
        if operands::has_memory(instruction) && instruction.memory_base() == Register::RSP {
            self.frame_access(instruction, effects, before, &mut after)?;
        }
        self.confine(instruction, before, &mut after);
        after.accessed = accessed(instruction, effects, before);
        Ok(after)
    }

    /// What user memory accesses and faults demand.
    fn requirements(&self, i: usize, before: &State) -> Result<(), Violation> {
        let instruction = &self.code.instructions[i];
        let confined = |register: Register| before.registers[number(register)] == Value::Confined;
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
                if !confined(base) {
                    return Err((Rule::Confinement, "the base is not confined"));
                }
                let displacement = instruction.memory_displacement64() as i64;
                if kind == OpKind::Memory
                    && !(frame::WINDOW_LOW..frame::WINDOW_HIGH).contains(&displacement)
                {
                    return Err((Rule::Confinement, "the displacement is outside the window"));
                }
            }
        }
        let hint = allowed::prefetch(instruction.mnemonic());
        let faults = allowed::raises(instruction) || (accesses_user(instruction) && !hint);
        if faults && self.code.landings[i].is_none() {
            return Err((Rule::Fixup, "can fault and has no fixup"));
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
            frame::TARGET => slot(TARGET_BIT, reading, writing, before, after)?,
            _ => {
                let relative = offset - frame::SPILL;
                let index = usize::try_from(relative / 8).unwrap_or(usize::MAX);
                if relative < 0 || relative % 8 != 0 || index >= frame::SPILL_SLOTS {
                    return Err((Rule::Frame, "not a slot that may be accessed so"));
                }
                slot(index, reading, writing, before, after)?;
            }
        }
        Ok(())
    }

    /// The ways in which a register becomes or stays confined.
    fn confine(&self, instruction: &Instruction, before: &State, after: &mut State) {
        if instruction.op0_kind() != OpKind::Register {
            return;
        }
        let destination = number(instruction.op0_register());
        let wide = instruction.op0_register().is_gpr64();
        let value = match (instruction.mnemonic(), instruction.op1_kind()) {
            (Mnemonic::Btr, OpKind::Immediate8) if wide && instruction.immediate8() == 63 => {
                Value::Confined
            }
            (Mnemonic::Mov, OpKind::Register) if wide && instruction.op1_register().is_gpr64() => {
                before.registers[number(instruction.op1_register())]
            }
            (Mnemonic::Mov, OpKind::Memory)
                if wide
                    && before.rsp_checked
                    && frame_offset(instruction) == Some(frame::USER_RSP) =>
            {
                Value::Confined
            }
            (
                Mnemonic::Mov,
                OpKind::Immediate32 | OpKind::Immediate64 | OpKind::Immediate32to64,
            ) if wide || instruction.op0_register().is_gpr32() => {
                let constant = instruction.immediate(1);
                if constant >= self.policy.user_half_end {
                    return;
                }
                Value::Confined
            }
            (Mnemonic::Lea, OpKind::Memory) if wide => {
                let base = instruction.memory_base();
                let Some((register, d)) = before.accessed else { return };
                let e = instruction.memory_displacement64() as i64;
                let moved = instruction.memory_index() == Register::None
                    && base.is_gpr64()
                    && number(base) == register
                    && e >= MOVE_DOWN
                    && (0..=MOVE_LIMIT).contains(&(e - d));
                if !moved {
                    return;
                }
                Value::Confined
            }
            _ => return,
        };
        after.registers[destination] = value;
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
        let leaks = |(r, value): (usize, &Value)| r != RSP && *value == Value::Kernel;
        if state.registers.iter().enumerate().any(leaks) {
            return Err((Rule::KernelData, "a register may hold kernel data at an exit"));
        }
        Ok(())
    }
}

/// The fact that a non-faulting access leaves behind.
fn accessed(instruction: &Instruction, effects: Effects, before: &State) -> Option<(usize, i64)> {
    // A masked access may touch nothing, a prefetch does not fault.
    if !operands::has_memory(instruction)
        || !accesses_user(instruction)
        || allowed::prefetch(instruction.mnemonic())
        || instruction.has_op_mask()
        || !instruction.memory_base().is_gpr64()
    {
        return None;
    }
    let base = number(instruction.memory_base());
    let kept = (effects.writes | effects.partial) >> base & 1 == 0;
    (kept && before.registers[base] == Value::Confined)
        .then_some((base, instruction.memory_displacement64() as i64))
}

/// Whether the instruction accesses memory outside the frame.
pub(super) fn accesses_user(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Lea | Mnemonic::Nop => false,
        _ if instruction.is_string_instruction() => true,
        _ => operands::has_memory(instruction) && instruction.memory_base() != Register::RSP,
    }
}

fn slot(
    bit: usize,
    reading: bool,
    writing: bool,
    before: &State,
    after: &mut State,
) -> Result<(), Violation> {
    if reading && before.written >> bit & 1 == 0 {
        return Err((Rule::SlotRead, "the slot is not written on every path"));
    }
    after.written |= u8::from(writing) << bit;
    Ok(())
}

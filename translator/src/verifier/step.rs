//! What one instruction demands of the state before it, and what it makes
//! of it.

use super::code::{Jump, Line, Memory, Role};
use super::state::{Origin, Paths, RSP, State, TARGET_BIT};
use super::value::Value;
use super::{Policy, Rule, Violation, number, sequences, transfer};
use crate::fragment::{Exit, ExitKind};
use crate::frame;
use iced_x86::{Code as Op, Mnemonic, OpKind, Register};

/// Executes instructions abstractly.
#[derive(Clone, Copy)]
pub(super) struct Stepper<'a> {
    pub exits: &'a [Exit],
    pub policy: &'a Policy,
}

impl Stepper<'_> {
    /// Turns the state before `line` into the one behind it.
    pub fn step(&self, line: &Line, state: &mut State) -> Result<(), Violation> {
        let instruction = &line.instruction;
        if line.role == Role::Poll {
            // The sequence as a whole was checked; it changes only T.
            if instruction.op0_kind() == OpKind::Register {
                let t = number(instruction.op0_register());
                state.set(t, Value::ANY);
                state.kernel |= 1 << t;
            }
            return Ok(());
        }
        if line.form.idle {
            return Ok(());
        }
        if instruction.mnemonic() == Mnemonic::Int3 {
            return Err((Rule::Unreachable, "padding is reached"));
        }
        if state.kernel & line.effects.reads != 0 {
            return Err((Rule::KernelData, "reads a register that may hold kernel data"));
        }
        self.requirements(line, state)?;
        let result = line.form.overwrites.then(|| {
            (number(instruction.op0_register()), transfer::result(instruction, state, self.policy))
        });
        let base = self.proven_base(line, state);
        if let Memory::Frame(offset) = line.memory {
            self.frame_access(line, offset, state)?;
        }
        change(line, state);
        for (register, value) in result.into_iter().chain(base) {
            state.set(register, value);
        }
        Ok(())
    }

    /// The base of an access, and what is known of it behind one that did not
    /// fault.
    fn proven_base(&self, line: &Line, state: &State) -> Option<(usize, Value)> {
        let instruction = &line.instruction;
        let base = instruction.memory_base();
        if !line.form.accesses
            || line.memory != Memory::User
            || !base.is_gpr64()
            || instruction.memory_index() != Register::None
            || instruction.has_op_mask()
        {
            return None;
        }
        let base = number(base);
        let displacement = instruction.memory_displacement64() as i64;
        let kept = line.effects.changed() >> base & 1 == 0;
        kept.then(|| (base, state.get(base).accessed(displacement)))
    }

    /// What user memory accesses and faults demand.
    fn requirements(&self, line: &Line, state: &State) -> Result<(), Violation> {
        let instruction = &line.instruction;
        if sequences::is_locked(line) && line.role != Role::Guarded {
            return Err((Rule::Lock, "a locked access without the guard before it"));
        }
        let user = line.memory == Memory::User;
        if user && line.form.string {
            self.string_operands(line, state)?;
        } else if user && instruction.memory_base() != Register::None {
            // Else fs:[disp32]: the runner checked the FS base.
            self.base(state, instruction.memory_base())?;
            let displacement = instruction.memory_displacement64() as i64;
            if !(frame::WINDOW_LOW..frame::WINDOW_HIGH).contains(&displacement) {
                return Err((Rule::Confinement, "the displacement is outside the window"));
            }
            let (index, scale) = (instruction.memory_index(), instruction.memory_index_scale());
            if index != Register::None && !state.get(number(index)).is_index(scale) {
                self.policy.violated((Rule::Index, "the index is not bounded"))?;
            }
        }
        let faults = line.form.raises || (user && line.form.access_faults);
        if faults && line.landing.is_none() {
            self.policy.violated((Rule::Fixup, "can fault and has no fixup"))?;
        }
        Ok(())
    }

    fn string_operands(&self, line: &Line, state: &State) -> Result<(), Violation> {
        if super::operands::is_repeated(&line.instruction) && line.role != Role::Bounded {
            return Err((Rule::Rep, "rep without the bound before it"));
        }
        for kind in line.instruction.op_kinds() {
            match kind {
                OpKind::MemorySegRSI => self.base(state, Register::RSI)?,
                OpKind::MemoryESRDI => self.base(state, Register::RDI)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn base(&self, state: &State, base: Register) -> Result<(), Violation> {
        if state.get(number(base)).is_base() {
            return Ok(());
        }
        self.policy.violated((Rule::Confinement, "the base is not confined"))
    }

    /// An access to the frame at `offset`, outside polls.
    fn frame_access(&self, line: &Line, offset: i32, state: &mut State) -> Result<(), Violation> {
        let instruction = &line.instruction;
        if offset == frame::EXIT_ID {
            if instruction.code() != Op::Mov_rm32_imm32 {
                return Err((Rule::Frame, "exit_id is written by mov with an immediate only"));
            }
            let exit = self.exits.get(instruction.immediate32() as usize);
            let exit = exit.ok_or((Rule::ExitId, "no exit has this id"))?;
            state.paths = state.paths.exit(exit.kind);
            return Ok(());
        }
        if instruction.memory_size().size() != 8 {
            return Err((Rule::Frame, "frame slots are accessed with 64 bits"));
        }
        let reading = line.form.memory_read || instruction.has_op_mask();
        let writing = line.form.memory_write;
        let relative = offset.wrapping_sub(frame::SPILL);
        let slot = match offset {
            frame::USER_RSP => {
                state.rsp_checked &= !writing;
                return Ok(());
            }
            frame::USER_R11 if !writing => return Ok(()),
            frame::TARGET => TARGET_BIT,
            _ if relative % 8 == 0 && (0..frame::SPILL_SLOTS as i32).contains(&(relative / 8)) => {
                relative as usize / 8
            }
            _ => return Err((Rule::Frame, "not a slot that may be accessed so")),
        };
        if reading && state.written >> slot & 1 == 0 {
            self.policy.violated((Rule::SlotRead, "the slot is not written on every path"))?;
        }
        state.written |= u8::from(writing) << slot;
        Ok(())
    }

    /// What must hold where `line` leads from a fault or a poll.
    pub fn leads_out(&self, i: usize, line: &Line, paths: Paths) -> Result<(), Violation> {
        for (origin, kind, rule) in [
            (Origin::Fault, ExitKind::Fault, Rule::Landing),
            (Origin::Poll, ExitKind::Poll, Rule::Loop),
        ] {
            if !paths.come_from(origin) {
                continue;
            }
            if line.memory == Memory::User || line.landing.is_some() {
                return Err((rule, "may fault again before it leaves"));
            }
            match line.jump {
                Jump::To(target) if target <= i => {
                    return Err((rule, "jumps backward before it leaves"));
                }
                Jump::Out if !paths.exit_only(origin, kind) => {
                    return Err((rule, "leaves through an exit of another kind"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What must hold where the fragment is left.
    pub fn leave(&self, state: &State) -> Result<(), Violation> {
        if state.paths.may_exit(None) {
            return Err((Rule::ExitId, "an exit without an exit id"));
        }
        let target = state.written >> TARGET_BIT & 1 == 1;
        if state.paths.may_exit(Some(ExitKind::Indirect)) && !target {
            return Err((Rule::ExitId, "an INDIRECT exit without a target"));
        }
        if state.kernel != 0 {
            return Err((Rule::KernelData, "a register may hold kernel data at an exit"));
        }
        Ok(())
    }
}

/// Forgets what `line` changes.
fn change(line: &Line, state: &mut State) {
    let effects = line.effects;
    let mut changed = effects.changed();
    while changed != 0 {
        let register = changed.trailing_zeros() as usize;
        let bit = changed & changed.wrapping_neg();
        changed ^= bit;
        // In this order: `xchg al,ah` patches, `xadd r64,r64` overwrites.
        let value = if effects.perhaps & bit == 0 && effects.patches & bit != 0 {
            state.get(register).patched()
        } else {
            Value::ANY
        };
        state.set(register, value);
    }
    // What is changed in part keeps the rest.
    state.kernel &= !effects.writes | effects.patches | effects.perhaps;
    debug_assert_eq!(effects.changed() >> RSP & 1, 0);
}

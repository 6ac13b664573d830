//! Locked instructions: their operand must not cross a cache line, because a
//! split lock in ring 0 is fatal where the CPU detects it.

use iced_x86::{Code, Instruction, MemorySize, Register};

use super::{Live, Lowerer, Protect};
use crate::exits::{Saved, Undo};
use crate::flags::effects;
use crate::fragment::{ExitKind, Unsupported};
use crate::frame::CACHE_LINE;
use crate::regs;
use crate::steps::Guest;

impl Lowerer<'_> {
    pub(super) fn locked(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        let mut instruction = guest.instruction;
        let ip = guest.ip();
        let touched = effects(&instruction);
        // The line guard clobbers the flags and nothing may stand between it
        // and the access. Flags can pass only around the whole sequence.
        let around = !live.before.is_empty();
        if around && !touched.touches.is_empty() {
            return Err(Unsupported::Form);
        }
        let flags = if around { Saved::InSlot } else { Saved::No };
        let protect = if around { Protect::InSlot } else { Protect::Dead };
        if around {
            self.emit.flags_to_slot();
            self.lose(Register::RAX);
        }
        let place = self.place(&instruction, protect, true)?;
        let size = operand_size(&instruction)?;
        place.apply(&mut instruction);
        // U is the guard's: no stand-in is left for a displaced operand.
        let rewritten = self.rewrite(instruction, &[])?;

        let undo = Undo { set_bit: None, flags };
        let guard = self.exits.undo(&mut self.emit, ip, ExitKind::Guard, undo);
        let landing = self.fault(ip, flags);
        let u32 = regs::low32(self.displaced.u);
        let t32 = regs::low32(self.displaced.t);
        let bug = |_| Unsupported::Form;
        self.emit.push(Instruction::with2(Code::Mov_r32_rm32, u32, t32).map_err(bug)?);
        self.emit.push(Instruction::with2(Code::And_rm32_imm8, u32, 63).map_err(bug)?);
        self.emit.push(
            Instruction::with2(Code::Cmp_rm32_imm8, u32, CACHE_LINE as i32 - size).map_err(bug)?,
        );
        self.emit.branch(Code::Ja_rel32_64, guard);
        self.emit.faulting(rewritten.instruction, landing);
        if around {
            self.emit.flags_from_slot();
            self.lose(Register::RAX);
        }
        Ok(())
    }
}

/// Size in bytes of the memory operand.
fn operand_size(instruction: &Instruction) -> Result<i32, Unsupported> {
    let size = match instruction.memory_size() {
        MemorySize::Unknown => return Err(Unsupported::Form),
        size => size.size(),
    };
    match size {
        1 | 2 | 4 | 8 | 16 => Ok(size as i32),
        _ => Err(Unsupported::Form),
    }
}

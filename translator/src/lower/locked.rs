//! Locked instructions: their operand must not cross a cache line, because a
//! split lock in ring 0 is fatal where the CPU detects it.

use iced_x86::{Code, Instruction, MemorySize, Register};

use super::{Live, Lowerer, Protect};
use crate::displace::SPILL_FLAGS;
use crate::emit::frame as frame_field;
use crate::exits::{Saved, Undo};
use crate::flags::{Flags, effects};
use crate::fragment::{ExitKind, Unsupported};
use crate::frame::CACHE_LINE;
use crate::regs;
use crate::steps::Guest;

impl Lowerer<'_, '_> {
    pub(super) fn locked(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        let mut instruction = guest.instruction;
        let ip = guest.ip();
        // The line guard clobbers the flags and nothing may stand between it
        // and the access: those that are live behind it and that the access
        // keeps go around in their slot.
        let touched = effects(&instruction);
        let around = !live.before.is_empty();
        let flags = if around { Saved::InSlot } else { Saved::No };
        let protect = if around { Protect::InSlot } else { Protect::Dead };
        if around {
            self.emit.flags_to_slot();
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
        if around && touched.replaces.is_empty() {
            self.emit.flags_from_slot();
        } else if around {
            self.merge_flags(touched.replaces);
        }
        Ok(())
    }

    /// Takes `new` from the flags register and all other flags from their
    /// slot. Uses U.
    fn merge_flags(&mut self, new: Flags) {
        let u = self.displaced.u;
        let u32 = regs::low32(u);
        self.emit.flags_to_rax();
        self.emit.load(u, frame_field(SPILL_FLAGS));
        let new = new.in_ax();
        let old = Flags::ALL.in_ax() & !new;
        let mask = |code, register, mask: u32| Instruction::with2(code, register, mask);
        self.emit.push(mask(Code::And_EAX_imm32, Register::EAX, new).expect("and eax,imm32"));
        self.emit.push(mask(Code::And_rm32_imm32, u32, old).expect("and r32,imm32"));
        self.emit
            .push(Instruction::with2(Code::Or_rm32_r32, Register::EAX, u32).expect("or eax,r32"));
        self.emit.flags_from_rax();
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

//! String instructions: `rsi` and `rdi` are confined in place, and a repeat
//! count over the limit leaves, because nothing polls inside the repetition.

use iced_x86::{Code, Instruction, OpKind, Register};

use super::{Live, Lowerer, Protect};
use crate::exits::{Saved, Undo};
use crate::fragment::ExitKind;
use crate::frame::REP_LIMIT;
use crate::steps::Guest;

impl Lowerer<'_> {
    pub(super) fn string(&mut self, guest: &Guest, live: Live) {
        let ip = guest.ip();
        let mut instruction = guest.instruction;
        // DS, ES, SS and CS overrides mean nothing in 64-bit mode.
        instruction.set_segment_prefix(Register::None);
        let uses = |kind| (0..instruction.op_count()).any(|i| instruction.op_kind(i) == kind);
        let around = !live.before.is_empty();
        let (flags, protect) =
            if around { (Saved::InSlot, Protect::InSlot) } else { (Saved::No, Protect::Dead) };
        if around {
            self.emit.flags_to_slot();
            self.lose(Register::RAX);
        }
        for (kind, register) in
            [(OpKind::MemorySegRSI, Register::RSI), (OpKind::MemoryESRDI, Register::RDI)]
        {
            if uses(kind) && !self.confined.contains(register) {
                self.confine(register, true, ip, protect);
            }
        }
        let undo = Undo { set_bit: None, flags };
        if instruction.has_rep_prefix() {
            let guard = self.exits.undo(&mut self.emit, ip, ExitKind::Guard, undo);
            self.emit.push(
                Instruction::with2(Code::Cmp_rm64_imm32, Register::RCX, REP_LIMIT)
                    .expect("cmp rcx,imm32"),
            );
            self.emit.branch(Code::Ja_rel32_64, guard);
        }
        let landing = self.fault(ip, flags);
        self.emit.faulting(instruction, landing);
        if around {
            self.emit.flags_from_slot();
            self.lose(Register::RAX);
        }
    }
}

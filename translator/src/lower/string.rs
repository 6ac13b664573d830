//! String instructions: `rsi` and `rdi` are confined in place, and a repeat
//! count over the limit leaves, because nothing polls inside the repetition.

use iced_x86::{Code, Instruction, OpKind, Register};

use super::{Live, Lowerer, Protect};
use crate::exits::{Saved, Undo};
use crate::flags::effects;
use crate::fragment::ExitKind;
use crate::frame::REP_LIMIT;
use crate::steps::Guest;

impl Lowerer<'_, '_> {
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
        }
        for (kind, register) in
            [(OpKind::MemorySegRSI, Register::RSI), (OpKind::MemoryESRDI, Register::RDI)]
        {
            if uses(kind) && !self.ranges.is_confined(register) {
                self.confine(register, true, ip, protect);
            }
        }
        let undo = Undo { set_bit: None, flags };
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let compares = !effects(&instruction).touches.is_empty();
        // With a count of 0 a comparison keeps the flags, which are the
        // bound's by then: only if they matter, step over it.
        let skip = (around && repeated && compares).then(|| self.emit.label());
        if let Some(skip) = skip {
            self.emit.push(
                Instruction::with2(Code::Test_rm64_r64, Register::RCX, Register::RCX)
                    .expect("test rcx,rcx"),
            );
            self.emit.branch(Code::Je_rel32_64, skip);
        }
        if repeated {
            let guard = self.exits.undo(&mut self.emit, ip, ExitKind::Guard, undo);
            self.emit.push(
                Instruction::with2(Code::Cmp_rm64_imm32, Register::RCX, REP_LIMIT)
                    .expect("cmp rcx,imm32"),
            );
            self.emit.branch(Code::Ja_rel32_64, guard);
        }
        let landing = self.fault(ip, flags);
        self.emit.faulting(instruction, landing);
        if let Some(skip) = skip {
            let done = self.emit.label();
            self.emit.jmp(done);
            self.emit.bind(skip);
            self.emit.flags_from_slot();
            self.emit.bind(done);
        } else if around {
            self.emit.flags_from_slot();
        }
    }
}

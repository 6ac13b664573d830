//! Instructions that are copied, with scratch registers standing in for the
//! displaced ones.

use iced_x86::{Code, Instruction, InstructionInfoOptions, OpAccess, OpKind, Register};

use super::{Live, Lowerer, Protect};
use crate::emit::frame as frame_field;
use crate::exits::Saved;
use crate::forms;
use crate::fragment::Unsupported;
use crate::regs;
use crate::steps::Guest;

/// An instruction over hardware registers.
pub(super) struct Rewritten {
    pub instruction: Instruction,
    /// Stand-ins to be filled from slots before it.
    pub loads: Vec<(Register, i32)>,
    /// Stand-ins to be written back to slots behind it.
    pub stores: Vec<(Register, i32)>,
}

/// A displaced register among the operands.
struct Use {
    user: Register,
    read: bool,
    written: bool,
    stand_in: Register,
}

impl Lowerer<'_> {
    pub(super) fn plain(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        let mut instruction = guest.instruction;
        if self.move_with_slot(&instruction) {
            return Ok(());
        }
        let scratch = [self.displaced.u, self.displaced.t];
        let mut free = &scratch[..];
        let memory = forms::memory_operand(&instruction).is_some();
        if memory {
            let place = self.place(&instruction, Protect::of(live.before), false)?;
            place.apply(&mut instruction);
            if place.base == self.displaced.t {
                free = &scratch[..1];
            }
        } else {
            instruction.set_segment_prefix(Register::None);
        }
        let rewritten = self.rewrite(instruction, free)?;
        for (register, slot) in rewritten.loads {
            self.emit.load(register, frame_field(slot));
        }
        if memory || guest.raises {
            let landing = self.fault(guest.ip(), Saved::No);
            self.emit.faulting(rewritten.instruction, landing);
        } else {
            self.emit.push(rewritten.instruction);
        }
        for (register, slot) in rewritten.stores {
            self.emit.store(frame_field(slot), register);
        }
        Ok(())
    }

    /// A 64-bit move between a displaced register and one in place needs
    /// only the slot.
    fn move_with_slot(&mut self, instruction: &Instruction) -> bool {
        let moves = matches!(instruction.code(), Code::Mov_r64_rm64 | Code::Mov_rm64_r64)
            && instruction.op0_kind() == OpKind::Register
            && instruction.op1_kind() == OpKind::Register;
        if !moves {
            return false;
        }
        let (to, from) = (instruction.op0_register(), instruction.op1_register());
        let hardware = |register| {
            if register == Register::RSP { self.displaced.s } else { register }
        };
        match (self.displaced.slot(to), self.displaced.slot(from)) {
            (Some(slot), None) => self.emit.store(frame_field(slot), hardware(from)),
            (None, Some(slot)) => self.emit.load(to, frame_field(slot)),
            _ => return false,
        }
        true
    }

    /// Replaces `rsp` by S and displaced register operands by stand-ins out
    /// of `free`. The memory operand must be a [`super::memory::Place`].
    pub(super) fn rewrite(
        &mut self,
        mut instruction: Instruction,
        free: &[Register],
    ) -> Result<Rewritten, Unsupported> {
        let mut uses: Vec<Use> = Vec::new();
        let displaced = self.displaced;
        let is_displaced = |i| {
            instruction.op_kind(i) == OpKind::Register
                && instruction.op_register(i).is_gpr()
                && displaced.slot(instruction.op_register(i)).is_some()
        };
        // Most instructions have none.
        let mut operands = (0..instruction.op_count()).filter(|&i| is_displaced(i)).peekable();
        let info = operands.peek().is_some().then(|| {
            use InstructionInfoOptions as Leave;
            self.info.info_options(&instruction, Leave::NO_MEMORY_USAGE | Leave::NO_REGISTER_USAGE)
        });
        for (i, info) in operands.zip(info.into_iter().cycle()) {
            let register = instruction.op_register(i);
            let access = info.op_access(i);
            let written = !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None);
            // Narrow writes keep the rest of the register.
            let read = access != OpAccess::Write || register.size() < 4;
            let user = register.full_register();
            match uses.iter_mut().find(|known| known.user == user) {
                Some(known) => {
                    known.read |= read;
                    known.written |= written;
                }
                None => uses.push(Use { user, read, written, stand_in: Register::None }),
            }
        }
        assign(&mut uses, free)?;

        let mut high_byte = false;
        let mut rex = false;
        for i in 0..instruction.op_count() {
            match instruction.op_kind(i) {
                OpKind::Register => {
                    let mut register = instruction.op_register(i);
                    if !register.is_gpr() {
                        continue;
                    }
                    if regs::is_high_byte(register) {
                        high_byte = true;
                        continue;
                    }
                    let full = register.full_register();
                    if full == Register::RSP {
                        register = regs::same_part(self.displaced.s, register);
                    } else if let Some(known) = uses.iter().find(|known| known.user == full) {
                        register = regs::same_part(known.stand_in, register);
                    }
                    instruction.set_op_register(i, register);
                    rex |= regs::needs_rex(register);
                }
                OpKind::Memory => {
                    let base = instruction.memory_base();
                    rex |= base != Register::None && regs::index(base) >= 8;
                }
                _ => {}
            }
        }
        if high_byte && rex {
            return Err(Unsupported::Form);
        }
        let slots = |wanted: fn(&Use) -> bool| {
            uses.iter()
                .filter(|known| wanted(known))
                .filter_map(|known| Some((known.stand_in, self.displaced.slot(known.user)?)))
                .collect()
        };
        Ok(Rewritten {
            instruction,
            loads: slots(|known| known.read),
            stores: slots(|known| known.written),
        })
    }
}

/// Gives every use a stand-in of its own; a register that is only written may
/// share with one that is only read, because all operands are read first.
fn assign(uses: &mut [Use], free: &[Register]) -> Result<(), Unsupported> {
    let mut free = free.iter().copied();
    for known in uses.iter_mut().filter(|known| known.read) {
        known.stand_in = free.next().ok_or(Unsupported::Form)?;
    }
    let mut shared: Vec<Register> = uses
        .iter()
        .filter(|known| known.read && !known.written)
        .map(|known| known.stand_in)
        .collect();
    for known in uses.iter_mut().filter(|known| !known.read) {
        known.stand_in = free.next().or_else(|| shared.pop()).ok_or(Unsupported::Form)?;
    }
    Ok(())
}

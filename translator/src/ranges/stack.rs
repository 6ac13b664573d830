//! How the user's `rsp` moves away from S within a block.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{NEAR, RSP, Ranges};
use crate::flags::Flags;
use crate::forms::{self, Class};
use crate::graph::End;
use crate::operand::Address;
use crate::steps::Guest;

/// `rsp` is never further from S: no access on the way may widen its range.
const FAR: i64 = NEAR - 64;
/// So far apart they may come by other moves than those of `push` and `pop`:
/// further, the operands over `rsp` would grow.
const NEARBY: i64 = 128;

impl Ranges {
    /// By how much the user's `rsp` is above S.
    pub(crate) fn ahead(&self) -> i64 {
        self.ahead
    }

    /// The operand's address, over S if it is one over `rsp`.
    pub(crate) fn address(&self, instruction: &Instruction) -> Address {
        let mut address = Address::of(instruction);
        if address.base.full_register() == Register::RSP {
            address.displacement = address.displacement.saturating_add(self.ahead);
        }
        address
    }

    /// Whether S has to follow `rsp` before `guest`, which stands inside a
    /// block, with these flags live behind it.
    pub(crate) fn must_settle(&self, guest: &Guest, after: Flags) -> bool {
        let instruction = &guest.instruction;
        let names_rsp = || {
            (0..instruction.op_count()).any(|i| {
                instruction.op_kind(i) == OpKind::Register
                    && instruction.op_register(i).full_register() == Register::RSP
            })
        };
        self.ahead != 0
            && match guest.class {
                Class::Hint | Class::Lea => false,
                Class::Plain => names_rsp(),
                Class::Push | Class::Pop => {
                    !is_put_off(guest) || names_rsp() || self.ahead.abs() > FAR - 8
                }
                Class::WritesRsp => !self.puts_off(guest, after),
                _ => true,
            }
    }

    /// Whether S has to follow `rsp` before the `guest` that ends a block
    /// like this.
    pub(crate) fn must_settle_before_end(&self, end: &End, guest: Option<&Guest>) -> bool {
        let register = |guest: &Guest| guest.instruction.op0_kind() == OpKind::Register;
        self.ahead != 0
            && match end {
                End::Call { .. } | End::Return(_) => false,
                End::IndirectCall { .. } => guest.is_none_or(register),
                _ => true,
            }
    }

    /// Whether the instruction, which writes `rsp`, only moves it, by so
    /// little that S need not follow at once, and none of its flags is live
    /// behind it.
    pub(crate) fn puts_off(&self, guest: &Guest, after: Flags) -> bool {
        let ahead = |by: i64| self.ahead.saturating_add(by);
        (after.is_empty() || guest.effects.touches.is_empty())
            && stack_move(guest).is_some_and(|by| {
                ahead(by).abs() <= NEARBY && self.of[RSP].moved(ahead(by)).is_confined()
            })
    }

    /// S has followed `rsp`.
    pub(crate) fn settle(&mut self) {
        self.of[RSP] = self.of[RSP].moved(self.ahead);
        self.ahead = 0;
        debug_assert!(self.of[RSP].is_confined());
    }

    /// Whether S stays confined when it moves by `by`.
    pub(crate) fn rsp_may_move(&self, by: i64) -> bool {
        self.of[RSP].moved(by).is_confined()
    }

    /// An access on the stack, then a move of `rsp`.
    pub(super) fn stacked(&mut self, at: i64, by: i64) {
        self.accessed(Register::RSP, self.ahead + at);
        self.ahead += by;
    }
}

/// By how much an instruction that writes `rsp` moves it, if by a constant.
pub(crate) fn stack_move(guest: &Guest) -> Option<i64> {
    let instruction = &guest.instruction;
    let constant = || instruction.try_immediate(1).ok().map(|value| value as i64);
    match instruction.mnemonic() {
        Mnemonic::Add => constant(),
        Mnemonic::Sub => constant()?.checked_neg(),
        Mnemonic::Lea => {
            let address = Address::of(instruction);
            (address.base == Register::RSP && address.index == Register::None)
                .then_some(address.displacement)
        }
        _ => None,
    }
}

/// Whether S need not follow this `push` or `pop` at once.
pub(crate) fn is_put_off(guest: &Guest) -> bool {
    let instruction = &guest.instruction;
    instruction.stack_pointer_increment().abs() == 8 && forms::memory_operand(instruction).is_none()
}

/// Bytes that a return drops besides its address.
pub(crate) fn popped(guest: &Guest) -> u16 {
    match guest.instruction.op_count() {
        0 => 0,
        _ => guest.instruction.immediate16(),
    }
}

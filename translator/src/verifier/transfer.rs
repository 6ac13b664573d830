//! The range of an instruction's result.
//!
//! What is not listed here yields [`Value::ANY`].

use super::sequences::immediate;
use super::state::State;
use super::value::Value;
use super::{Policy, number};
use crate::frame;
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

/// What the general register `op0` holds behind `instruction`, which
/// overwrites it.
pub(super) fn result(instruction: &Instruction, state: &State, policy: &Policy) -> Value {
    let wide = instruction.op0_register().is_gpr64();
    let value = computed(instruction, wide, state, policy);
    // Below, 32-bit operations are computed with 64 bits: sums, products,
    // left shifts and masks agree in their lower halves.
    if wide { value } else { value.truncated() }
}

fn computed(instruction: &Instruction, wide: bool, state: &State, policy: &Policy) -> Value {
    let of = |register: Register| state.get(number(register));
    let own = || of(instruction.op0_register());
    // Of the operand's own width: 8-bit registers are not numbers to compute
    // with, and `mov r32,imm32` is unsigned.
    let register1 = || match instruction.op1_kind() {
        OpKind::Register if instruction.op1_register().size() >= 4 => {
            of(instruction.op1_register())
        }
        _ => Value::ANY,
    };
    let immediate = |operand| {
        let value = immediate(instruction, operand)?;
        Some(if wide { value } else { i64::from(value as i32) })
    };
    let count = || immediate(1).map(|n| n as u32 & if wide { 63 } else { 31 });
    match instruction.mnemonic() {
        M::Mov => match instruction.op1_kind() {
            OpKind::Register => register1(),
            OpKind::Memory => {
                // The runner checked it. Anything else in memory may be, at
                // least transiently, what it was before.
                let checked = state.rsp_checked
                    && instruction.memory_base() == Register::RSP
                    && instruction.memory_displacement64() == u64::from(frame::USER_RSP as u32);
                if wide && checked { Value::CONFINED } else { Value::ANY }
            }
            _ => match instruction.try_immediate(1) {
                Ok(value) if !wide => Value::constant(u64::from(value as u32)),
                // No address a user has; not worth a rule of its own.
                Ok(value) if value < policy.user_half_end => Value::constant(value),
                _ => Value::ANY,
            },
        },
        M::Movzx => {
            let register = instruction.op1_kind() == OpKind::Register;
            let memory = || instruction.memory_size().size();
            let bytes = if register { instruction.op1_register().size() } else { memory() };
            Value::bits(8 * bytes as u32)
        }
        M::Lea => {
            let part = |r: Register| if r == Register::None { Value::constant(0) } else { of(r) };
            let (base, index) = (instruction.memory_base(), instruction.memory_index());
            let value = if index == Register::None {
                part(base)
            } else {
                part(base).plus(of(index).shifted_left(instruction.memory_index_scale().ilog2()))
            };
            value.moved(instruction.memory_displacement64() as i64)
        }
        M::Add => match immediate(1) {
            Some(constant) => own().moved(constant),
            None => own().plus(register1()),
        },
        M::Sub => immediate(1).map_or(Value::ANY, |constant| own().moved(constant.wrapping_neg())),
        M::Inc => own().moved(1),
        M::Dec => own().moved(-1),
        M::And => match immediate(1) {
            Some(constant) => own().masked_by(constant),
            None => own().masked(register1()),
        },
        M::Xor if same(instruction) => Value::constant(0),
        // The bits that a 32-bit shift brings down are those of the half.
        M::Shr => match count() {
            Some(n) => (if wide { own() } else { own().truncated() }).shifted_right(n),
            None => Value::ANY,
        },
        M::Shl => count().map_or(Value::ANY, |n| own().shifted_left(n)),
        M::Imul => match (immediate(2), instruction.op1_kind()) {
            (Some(constant), OpKind::Register) => register1().times(constant),
            _ => Value::ANY,
        },
        M::Btr if wide && immediate(1) == Some(63) => {
            if own().is_natural() {
                own()
            } else {
                Value::CONFINED
            }
        }
        mnemonic if is_cmov(mnemonic) => own().join(register1()),
        _ => Value::ANY,
    }
}

/// `xor r,r`: zero, whatever it was.
pub(super) fn same(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
        && instruction.op0_register() == instruction.op1_register()
}

/// A conditional move: by data, not by a branch, so it is not speculated.
#[rustfmt::skip]
pub(super) fn is_cmov(mnemonic: M) -> bool {
    use M::*;
    matches!(
        mnemonic,
        Cmova | Cmovae | Cmovb | Cmovbe | Cmove | Cmovg | Cmovge | Cmovl | Cmovle | Cmovne
            | Cmovno | Cmovnp | Cmovns | Cmovo | Cmovp | Cmovs
    )
}

/// Whether an instruction with a 32-bit `op0` and that many operands always
/// clears the upper half. Not so `bsf`, `bsr` (with a zero source) and
/// `cmpxchg`, for instance.
pub(super) fn zero_extends(mnemonic: M, operands: u32) -> bool {
    use M::*;
    is_cmov(mnemonic)
        // With one operand it writes eax and edx.
        || (mnemonic == Imul && operands > 1)
        || matches!(
            mnemonic,
            Mov | Movzx | Movsx | Movsxd | Movbe | Lea | Add | Adc | Sub | Sbb | And | Andn | Or
                | Xor | Not | Neg | Inc | Dec | Shl | Sal | Shr | Sar | Rol | Ror | Rorx | Shlx
                | Shrx | Sarx | Bswap | Bextr | Blsi | Blsmsk | Blsr | Bzhi | Pdep | Pext | Popcnt
                | Lzcnt | Tzcnt | Crc32 | Movd | Vmovd | Movmskps | Movmskpd | Pmovmskb
                | Vmovmskps | Vmovmskpd | Vpmovmskb | Kmovb | Kmovw | Kmovd
        )
}

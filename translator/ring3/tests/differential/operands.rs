//! From an iced `Code` to an instruction with operands.

use crate::rng::Rng;
use iced_x86::{
    Code, EncodingKind, Instruction, MemoryOperand, OpCodeInfo, OpCodeOperandKind as K, OpKind,
    Register, RoundingControl,
};

/// Where the operands of an instruction come from.
pub trait Operands {
    /// A general register, by its number.
    fn gpr(&mut self, rng: &mut Rng) -> usize;
    /// An address for an access of `size` bytes.
    fn memory(&mut self, rng: &mut Rng, size: usize) -> MemoryOperand;
}

/// The variants of one code that are forms of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub code: Code,
    pub memory: bool,
    pub lock: bool,
}

fn is_register_or_memory(kind: K) -> bool {
    matches!(
        kind,
        K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::zmm_or_mem
            | K::k_or_mem
    )
}

/// The shapes that `code` can have.
pub fn shapes(code: Code) -> Vec<Shape> {
    let info = code.op_code();
    let kinds: Vec<K> = info.op_kinds().to_vec();
    let only = kinds.contains(&K::mem);
    let either = kinds.iter().any(|&k| is_register_or_memory(k));
    let mut out = Vec::new();
    if !only {
        out.push(Shape { code, memory: false, lock: false });
    }
    if only || either {
        out.push(Shape { code, memory: true, lock: false });
        if info.can_use_lock_prefix() {
            out.push(Shape { code, memory: true, lock: true });
        }
    }
    out
}

fn byte_register(rng: &mut Rng, number: usize) -> Register {
    const LEGACY_HIGH: [Register; 4] = [Register::AH, Register::CH, Register::DH, Register::BH];
    const WITH_REX: [Register; 4] = [Register::SPL, Register::BPL, Register::SIL, Register::DIL];
    match number {
        0..4 if rng.chance(15) => LEGACY_HIGH[number],
        0..4 => Register::AL + number as u32,
        4..8 => WITH_REX[number - 4],
        _ => Register::R8L + (number as u32 - 8),
    }
}

fn vector(rng: &mut Rng, info: &OpCodeInfo, first: Register, multiple: usize) -> Register {
    let wide = info.encoding() == EncodingKind::EVEX;
    let number = rng.below(if wide { 32 } else { 16 }) & !(multiple - 1);
    first + number as u32
}

/// The register of an operand of this kind; none if the kind is no register.
fn register(
    rng: &mut Rng,
    info: &OpCodeInfo,
    kind: K,
    from: &mut impl Operands,
) -> Option<Register> {
    let number = |rng: &mut Rng, from: &mut dyn FnMut(&mut Rng) -> usize| from(rng) as u32;
    let mut gpr = |rng: &mut Rng| from.gpr(rng);
    Some(match kind {
        K::r8_or_mem | K::r8_reg | K::r8_opcode => {
            let number = gpr(rng);
            byte_register(rng, number)
        }
        K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => {
            Register::AX + number(rng, &mut gpr)
        }
        K::r32_or_mem | K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
            Register::EAX + number(rng, &mut gpr)
        }
        K::r64_or_mem | K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
            Register::RAX + number(rng, &mut gpr)
        }
        K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 => {
            vector(rng, info, Register::XMM0, 1)
        }
        K::xmmp3_vvvv => vector(rng, info, Register::XMM0, 4),
        K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => {
            vector(rng, info, Register::YMM0, 1)
        }
        K::zmm_or_mem | K::zmm_reg | K::zmm_rm | K::zmm_vvvv => {
            vector(rng, info, Register::ZMM0, 1)
        }
        K::zmmp3_vvvv => vector(rng, info, Register::ZMM0, 4),
        K::k_or_mem | K::k_reg | K::k_rm | K::k_vvvv => Register::K0 + rng.below(8) as u32,
        K::kp1_reg => Register::K0 + (rng.below(4) * 2) as u32,
        K::al => Register::AL,
        K::cl => Register::CL,
        K::ax => Register::AX,
        K::dx => Register::DX,
        K::eax => Register::EAX,
        K::rax => Register::RAX,
        _ => return None,
    })
}

/// Sets an immediate operand; false if the kind is none.
fn immediate(rng: &mut Rng, instruction: &mut Instruction, operand: u32, kind: K) -> bool {
    let value = rng.value();
    match kind {
        K::imm8 | K::imm8_const_1 | K::imm4_m2z => {
            let second = (0..operand).any(|i| instruction.op_kind(i) == OpKind::Immediate8);
            // Shift counts and lane numbers: small ones mostly.
            let value = if rng.chance(50) { value as u8 & 7 } else { value as u8 };
            if second {
                instruction.set_op_kind(operand, OpKind::Immediate8_2nd);
                instruction.set_immediate8_2nd(value);
            } else {
                instruction.set_op_kind(operand, OpKind::Immediate8);
                let one = kind == K::imm8_const_1;
                instruction.set_immediate8(if one { 1 } else { value });
            }
        }
        K::imm8sex16 => {
            instruction.set_op_kind(operand, OpKind::Immediate8to16);
            instruction.set_immediate8to16(i16::from(value as i8));
        }
        K::imm8sex32 => {
            instruction.set_op_kind(operand, OpKind::Immediate8to32);
            instruction.set_immediate8to32(i32::from(value as i8));
        }
        K::imm8sex64 => {
            instruction.set_op_kind(operand, OpKind::Immediate8to64);
            instruction.set_immediate8to64(i64::from(value as i8));
        }
        K::imm16 => {
            instruction.set_op_kind(operand, OpKind::Immediate16);
            instruction.set_immediate16(value as u16);
        }
        K::imm32 => {
            instruction.set_op_kind(operand, OpKind::Immediate32);
            instruction.set_immediate32(value as u32);
        }
        K::imm32sex64 => {
            instruction.set_op_kind(operand, OpKind::Immediate32to64);
            instruction.set_immediate32to64(i64::from(value as i32));
        }
        K::imm64 => {
            instruction.set_op_kind(operand, OpKind::Immediate64);
            instruction.set_immediate64(value);
        }
        _ => return false,
    }
    true
}

pub fn set_memory(instruction: &mut Instruction, address: &MemoryOperand) {
    instruction.set_memory_base(address.base);
    instruction.set_memory_index(address.index);
    instruction.set_memory_index_scale(address.scale);
    instruction.set_memory_displacement64(address.displacement as u64);
    instruction.set_memory_displ_size(address.displ_size);
    if address.segment_prefix != Register::None {
        instruction.set_segment_prefix(address.segment_prefix);
    }
}

/// An instruction of this shape; none if it cannot be made. It may not be
/// encodable with the registers that were drawn.
pub fn instantiate(rng: &mut Rng, shape: Shape, from: &mut impl Operands) -> Option<Instruction> {
    let info = shape.code.op_code();
    let mut instruction = Instruction::new();
    instruction.set_code(shape.code);
    let mut in_registers = true;
    for (operand, &kind) in info.op_kinds().iter().enumerate() {
        let operand = operand as u32;
        let memory = kind == K::mem || (shape.memory && is_register_or_memory(kind));
        if memory {
            in_registers = false;
            instruction.set_op_kind(operand, OpKind::Memory);
        } else if let Some(register) = register(rng, info, kind, from) {
            instruction.set_op_kind(operand, OpKind::Register);
            instruction.set_op_register(operand, register);
        } else if !immediate(rng, &mut instruction, operand, kind) {
            return None;
        }
    }
    if in_registers == shape.memory {
        return None;
    }
    if shape.memory {
        if info.can_broadcast() && rng.chance(30) {
            instruction.set_is_broadcast(true);
        }
        let size = instruction.memory_size().size();
        let address = from.memory(rng, size);
        set_memory(&mut instruction, &address);
    }
    if info.require_op_mask_register() || (info.can_use_op_mask_register() && rng.chance(40)) {
        instruction.set_op_mask(Register::K1 + rng.below(7) as u32);
        // Comparisons into masks, and stores, cannot zero.
        if info.can_use_zeroing_masking() && rng.chance(40) {
            instruction.set_zeroing_masking(true);
        }
    }
    if in_registers && info.can_use_rounding_control() && rng.chance(20) {
        instruction.set_rounding_control(rng.pick(&[
            RoundingControl::RoundToNearest,
            RoundingControl::RoundDown,
            RoundingControl::RoundUp,
            RoundingControl::RoundTowardZero,
        ]));
    } else if in_registers && info.can_suppress_all_exceptions() && rng.chance(20) {
        instruction.set_suppress_all_exceptions(true);
    }
    instruction.set_has_lock_prefix(shape.lock);
    Some(instruction)
}

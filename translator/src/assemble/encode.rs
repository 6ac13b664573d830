//! Encodes the usual instructions fast, and all others with iced.
//!
//! iced's encoder walks through a description of each instruction's operands
//! and checks everything. Here the description of a `Code` is boiled down once
//! to a [`Shape`], which covers legacy encodings with a general or vector
//! register, a 64-bit memory operand and an immediate. The bytes are those
//! that iced makes: compared for the first instruction of each shape always,
//! for every instruction in debug builds.

use std::sync::{LazyLock, OnceLock};

use iced_x86::{
    Code, Encoder, EncodingKind, Instruction, MandatoryPrefix, OpCodeOperandKind, OpCodeTableKind,
    OpKind, Register,
};

use crate::regs;

/// Longest encoding of a shape, with some room: prefix and segment, REX, three
/// bytes of opcode, ModRM, SIB, displacement, and a 64-bit immediate.
const ROOM: usize = 24;

/// No operand has this role.
const NONE: u8 = u8::MAX;

/// How the instructions of one `Code` are encoded.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// 66, F2 or F3; 0 for none.
    prefix: u8,
    /// REX.W.
    wide: bool,
    /// The opcode's bytes before the last, the second first; 0 for none.
    escape: [u8; 2],
    opcode: u8,
    /// The digit in ModRM.reg; 0 where an operand is.
    digit: u8,
    /// Operands in ModRM.reg, in ModRM.rm, and in the opcode.
    reg: u8,
    rm: u8,
    opcode_reg: u8,
    /// One of these operands is a byte.
    bytes: bool,
    /// Size of the immediate in bytes.
    immediate: u8,
}

/// By `Code`; none for those that are left to iced. For all threads: the
/// entries are facts.
static SHAPES: LazyLock<Box<[OnceLock<Option<Shape>>]>> =
    LazyLock::new(|| Code::values().map(|_| OnceLock::new()).collect());

/// Appends instructions to its code.
pub(super) struct Encoding {
    pub code: Vec<u8>,
    encoder: Encoder,
    shapes: &'static [OnceLock<Option<Shape>>],
}

impl Encoding {
    pub(super) fn new(capacity: usize) -> Self {
        let code = Vec::with_capacity(capacity);
        Self { code, encoder: Encoder::new(64), shapes: &SHAPES }
    }

    /// Appends `instruction`. Err if there is no such instruction.
    pub(super) fn push(&mut self, instruction: &Instruction) -> Result<(), String> {
        let cell = &self.shapes[instruction.code() as usize];
        let fast = match cell.get() {
            Some(shape) => shape.as_ref().and_then(|shape| shape.encode(instruction)),
            None => return self.first(instruction, cell),
        };
        let Some((bytes, length)) = fast else { return self.push_any(instruction) };
        let end = self.code.len() + length;
        // All of it, which takes no call, and then what is none of it away.
        self.code.extend_from_slice(&bytes);
        self.code.truncate(end);
        // A sample: encoding everything twice would make debug builds slow.
        debug_assert!(
            !self.code.len().is_multiple_of(16)
                || slowly(instruction).as_deref() == Ok(&bytes[..length]),
            "{instruction} is encoded wrongly"
        );
        Ok(())
    }

    /// Appends the first instruction of its `Code` and notes whether its shape
    /// is right.
    fn first(
        &mut self,
        instruction: &Instruction,
        cell: &OnceLock<Option<Shape>>,
    ) -> Result<(), String> {
        let start = self.code.len();
        self.push_any(instruction)?;
        let shape = Shape::of(instruction.code());
        let right = |shape: &Shape| match shape.encode(instruction) {
            Some((bytes, length)) => bytes[..length] == self.code[start..],
            None => true,
        };
        // If another thread was faster, it found the same.
        let _ = cell.set(shape.filter(right));
        Ok(())
    }

    /// Appends any instruction.
    fn push_any(&mut self, instruction: &Instruction) -> Result<(), String> {
        self.encoder.set_buffer(std::mem::take(&mut self.code));
        let result = self.encoder.encode(instruction, 0);
        self.code = self.encoder.take_buffer();
        result.map(|_| ()).map_err(|error| format!("encoding failed: {error}"))
    }
}

/// What iced makes of `instruction`.
fn slowly(instruction: &Instruction) -> Result<Vec<u8>, String> {
    let mut encoder = Encoder::new(64);
    encoder.encode(instruction, 0).map_err(|error| error.to_string())?;
    Ok(encoder.take_buffer())
}

impl Shape {
    /// The shape of the instructions with this code, if they have one.
    fn of(code: Code) -> Option<Self> {
        use OpCodeOperandKind as K;
        let info = code.op_code();
        let legacy = info.is_instruction() && info.encoding() == EncodingKind::Legacy;
        if !legacy || !info.mode64() || info.fwait() {
            return None;
        }
        let size = info.operand_size();
        let prefix = match info.mandatory_prefix() {
            MandatoryPrefix::None | MandatoryPrefix::PNP if size == 16 => 0x66,
            MandatoryPrefix::None | MandatoryPrefix::PNP => 0,
            MandatoryPrefix::P66 => 0x66,
            MandatoryPrefix::PF3 => 0xf3,
            MandatoryPrefix::PF2 => 0xf2,
        };
        let mut escape = match info.table() {
            OpCodeTableKind::Normal => [0, 0],
            OpCodeTableKind::T0F => [0, 0x0f],
            OpCodeTableKind::T0F38 => [0x0f, 0x38],
            OpCodeTableKind::T0F3A => [0x0f, 0x3a],
            _ => return None,
        };
        let opcode = info.op_code();
        if info.op_code_len() != 1 {
            // Two bytes behind the table's, as in `lfence`.
            if escape[0] != 0 || info.op_code_len() != 2 {
                return None;
            }
            escape = [escape[1], (opcode >> 8) as u8];
        }
        let mut shape = Self {
            prefix,
            wide: size == 64 && !info.default_op_size64(),
            escape,
            opcode: opcode as u8,
            digit: u8::try_from(info.group_index().max(0)).ok()?,
            reg: NONE,
            rm: NONE,
            opcode_reg: NONE,
            bytes: false,
            immediate: 0,
        };
        let mut immediates = Vec::new();
        for (operand, kind) in (0..).zip(info.op_kinds()) {
            let role = match kind {
                K::r8_reg | K::r16_reg | K::r32_reg | K::r64_reg | K::xmm_reg => &mut shape.reg,
                K::r8_or_mem
                | K::r16_or_mem
                | K::r32_or_mem
                | K::r64_or_mem
                | K::xmm_or_mem
                | K::r16_rm
                | K::r32_rm
                | K::r64_rm
                | K::xmm_rm
                | K::mem => &mut shape.rm,
                K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode => {
                    &mut shape.opcode_reg
                }
                K::imm8 | K::imm8sex16 | K::imm8sex32 | K::imm8sex64 => {
                    immediates.push(1);
                    continue;
                }
                K::imm16 => {
                    immediates.push(2);
                    continue;
                }
                K::imm32 | K::imm32sex64 => {
                    immediates.push(4);
                    continue;
                }
                K::imm64 => {
                    immediates.push(8);
                    continue;
                }
                K::al | K::ax | K::eax | K::rax | K::cl | K::imm8_const_1 => continue,
                _ => return None,
            };
            *role = operand;
            shape.bytes |= matches!(kind, K::r8_reg | K::r8_or_mem | K::r8_opcode);
        }
        // A digit without an operand would take a ModRM of its own.
        let whole = shape.rm != NONE || (shape.reg == NONE && info.group_index() < 0);
        match immediates[..] {
            [] => {}
            [size] => shape.immediate = size,
            _ => return None,
        }
        whole.then_some(shape)
    }

    /// The bytes of `instruction` and how many they are; none if it is left
    /// to iced.
    #[inline]
    fn encode(&self, instruction: &Instruction) -> Option<([u8; ROOM], usize)> {
        let mut out = Out { bytes: [0; ROOM], length: 0 };
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        if repeated || instruction.has_lock_prefix() {
            return None;
        }
        match instruction.segment_prefix() {
            Register::None => {}
            Register::FS => out.byte(0x64),
            _ => return None,
        }
        let mut rex = if self.wide { 0x48 } else { 0 };
        let mut register = |operand: u8, bit: u8| {
            let (number, needs_rex) = number_of(instruction, operand, self.bytes)?;
            rex |= if number >= 8 { 0x40 | bit } else { 0 } | needs_rex;
            Some(number & 7)
        };
        let mut reg = self.digit;
        if self.reg != NONE {
            reg = register(self.reg, 4)?;
        }
        let mut opcode = self.opcode;
        if self.opcode_reg != NONE {
            opcode |= register(self.opcode_reg, 1)?;
        }
        let mut operand = Operand::default();
        if self.rm != NONE {
            operand = match instruction.op_kind(u32::from(self.rm)) {
                OpKind::Register => {
                    Operand { rm: 0xc0 | register(self.rm, 1)?, ..Operand::default() }
                }
                OpKind::Memory => {
                    let (operand, extension) = Operand::memory(instruction)?;
                    rex |= extension;
                    operand
                }
                _ => return None,
            };
        }
        out.some(self.prefix);
        out.some(rex);
        out.some(self.escape[0]);
        out.some(self.escape[1]);
        out.byte(opcode);
        if self.rm != NONE {
            out.byte(operand.rm | reg << 3);
            if operand.has_sib {
                out.byte(operand.sib);
            }
            match operand.size {
                0 => {}
                1 => out.byte(operand.displacement as u8),
                _ => out.put(operand.displacement.to_le_bytes()),
            }
        }
        match self.immediate {
            0 => {}
            1 => out.byte(instruction.immediate8()),
            2 => out.put(instruction.immediate16().to_le_bytes()),
            4 => out.put(instruction.immediate32().to_le_bytes()),
            _ => out.put(instruction.immediate64().to_le_bytes()),
        }
        Some((out.bytes, out.length))
    }
}

/// Number of the register that is an operand, and the REX prefix that its
/// name takes anyway. None if it is a high byte.
#[inline]
fn number_of(instruction: &Instruction, operand: u8, bytes: bool) -> Option<(u8, u8)> {
    let register = instruction.op_register(u32::from(operand));
    if !bytes || !register.is_gpr8() {
        return Some((register.number() as u8, 0));
    }
    if regs::is_high_byte(register) {
        return None;
    }
    let number = regs::index(register) as u8;
    let needs_rex =
        matches!(register, Register::SPL | Register::BPL | Register::SIL | Register::DIL);
    Some((number, if needs_rex { 0x40 } else { 0 }))
}

/// What follows the opcode.
#[derive(Default)]
struct Operand {
    /// ModRM without its register.
    rm: u8,
    has_sib: bool,
    sib: u8,
    /// Of the displacement, in bytes.
    size: u8,
    displacement: i32,
}

impl Operand {
    /// The memory operand and its part of the REX prefix; none if it is left
    /// to iced.
    #[inline]
    fn memory(instruction: &Instruction) -> Option<(Self, u8)> {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let displacement = i32::try_from(instruction.memory_displacement64() as i64).ok()?;
        let scale = instruction.memory_index_scale();
        let number = |register: Register| {
            let number = (register as u32).wrapping_sub(Register::RAX as u32);
            (number < 16).then_some(number as u8)
        };
        if base == Register::None {
            if index != Register::None || scale != 1 {
                return None;
            }
            let operand = Self { rm: 4, has_sib: true, sib: 0x25, size: 4, displacement };
            return Some((operand, 0));
        }
        let base = number(base)?;
        let mut operand = Self { rm: base & 7, displacement, ..Self::default() };
        let mut rex = if base >= 8 { 0x41 } else { 0 };
        if index != Register::None {
            let index = number(index).filter(|&index| index != 4)?;
            rex |= if index >= 8 { 0x42 } else { 0 };
            operand.has_sib = true;
            operand.sib = (scale.trailing_zeros() as u8) << 6 | (index & 7) << 3 | base & 7;
            operand.rm = 4;
        } else if scale != 1 {
            return None;
        } else if base & 7 == 4 {
            operand.has_sib = true;
            operand.sib = 0x24;
        }
        // The size asks for one byte if that is enough.
        let size = instruction.memory_displ_size();
        operand.size = match size {
            0 if displacement != 0 => return None,
            0 if base & 7 != 5 => 0,
            0 | 1 if i8::try_from(displacement).is_ok() => 1,
            1 | 8 => 4,
            _ => return None,
        };
        operand.rm |= match operand.size {
            0 => 0,
            1 => 0x40,
            _ => 0x80,
        };
        Some((operand, rex))
    }
}

/// Bytes being put together.
struct Out {
    bytes: [u8; ROOM],
    length: usize,
}

impl Out {
    #[inline]
    fn byte(&mut self, byte: u8) {
        self.bytes[self.length] = byte;
        self.length += 1;
    }

    /// Appends `byte` unless it is 0.
    #[inline]
    fn some(&mut self, byte: u8) {
        self.bytes[self.length] = byte;
        self.length += usize::from(byte != 0);
    }

    #[inline]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.bytes[self.length..self.length + N].copy_from_slice(&bytes);
        self.length += N;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    /// Every shape with registers and operands that are special in some way.
    #[test]
    fn the_bytes_are_those_of_iced() {
        let mut compared = 0;
        for code in Code::values() {
            let Some(shape) = Shape::of(code) else { continue };
            let prefix: &[u8] = if shape.prefix == 0 { &[] } else { &[shape.prefix] };
            let escape = shape.escape.iter().copied().filter(|&byte| byte != 0);
            let escape: Vec<u8> = escape.collect();
            for rex in 0x40..0x50_u8 {
                for modrm in 0..=255_u8 {
                    for sib in [0x24, 0x65, 0x4d, 0xd3] {
                        let mut bytes = prefix.to_vec();
                        bytes.push(rex | u8::from(shape.wide) << 3);
                        bytes.extend(&escape);
                        bytes.extend([shape.opcode | modrm & 7, modrm, sib]);
                        bytes.extend([0x85, 2, 3, 0, 5, 6, 7, 8, 9, 10, 11, 12]);
                        bytes.truncate(15);
                        let decoded = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
                        if decoded.code() != code {
                            continue;
                        }
                        let Some((fast, length)) = shape.encode(&decoded) else { continue };
                        assert_eq!(Ok(&fast[..length]), slowly(&decoded).as_deref(), "{decoded}");
                        compared += 1;
                    }
                }
            }
        }
        assert!(compared > 100_000, "{compared}");
    }
}

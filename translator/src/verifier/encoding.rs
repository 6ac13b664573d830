//! Whether an instruction is encoded the one canonical way: that of iced's
//! encoder.
//!
//! Running the encoder takes longer than all other checks of most
//! instructions. For simple forms the bytes themselves show that there is no
//! prefix, no bit of a REX prefix and no byte of an address too many, and so
//! nothing that an encoder could do otherwise.

use iced_x86::{
    EncodingKind, MandatoryPrefix, OpCodeInfo, OpCodeOperandKind as K, OpCodeTableKind,
};

/// What the canonical bytes of a simple form are: a prefix, REX, an opcode,
/// ModRM with an address, immediates; all but the opcode if need be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    prefix: Option<u8>,
    /// REX.W is set.
    wide: bool,
    escape: &'static [u8],
    opcode: u8,
    registers: Registers,
}

/// Where the operands are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registers {
    /// Nowhere: implied or immediate.
    None,
    /// One in the lower bits of the opcode.
    Opcode,
    /// In ModRM: a register and a register or an address.
    Both,
    /// In ModRM, of which 3 bits belong to the opcode.
    Group,
}

impl Shape {
    /// That of a form; none if it is not simple.
    pub fn of(info: &OpCodeInfo) -> Option<Self> {
        let simple = info.encoding() == EncodingKind::Legacy
            && info.op_code_len() == 1
            && !info.is_rm_group()
            && !info.fwait()
            && info.address_size() == 0;
        let prefix = match (info.mandatory_prefix(), info.operand_size()) {
            (MandatoryPrefix::None | MandatoryPrefix::PNP, 16) => Some(0x66),
            (_, 16) => return None,
            (MandatoryPrefix::None | MandatoryPrefix::PNP, _) => None,
            (MandatoryPrefix::P66, _) => Some(0x66),
            (MandatoryPrefix::PF3, _) => Some(0xf3),
            (MandatoryPrefix::PF2, _) => Some(0xf2),
        };
        let escape: &[u8] = match info.table() {
            OpCodeTableKind::Normal => &[],
            OpCodeTableKind::T0F => &[0x0f],
            OpCodeTableKind::T0F38 => &[0x0f, 0x38],
            OpCodeTableKind::T0F3A => &[0x0f, 0x3a],
            _ => return None,
        };
        let (mut reg, mut rm, mut low) = (false, false, false);
        for kind in info.op_kinds() {
            #[rustfmt::skip]
            match kind {
                K::r8_reg | K::r16_reg | K::r32_reg | K::r64_reg | K::xmm_reg => reg = true,
                K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::xmm_or_mem
                | K::r32_rm | K::r64_rm | K::xmm_rm | K::mem => rm = true,
                K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode => low = true,
                K::al | K::ax | K::eax | K::rax | K::cl | K::imm8 | K::imm8_const_1 | K::imm8sex16
                | K::imm8sex32 | K::imm8sex64 | K::imm16 | K::imm32 | K::imm32sex64 | K::imm64
                | K::br64_1 | K::br64_4 => {}
                _ => return None,
            };
        }
        let registers = match (reg, rm, low, info.is_group()) {
            (false, false, false, false) => Registers::None,
            (false, false, true, false) => Registers::Opcode,
            (true, true, false, false) => Registers::Both,
            (false, true, false, true) => Registers::Group,
            _ => return None,
        };
        let wide =
            info.operand_size() == 64 && !info.default_op_size64() && !info.force_op_size64();
        let opcode = info.op_code() as u8;
        simple.then_some(Self { prefix, wide, escape, opcode, registers })
    }

    /// Whether `bytes`, which decode as one instruction of this form, are
    /// certainly its canonical encoding.
    pub fn certain(&self, bytes: &[u8]) -> bool {
        self.matches(bytes).is_some_and(|canonical| canonical)
    }

    fn matches(&self, mut bytes: &[u8]) -> Option<bool> {
        let mut next = || {
            let (first, rest) = bytes.split_first()?;
            bytes = rest;
            Some(*first)
        };
        let mut byte = next()?;
        if let Some(prefix) = self.prefix {
            if byte != prefix {
                return None;
            }
            byte = next()?;
        }
        let mut rex = 0;
        if byte & 0xf0 == 0x40 {
            // Without any bit it may be there for `sil` and the like.
            rex = byte & 0xf;
            if rex == 0 {
                return None;
            }
            byte = next()?;
        }
        for escape in self.escape {
            if byte != *escape {
                return None;
            }
            byte = next()?;
        }
        let (w, r, x, b) = (rex & 8 != 0, rex & 4 != 0, rex & 2 != 0, rex & 1 != 0);
        if w != self.wide {
            return None;
        }
        let in_modrm = match self.registers {
            Registers::None => return Some(byte == self.opcode && !r && !x && !b),
            Registers::Opcode => return Some(byte & 0xf8 == self.opcode && !r && !x),
            Registers::Both => true,
            Registers::Group => !r,
        };
        if byte != self.opcode || !in_modrm {
            return None;
        }
        let modrm = next()?;
        let (mode, mut base) = (modrm >> 6, modrm & 7);
        if mode == 3 {
            return Some(!x);
        }
        if base == 4 {
            let sib = next()?;
            base = sib & 7;
            // Without an index it must be there for the base.
            if sib >> 3 & 7 == 4 && !x && (base != 4 || sib >> 6 != 0) {
                return None;
            }
        } else if x {
            return None;
        }
        // Absolute or relative to the code in mode 0.
        let five = base == 5;
        match mode {
            0 => Some(!five),
            1 => Some(five || next()? != 0),
            _ => {
                let displacement = [next()?, next()?, next()?, next()?];
                Some(i8::try_from(i32::from_le_bytes(displacement)).is_err())
            }
        }
    }
}

//! Instructions that need something prepared.

use super::{Generator, Known, RAX, RCX, RDI, RDX, RSI, r32, r64};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, MemoryOperand, Register};

impl Generator<'_> {
    /// A string instruction, often repeated; some counts are over the limit
    /// of a fragment.
    pub(super) fn string(&mut self) {
        if ![RAX, RCX, RSI, RDI].into_iter().all(|r| self.is_free(r)) {
            return self.access();
        }
        self.pointer(RSI);
        if self.rng.chance(30) {
            // Overlapping, in either direction.
            let distance = self.rng.below(48) as i32 - 24;
            self.emit(Instruction::with2(Code::Mov_r64_rm64, Register::RDI, Register::RSI));
            self.emit(Instruction::with2(Code::Add_rm64_imm8, Register::RDI, distance));
        } else {
            self.pointer(RDI);
        }
        let count = match self.rng.below(12) {
            0 => 0,
            1 => 4096 + self.rng.below(3) as i32 - 1,
            _ => self.rng.below(60) as i32,
        };
        self.emit(Instruction::with2(Code::Mov_r32_imm32, Register::ECX, count));
        if self.rng.chance(40) {
            let (a, b) = (self.source(), self.source());
            self.emit(Instruction::with2(Code::Cmp_r64_rm64, r64(a), r64(b)));
        }
        let mut bytes = Vec::new();
        match self.rng.below(8) {
            0..=3 => bytes.push(0xf3),
            4 => bytes.push(0xf2),
            _ => {}
        }
        let opcode = self.rng.pick(&[0xa4u8, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf]);
        if opcode & 1 != 0 {
            match self.rng.below(3) {
                0 => bytes.insert(0, 0x66),
                1 => bytes.push(0x48),
                _ => {}
            }
        }
        bytes.push(opcode);
        self.bytes(&bytes);
        for register in [RAX, RCX, RSI, RDI] {
            self.known[register] = Known::Nothing;
        }
    }

    /// An instruction given by its bytes.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let instruction = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
        self.emit(Ok(instruction));
    }

    /// `mov` between the accumulator and a constant 64-bit address.
    pub(super) fn constant_address(&mut self) {
        if !self.is_free(RAX) {
            return self.access();
        }
        let at = self.guest.data + self.rng.below(ub_ring3::memory::DATA_BYTES - 8) as u64;
        let mut bytes = match self.rng.below(4) {
            0 => vec![0x66],
            1 => vec![0x48],
            _ => vec![],
        };
        bytes.push(0xa0 + self.rng.below(4) as u8);
        bytes.extend(at.to_le_bytes());
        self.bytes(&bytes);
    }

    /// A locked instruction on an operand that may cross a cache line.
    pub(super) fn locked(&mut self) {
        let locked = self.catalogue.groups.iter().flatten().filter(|s| s.lock);
        let count = locked.clone().count();
        if count == 0 {
            return self.access();
        }
        let shape = *locked.clone().nth(self.rng.below(count)).expect("below the count");
        self.line_end = true;
        self.shaped(shape);
        self.line_end = false;
    }

    /// A division that does not fault, mostly.
    pub(super) fn divide(&mut self) {
        if !self.is_free(RAX) || !self.is_free(RDX) {
            return self.access();
        }
        let divisor = loop {
            let register = self.target();
            if register != RAX && register != RDX {
                break register;
            }
        };
        let value = self.rng.below(1000) as i32;
        self.emit(Instruction::with2(Code::Mov_r32_imm32, r32(divisor), value));
        let (operand64, operand32) = (r64(divisor), r32(divisor));
        match self.rng.below(4) {
            0 => {
                self.emit(Ok(Instruction::with(Code::Cqo)));
                self.emit(Instruction::with1(Code::Idiv_rm64, operand64));
            }
            1 => {
                self.emit(Ok(Instruction::with(Code::Cdq)));
                self.emit(Instruction::with1(Code::Idiv_rm32, operand32));
            }
            2 => {
                let address = self.address(8);
                self.emit(Instruction::with2(Code::Mov_rm64_r64, address, operand64));
                self.emit(Instruction::with2(Code::Xor_r32_rm32, Register::EDX, Register::EDX));
                if address.base != Register::RDX && address.index != Register::RDX {
                    self.emit(Instruction::with1(Code::Div_rm64, address));
                }
            }
            _ => {
                self.emit(Instruction::with2(Code::Xor_r32_rm32, Register::EDX, Register::EDX));
                self.emit(Instruction::with1(Code::Div_rm64, operand64));
            }
        }
    }

    /// `rdtsc`, whose value is then forgotten, or the stack protector's word.
    pub(super) fn counter(&mut self) {
        if self.rng.chance(30) {
            return self.constant_address();
        }
        if self.rng.chance(20) {
            // Random numbers: of the value nothing is kept, of the flags all.
            let target = self.target();
            if let Ok(instruction) = Instruction::with1(Code::Rdrand_r64, r64(target))
                && crate::catalogue::is_translated(&instruction)
            {
                self.emit(Ok(instruction));
            }
            return self.emit(Instruction::with2(Code::Mov_r64_imm64, r64(target), 7u64));
        }
        if self.rng.chance(60) || !self.is_free(RAX) || !self.is_free(RDX) {
            let fs = Register::FS;
            let target = r64(self.target());
            let word = MemoryOperand::new(Register::None, Register::None, 1, 0x28, 8, false, fs);
            let code = self.rng.pick(&[Code::Mov_r64_rm64, Code::Sub_r64_rm64]);
            return self.emit(Instruction::with2(code, target, word));
        }
        self.emit(Ok(Instruction::with(Code::Rdtsc)));
        self.emit(Instruction::with2(Code::Mov_r32_imm32, Register::EAX, 5));
        self.emit(Instruction::with2(Code::Mov_r64_rm64, Register::RDX, Register::RAX));
    }
}

//! Addresses: every addressing mode, mostly into the program's data.

use super::{Generator, Known, RSP, r32, r64};
use crate::program::Node;
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use ub_ring3::memory::DATA_BYTES;

/// How far displacements reach from a pointer.
const REACH: i64 = 3000;
const LINE: i64 = 64;
const SCALES: [u32; 4] = [1, 2, 4, 8];

fn operand(base: Register, index: Register, scale: u32, displacement: i64) -> MemoryOperand {
    let size = if displacement == 0 { 0 } else { 1 };
    MemoryOperand::new(base, index, scale, displacement, size, false, Register::None)
}

impl Generator<'_> {
    /// An operand for an access of `size` bytes. May add nodes that load a
    /// pointer.
    pub(super) fn address(&mut self, size: usize) -> MemoryOperand {
        let size = size.clamp(1, 64) as i64;
        if self.rng.chance(self.wild) {
            return self.anywhere();
        }
        if std::mem::take(&mut self.line_end) {
            return self.near_line_end(size);
        }
        match self.rng.below(32) {
            0 | 1 => self.rip_relative(size),
            2..=5 => self.on_stack(size),
            6 if self.frame > 64 => {
                let down = size + self.rng.below((self.frame - size) as usize) as i64;
                operand(Register::RBP, Register::None, 1, -down)
            }
            7 => self.by_fs(size),
            8 | 9 if self.guest.low => self.absolute(size),
            10..=13 if self.guest.low => self.narrow(size),
            _ => self.by_pointer(size),
        }
    }

    /// A load or store.
    pub(super) fn access(&mut self) {
        let (target, source) = (self.target(), self.source());
        let address = self.address(8);
        let which = self.rng.below(4);
        self.emit(match which {
            0 => Instruction::with2(Code::Mov_rm64_r64, address, r64(source)),
            1 => Instruction::with2(Code::Mov_rm32_r32, address, r32(source)),
            2 => Instruction::with2(Code::Mov_r32_rm32, r32(target), address),
            _ => Instruction::with2(Code::Mov_r64_rm64, r64(target), address),
        });
    }

    /// Gives `target` an address in the data area.
    pub(super) fn pointer(&mut self, target: usize) {
        let offset = 4096 + 8 * self.rng.below((DATA_BYTES - 8192) / 8) as i64;
        let mut exact = offset;
        match self.rng.below(6) {
            0 => {
                let address = self.guest.data + offset as u64;
                self.emit(Instruction::with2(Code::Mov_r64_imm64, r64(target), address));
            }
            1 => {
                let address = self.guest.data as i64 + offset;
                let memory = MemoryOperand::with_base_displ(Register::RIP, address);
                self.emit(Instruction::with2(Code::Lea_r64_m, r64(target), memory));
            }
            2 | 3 if self.exact_pointer().is_some() => {
                let (from, low) = self.exact_pointer().expect("just seen");
                let distance = self.rng.below(512) as i64 - 256;
                exact = low + distance;
                let base = operand(r64(from), Register::None, 1, distance);
                if self.rng.chance(60) {
                    self.emit(Instruction::with2(Code::Lea_r64_m, r64(target), base));
                } else {
                    let distance = distance as i32;
                    self.emit(Instruction::with2(Code::Mov_r64_rm64, r64(target), r64(from)));
                    self.emit(Instruction::with2(Code::Add_rm64_imm32, r64(target), distance));
                }
            }
            _ => {
                let label = self.program.label();
                let value = self.guest.data + offset as u64;
                self.tail.extend([Node::Bind(label), Node::Quad(value)]);
                self.push(Node::Load(r64(target), label));
            }
        }
        self.known[target] = Known::Pointer { low: exact, high: exact, step: 1 };
    }

    fn exact_pointer(&self) -> Option<(usize, i64)> {
        (0..16).find_map(|r| match self.known[r] {
            Known::Pointer { low, high, .. } if low == high && (1024..60000).contains(&low) => {
                Some((r, low))
            }
            _ => None,
        })
    }

    /// A register with a known pointer; loads one if there is none.
    pub(super) fn any_pointer(&mut self) -> (usize, i64, i64, i64) {
        let first = self.rng.below(16);
        let known = |g: &Self| {
            (0..16).map(|i| (first + i) % 16).find_map(|r| match g.known[r] {
                Known::Pointer { low, high, step } => Some((r, low, high, step)),
                _ => None,
            })
        };
        if let Some(found) = known(self) {
            return found;
        }
        let target = self.target();
        self.pointer(target);
        known(self).expect("just loaded")
    }

    fn any_small(&mut self) -> Option<(usize, i64)> {
        let first = self.rng.below(16);
        (0..16).map(|i| (first + i) % 16).find_map(|r| match self.known[r] {
            Known::Small(most) if r != RSP => Some((r, most as i64)),
            _ => None,
        })
    }

    /// Aligned as the size wants it, mostly.
    fn alignment(&mut self, size: i64) -> i64 {
        let likely = if size >= 16 { 92 } else { 60 };
        if self.rng.chance(likely) { size.next_power_of_2() } else { 1 }
    }

    /// A displacement that keeps `low..=high` plus it inside the data.
    fn displacement(&mut self, low: i64, high: i64, size: i64, alignment: i64) -> i64 {
        let reach = if self.rng.chance(60) { 120 } else { REACH };
        let least = (-low).max(-reach);
        let most = (DATA_BYTES as i64 - size - high).min(reach);
        if self.rng.chance(25) && low % alignment == 0 {
            return 0;
        }
        let displacement = least + self.rng.below((most - least).max(1) as usize) as i64;
        let aligned = (low + displacement).div_euclid(alignment) * alignment - low;
        if aligned < least { aligned + alignment } else { aligned }
    }

    fn by_pointer(&mut self, size: i64) -> MemoryOperand {
        let (base, low, high, step) = self.any_pointer();
        let wanted = self.alignment(size);
        let alignment = if low == high || step % wanted == 0 { wanted } else { 1 };
        if (wanted < 16 || alignment == 1)
            && self.rng.chance(40)
            && let Some((index, most)) = self.any_small()
        {
            let scale = self.rng.pick(&SCALES);
            let reach = most * i64::from(scale);
            let displacement = self.displacement(low, high + reach, size, 1);
            // Either register may be the base where the scale is 1.
            if scale == 1 && self.rng.chance(30) {
                return operand(r64(index), r64(base), 1, displacement);
            }
            return operand(r64(base), r64(index), scale, displacement);
        }
        let displacement = self.displacement(low, high, size, alignment);
        operand(r64(base), Register::None, 1, displacement)
    }

    fn rip_relative(&mut self, size: i64) -> MemoryOperand {
        let alignment = self.alignment(size);
        let at = self.displacement(32768, 32768, size, alignment) + 32768;
        MemoryOperand::with_base_displ(Register::RIP, self.guest.data as i64 + at)
    }

    /// Below the stack pointer, or in what is free above it.
    fn on_stack(&mut self, size: i64) -> MemoryOperand {
        let room = (512 + self.locals - size).max(1) as usize;
        let displacement = self.rng.below(room) as i64 - 512;
        // Aligned accesses need an aligned stack pointer, which is likely.
        let alignment = self.alignment(size);
        let displacement = displacement.div_euclid(alignment) * alignment;
        if self.rng.chance(20)
            && let Some((index, most)) = self.any_small()
        {
            let scale = self.rng.pick(&SCALES);
            let down = displacement.min(-size) - most * i64::from(scale);
            return operand(Register::RSP, r64(index), scale, down);
        }
        operand(Register::RSP, Register::None, 1, displacement)
    }

    /// Thread-local words, or the data by its distance from the FS base.
    fn by_fs(&mut self, size: i64) -> MemoryOperand {
        let fs = Register::FS;
        let target = self.target();
        let at = self.displacement(32768, 32768, size, 1) + 32768;
        let displacement = self.rng.below(256) as i64 - 128;
        let distance =
            (self.guest.data + at as u64).wrapping_sub(self.guest.fs_base) as i64 - displacement;
        self.emit(Instruction::with2(Code::Mov_r64_imm64, r64(target), distance));
        let size = if displacement == 0 { 0 } else { 1 };
        MemoryOperand::new(r64(target), Register::None, 1, displacement, size, false, fs)
    }

    /// `[disp32]`, and `[index*scale+disp32]`.
    fn absolute(&mut self, size: i64) -> MemoryOperand {
        let alignment = self.alignment(size);
        let at = self.displacement(32768, 32768, size, alignment) + 32768;
        let address = self.guest.data as i64 + at;
        let index = self.any_small().filter(|_| self.rng.chance(50));
        let (index, scale) = match index {
            Some((index, most)) if at + most * 8 + size < DATA_BYTES as i64 => {
                (r64(index), self.rng.pick(&SCALES))
            }
            _ => (Register::None, 1),
        };
        MemoryOperand::new(Register::None, index, scale, address, 8, false, Register::None)
    }

    /// 32-bit addressing: the upper halves of the registers do not count.
    fn narrow(&mut self, size: i64) -> MemoryOperand {
        let (base, low, high, _) = self.any_pointer();
        let index = self.any_small().filter(|_| self.rng.chance(50));
        let (index, scale, reach) = match index {
            Some((index, most)) => {
                let scale = self.rng.pick(&SCALES);
                (r32(index), scale, most * i64::from(scale))
            }
            None => (Register::None, 1, 0),
        };
        let displacement = self.displacement(low, high + reach, size, 1);
        operand(r32(base), index, scale, displacement)
    }

    /// Inside the last bytes of a cache line, or just across its end.
    fn near_line_end(&mut self, size: i64) -> MemoryOperand {
        let (base, low, high, _) = self.any_pointer();
        let line = (low + self.displacement(low, high, 2 * LINE, 1)).div_euclid(LINE) * LINE;
        let back = match self.rng.below(4) {
            0 => self.rng.below(size as usize) as i64,
            1 => size + self.rng.below(8) as i64,
            _ => size,
        };
        operand(r64(base), Register::None, 1, line + LINE - back - low)
    }

    fn anywhere(&mut self) -> MemoryOperand {
        let base = r64(self.source());
        let displacement = self.rng.next() as i32 as i64 >> self.rng.below(32);
        if self.rng.chance(40) {
            let index = r64(self.target());
            return operand(base, index, self.rng.pick(&SCALES), displacement);
        }
        operand(base, Register::None, 1, displacement)
    }
}

trait NextPower {
    fn next_power_of_2(self) -> i64;
}

impl NextPower for i64 {
    fn next_power_of_2(self) -> i64 {
        (self as u64).next_power_of_two() as i64
    }
}

//! What programs do with their stack pointer.

use super::{Generator, Known, RBP, RSP, r32, r64};
use iced_x86::{Code, Instruction, MemoryOperand, Register};

fn at_rsp(displacement: i64) -> MemoryOperand {
    let size = if displacement == 0 { 0 } else { 1 };
    MemoryOperand::with_base_displ_size(Register::RSP, displacement, size)
}

impl Generator<'_> {
    /// Something that leaves the stack pointer where it was.
    pub(super) fn stack(&mut self) {
        let locals = self.locals;
        match self.rng.below(12) {
            10 => self.narrow_pushes(),
            11 => self.computed(),
            0..=2 => self.pushes_and_pops(),
            3 | 4 => self.moved_down(),
            5 => self.framed(),
            6 => self.aligned(),
            7 => self.odd_moves(),
            8 => self.elsewhere(),
            _ => self.push_loop(),
        }
        self.locals = locals;
    }

    /// 16-bit pushes and pops, in pairs.
    fn narrow_pushes(&mut self) {
        let (source, target) = (self.source(), self.target());
        for _ in 0..2 {
            match self.rng.below(3) {
                0 => self.bytes(&[0x66, 0x6a, 0xf0]),
                1 => {
                    let address = self.address(2);
                    self.emit(Instruction::with1(Code::Push_rm16, address));
                }
                _ => {
                    let register = Register::AX + source as u32;
                    self.emit(Instruction::with1(Code::Push_r16, register));
                }
            }
        }
        self.access();
        for _ in 0..2 {
            if self.rng.chance(25) {
                let address = self.address(2);
                self.emit(Instruction::with1(Code::Pop_rm16, address));
            } else {
                self.emit(Instruction::with1(Code::Pop_r16, Register::AX + target as u32));
            }
        }
    }

    /// The stack pointer as an ordinary operand, then back from a register.
    fn computed(&mut self) {
        let Some(saved) = self.reserve() else { return self.pushes_and_pops() };
        let (rsp, saved64) = (Register::RSP, r64(saved));
        self.emit(Instruction::with2(Code::Mov_r64_rm64, saved64, rsp));
        // What moves it up by a little stays below what is in use.
        self.emit(Instruction::with2(Code::Sub_rm64_imm32, rsp, 640));
        let value = self.rng.below(127) as i32;
        let source = r64(self.source());
        let way = self.rng.below(9);
        match way {
            0 => self.emit(Instruction::with2(Code::Or_rm64_imm8, rsp, value)),
            1 => self.emit(Instruction::with2(Code::Xor_rm64_imm8, rsp, value)),
            2 => self.emit(Instruction::with2(Code::Xor_r64_rm64, rsp, source)),
            3 => self.emit(Instruction::with2(Code::And_r64_rm64, rsp, source)),
            4 => {
                let address = self.address(8);
                let code = self.rng.pick(&[Code::Add_r64_rm64, Code::Sub_r64_rm64]);
                self.emit(Instruction::with2(code, rsp, address));
            }
            5 => {
                let target = r64(self.target());
                self.emit(Instruction::with2(Code::Lea_r64_m, target, at_rsp(-96)));
                self.emit(Instruction::with2(Code::Xchg_rm64_r64, rsp, target));
            }
            6 => {
                self.emit(Instruction::with1(Code::Push_r64, saved64));
                self.emit(Instruction::with1(Code::Pop_r64, rsp));
            }
            7 => self.emit(Instruction::with2(Code::Add_r64_rm64, rsp, source)),
            _ => self.emit(Instruction::with2(Code::And_rm64_imm32, rsp, -4096)),
        }
        // Behind a sum it could be anywhere, in what is in use as well.
        if self.rng.chance(30) && !matches!(way, 2 | 4 | 6 | 7) {
            self.emit(Instruction::with1(Code::Push_r64, source));
        }
        self.emit(Instruction::with2(Code::Mov_r64_rm64, rsp, saved64));
        self.release(saved);
    }

    fn few_steps(&mut self) {
        let count = self.rng.below(3);
        for _ in 0..count {
            if self.rng.chance(60) { self.form() } else { self.access() }
        }
    }

    fn push_something(&mut self) {
        match self.rng.below(6) {
            0 => {
                let address = self.address(8);
                self.emit(Instruction::with1(Code::Push_rm64, address));
            }
            1 => {
                let value = self.rng.next() as i32;
                self.emit(Instruction::with1(Code::Pushq_imm32, value));
            }
            2 => {
                let value = i32::from(self.rng.next() as i8);
                self.emit(Instruction::with1(Code::Pushq_imm8, value));
            }
            _ => {
                let source = self.source();
                self.emit(Instruction::with1(Code::Push_r64, r64(source)));
            }
        }
        self.locals += 8;
    }

    fn pushes_and_pops(&mut self) {
        let count = 1 + self.rng.below(3);
        for _ in 0..count {
            self.push_something();
        }
        self.few_steps();
        let bytes = 8 * count as i64;
        match self.rng.below(6) {
            0 => self.emit(Instruction::with2(Code::Add_rm64_imm8, Register::RSP, bytes as i32)),
            1 => self.emit(Instruction::with2(Code::Lea_r64_m, Register::RSP, at_rsp(bytes))),
            _ => {
                for _ in 0..count {
                    self.pop_something();
                }
            }
        }
    }

    fn pop_something(&mut self) {
        self.locals -= 8;
        if self.rng.chance(15) {
            let address = self.address(8);
            // Popped memory relative to rsp counts from behind the pop.
            if address.base != Register::RSP {
                return self.emit(Instruction::with1(Code::Pop_rm64, address));
            }
        }
        let target = self.target();
        self.emit(Instruction::with1(Code::Pop_r64, r64(target)));
    }

    /// Room for local variables, by a constant or a register.
    fn moved_down(&mut self) {
        let bytes = 8 * (1 + self.rng.below(40)) as i32;
        let rsp = Register::RSP;
        let by = if self.rng.chance(25) { self.reserve() } else { None };
        match by {
            Some(r) => {
                self.emit(Instruction::with2(Code::Mov_r32_imm32, r32(r), bytes));
                self.emit(Instruction::with2(Code::Sub_r64_rm64, rsp, r64(r)));
            }
            None if self.rng.chance(30) => {
                let to = at_rsp(-i64::from(bytes));
                self.emit(Instruction::with2(Code::Lea_r64_m, rsp, to));
            }
            None => self.emit(Instruction::with2(Code::Sub_rm64_imm32, rsp, bytes)),
        }
        self.locals += i64::from(bytes);
        self.few_steps();
        self.access();
        if self.rng.chance(20) {
            self.branch();
        }
        match by {
            Some(r) => {
                let back = MemoryOperand::with_base_index(rsp, r64(r));
                if self.rng.chance(50) {
                    self.emit(Instruction::with2(Code::Lea_r64_m, rsp, back));
                } else {
                    self.emit(Instruction::with2(Code::Add_r64_rm64, rsp, r64(r)));
                }
                self.release(r);
            }
            None => self.emit(Instruction::with2(Code::Add_rm64_imm32, rsp, bytes)),
        }
    }

    /// `push rbp; mov rbp,rsp; sub rsp; ...; leave`
    fn framed(&mut self) {
        if !self.is_free(RBP) || self.frame != 0 {
            return self.pushes_and_pops();
        }
        let bytes = 16 * (5 + self.rng.below(6)) as i32;
        let (rsp, rbp) = (Register::RSP, Register::RBP);
        self.emit(Instruction::with1(Code::Push_r64, rbp));
        self.emit(Instruction::with2(Code::Mov_r64_rm64, rbp, rsp));
        self.known[RBP] = Known::Nothing;
        self.reserved |= 1 << RBP;
        self.emit(Instruction::with2(Code::Sub_rm64_imm32, rsp, bytes));
        if self.rng.chance(30) {
            let mask = self.rng.pick(&[-16, -32, -64]);
            self.emit(Instruction::with2(Code::And_rm64_imm8, rsp, mask));
        }
        (self.frame, self.locals) = (i64::from(bytes), i64::from(bytes));
        self.few_steps();
        if self.rng.chance(30) {
            self.looped();
        }
        if self.rng.chance(30) {
            self.call();
        }
        self.frame = 0;
        self.release(RBP);
        if self.rng.chance(70) {
            self.emit(Ok(Instruction::with(Code::Leaveq)));
        } else {
            self.emit(Instruction::with2(Code::Mov_r64_rm64, rsp, rbp));
            self.emit(Instruction::with1(Code::Pop_r64, rbp));
        }
    }

    /// The stack pointer is rounded down, and comes back from a register.
    fn aligned(&mut self) {
        let Some(saved) = self.reserve() else { return self.pushes_and_pops() };
        let rsp = Register::RSP;
        self.emit(Instruction::with2(Code::Mov_r64_rm64, r64(saved), rsp));
        let mask = self.rng.pick(&[-16, -32, -64, -128]);
        self.emit(Instruction::with2(Code::And_rm64_imm8, rsp, mask));
        self.emit(Instruction::with2(Code::Sub_rm64_imm8, rsp, 64));
        self.locals = 64;
        self.few_steps();
        if self.in_function {
            // What lies between is not known.
            self.locals = 0;
        }
        self.access();
        self.emit(Instruction::with2(Code::Mov_r64_rm64, rsp, r64(saved)));
        self.release(saved);
    }

    /// By odd amounts, up and down; read across what is above.
    fn odd_moves(&mut self) {
        let rsp = Register::RSP;
        let by = 1 + self.rng.below(23) as i32;
        let target = self.target();
        if self.rng.chance(50) {
            self.emit(Instruction::with2(Code::Sub_rm64_imm8, rsp, by));
            self.push_something();
            self.emit(Instruction::with2(Code::Mov_r64_rm64, r64(target), at_rsp(3)));
            self.pop_something();
            self.emit(Instruction::with2(Code::Lea_r64_m, rsp, at_rsp(i64::from(by))));
        } else {
            self.emit(Instruction::with2(Code::Add_rm64_imm8, rsp, by));
            self.emit(Instruction::with2(Code::Mov_r64_rm64, r64(target), at_rsp(-8)));
            let slot = r64(self.target());
            self.emit(Instruction::with2(Code::Lea_r64_m, slot, at_rsp(i64::from(by))));
            self.emit(Instruction::with2(Code::Mov_r32_rm32, r32(target), at_rsp(5)));
            self.emit(Instruction::with2(Code::Sub_rm64_imm8, rsp, by));
        }
    }

    /// The stack is somewhere else for a while.
    fn elsewhere(&mut self) {
        let Some(saved) = self.reserve() else { return self.pushes_and_pops() };
        let rsp = Register::RSP;
        self.emit(Instruction::with2(Code::Mov_r64_rm64, r64(saved), rsp));
        let target = self.target();
        self.pointer(target);
        let slot = MemoryOperand::with_base_displ(r64(target), 64);
        match self.rng.below(3) {
            0 => {
                self.emit(Instruction::with2(Code::Mov_rm64_r64, slot, r64(target)));
                self.emit(Instruction::with2(Code::Mov_r64_rm64, rsp, slot));
            }
            1 => self.emit(Instruction::with2(Code::Lea_r64_m, rsp, slot)),
            _ => self.emit(Instruction::with2(Code::Mov_r64_rm64, rsp, r64(target))),
        }
        for _ in 0..1 + self.rng.below(3) {
            self.push_something();
        }
        self.emit(Instruction::with1(Code::Push_r64, rsp));
        let target = self.target();
        self.emit(Instruction::with1(Code::Pop_r64, r64(target)));
        self.emit(Instruction::with2(Code::Mov_r64_rm64, rsp, r64(saved)));
        self.known[RSP] = Known::Nothing;
        self.release(saved);
    }

    /// Pushes in a loop, and drops them again, at once or in a loop.
    fn push_loop(&mut self) {
        if self.in_function || self.depth > 1 {
            return self.moved_down();
        }
        let Some(counter) = self.reserve() else { return self.pushes_and_pops() };
        let (c32, rsp) = (r32(counter), Register::RSP);
        let count = 1 + self.rng.below(20) as i32;
        let target = self.target();
        for pushing in [true, false] {
            if !pushing && self.rng.chance(50) {
                self.emit(Instruction::with2(Code::Add_rm64_imm32, rsp, 8 * count));
                break;
            }
            let top = self.program.label();
            self.emit(Instruction::with2(Code::Mov_r32_imm32, c32, count));
            self.push(crate::program::Node::Bind(top));
            self.emit(if pushing {
                Instruction::with1(Code::Push_r64, r64(target))
            } else {
                Instruction::with1(Code::Pop_r64, r64(target))
            });
            self.emit(Instruction::with1(Code::Dec_rm32, c32));
            self.push(crate::program::Node::Jump(Code::Jne_rel32_64, top));
        }
        self.release(counter);
        self.forget();
    }
}

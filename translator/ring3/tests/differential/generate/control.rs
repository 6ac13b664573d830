//! Branches, loops, calls and indirect branches. Every loop counts in a
//! reserved register, so every program ends.

use super::{Generator, Known, RCX, RSP, SAVED, r32, r64};
use crate::program::{Label, Node};
use iced_x86::{Code, Instruction, MemoryOperand, Register};

/// The sixteen conditions, near.
const CONDITIONS: [Code; 16] = [
    Code::Jo_rel32_64,
    Code::Jno_rel32_64,
    Code::Jb_rel32_64,
    Code::Jae_rel32_64,
    Code::Je_rel32_64,
    Code::Jne_rel32_64,
    Code::Jbe_rel32_64,
    Code::Ja_rel32_64,
    Code::Js_rel32_64,
    Code::Jns_rel32_64,
    Code::Jp_rel32_64,
    Code::Jnp_rel32_64,
    Code::Jl_rel32_64,
    Code::Jge_rel32_64,
    Code::Jle_rel32_64,
    Code::Jg_rel32_64,
];
/// How deep loops and branches nest.
const DEPTH: usize = 3;

impl Generator<'_> {
    fn bind(&mut self, label: Label) {
        self.push(Node::Bind(label));
    }

    fn jump(&mut self, code: Code, to: Label) {
        self.push(Node::Jump(code, to));
    }

    /// Steps that may run or not: what they change is unknown behind them.
    fn perhaps(&mut self, count: usize) {
        let before = self.known;
        self.steps(count);
        self.merge(&before);
    }

    fn merge(&mut self, other: &[Known; 16]) {
        for (known, old) in self.known.iter_mut().zip(other) {
            if known != old {
                *known = Known::Nothing;
            }
        }
    }

    pub(super) fn branch(&mut self) {
        if self.depth >= DEPTH {
            return self.compare();
        }
        self.depth += 1;
        if self.rng.chance(70) {
            self.compare();
        }
        let (other, end) = (self.program.label(), self.program.label());
        match self.rng.below(10) {
            0 => self.jump(Code::Jrcxz_rel8_64, other),
            1 => self.jump(Code::Jecxz_rel8_64, other),
            _ => {
                let condition = self.rng.pick(&CONDITIONS);
                self.jump(condition, other);
            }
        }
        let (first, second) = (1 + self.rng.below(3), self.rng.below(3));
        let before = self.known;
        self.perhaps(first);
        if second > 0 {
            self.jump(Code::Jmp_rel32_64, end);
        }
        self.bind(other);
        let after_first = std::mem::replace(&mut self.known, before);
        self.perhaps(second);
        self.merge(&after_first);
        self.bind(end);
        self.depth -= 1;
    }

    /// A loop of one of the shapes that compilers make.
    pub(super) fn looped(&mut self) {
        if self.depth >= DEPTH {
            return self.access();
        }
        let counter = if self.rng.chance(30) && self.is_free(RCX) {
            self.reserved |= 1 << RCX;
            RCX
        } else {
            let Some(counter) = self.reserve() else { return self.access() };
            counter
        };
        self.depth += 1;
        if self.rng.chance(45) {
            self.walk(counter);
        } else {
            self.countdown(counter);
        }
        self.release(counter);
        self.depth -= 1;
    }

    /// How often, and how many steps: small bodies run longer.
    fn trip(&mut self) -> (i32, usize) {
        let most = if self.depth > 1 { 5 } else { 9 };
        if self.rng.chance(40) {
            (1 + self.rng.below(4 * most) as i32, 1)
        } else {
            (1 + self.rng.below(most) as i32, 1 + self.rng.below(5))
        }
    }

    fn countdown(&mut self, counter: usize) {
        let (count, steps) = self.trip();
        let (top, out) = (self.program.label(), self.program.label());
        let (c64, c32) = (r64(counter), r32(counter));
        let upwards = self.rng.chance(30);
        let start = if upwards { 0 } else { count };
        self.emit(Instruction::with2(Code::Mov_r32_imm32, c32, start));
        // Some loops are entered at their condition.
        let entry = (upwards && self.rng.chance(40)).then(|| self.program.label());
        if let Some(entry) = entry {
            self.jump(Code::Jmp_rel32_64, entry);
        }
        self.bind(top);
        self.forget();
        self.known[counter] = Known::Small(count as u64);
        if self.rng.chance(60) {
            self.access();
        }
        self.steps(steps);
        if self.rng.chance(20) {
            // An exit from the middle.
            self.compare();
            let condition = self.rng.pick(&CONDITIONS);
            self.jump(condition, out);
            self.form();
        }
        if upwards {
            let step = if self.rng.chance(50) {
                Instruction::with1(Code::Inc_rm32, c32)
            } else {
                Instruction::with2(Code::Add_rm64_imm8, c64, 1)
            };
            self.emit(step);
            if let Some(entry) = entry {
                self.bind(entry);
            }
            self.emit(Instruction::with2(Code::Cmp_rm64_imm32, c64, count));
            let back = self.rng.pick(&[Code::Jb_rel32_64, Code::Jl_rel32_64]);
            self.jump(back, top);
        } else {
            self.count_down_and_jump(counter, top);
        }
        self.bind(out);
        self.forget();
    }

    fn count_down_and_jump(&mut self, counter: usize, top: Label) {
        let (c64, c32) = (r64(counter), r32(counter));
        match self.rng.below(8) {
            0..=3 if counter == RCX => {
                let code = self.rng.pick(&[
                    Code::Loop_rel8_64_RCX,
                    Code::Loop_rel8_64_RCX,
                    Code::Loope_rel8_64_RCX,
                    Code::Loopne_rel8_64_RCX,
                ]);
                return self.jump(code, top);
            }
            1 => {
                self.emit(Instruction::with2(Code::Sub_rm64_imm8, c64, 1));
                return self.jump(Code::Jg_rel32_64, top);
            }
            2 => {
                // The flags of something else go round.
                let down = MemoryOperand::with_base_displ(c64, -1);
                self.emit(Instruction::with2(Code::Lea_r64_m, c64, down));
                self.emit(Instruction::with2(Code::Test_rm64_r64, c64, c64));
            }
            3 => {
                self.emit(Instruction::with1(Code::Dec_rm64, c64));
                let out = self.program.label();
                self.jump(Code::Je_rel32_64, out);
                self.jump(Code::Jmp_rel32_64, top);
                return self.bind(out);
            }
            4 => self.emit(Instruction::with2(Code::Add_rm32_imm8, c32, -1)),
            5 => self.emit(Instruction::with1(Code::Dec_rm32, c32)),
            _ => self.emit(Instruction::with1(Code::Dec_rm64, c64)),
        }
        self.jump(Code::Jne_rel32_64, top);
    }

    /// A pointer goes through the data, upwards or downwards, to its end.
    fn walk(&mut self, pointer: usize) {
        let (count, steps) = self.trip();
        let step = self.rng.pick(&[1i64, 2, 4, 8, 16, 32, 64]);
        let length = step * i64::from(count);
        let first = 4096 + 64 * self.rng.below(700) as i64;
        let upwards = self.rng.chance(60);
        let (start, end) = if upwards { (first, first + length) } else { (first + length, first) };
        let p = r64(pointer);
        let data = self.guest.data as i64;
        let address = |offset| MemoryOperand::with_base_displ(Register::RIP, data + offset);
        self.emit(Instruction::with2(Code::Lea_r64_m, p, address(start)));
        // The end is a register's value, or a number where that is enough.
        let limit = if self.guest.low && self.rng.chance(50) { None } else { self.reserve() };
        match limit {
            Some(limit) => {
                self.emit(Instruction::with2(Code::Lea_r64_m, r64(limit), address(end)));
            }
            None if self.guest.low => {}
            None => return,
        }
        let (top, out) = (self.program.label(), self.program.label());
        self.bind(top);
        self.forget();
        let range = Known::Pointer { low: first, high: first + length, step };
        self.known[pointer] = range;
        self.access();
        self.steps(steps - 1);
        if self.rng.chance(20) {
            self.compare();
            let condition = self.rng.pick(&CONDITIONS);
            self.jump(condition, out);
        }
        let signed = if upwards { step } else { -step };
        if self.rng.chance(30) {
            let next = MemoryOperand::with_base_displ(p, signed);
            self.emit(Instruction::with2(Code::Lea_r64_m, p, next));
        } else {
            self.emit(Instruction::with2(Code::Add_rm64_imm8, p, signed as i32));
        }
        match limit {
            Some(limit) => self.emit(Instruction::with2(Code::Cmp_r64_rm64, p, r64(limit))),
            None => self.emit(Instruction::with2(Code::Cmp_rm64_imm32, p, (data + end) as i32)),
        }
        let onwards = if upwards { Code::Jb_rel32_64 } else { Code::Ja_rel32_64 };
        let back = if self.rng.chance(50) { Code::Jne_rel32_64 } else { onwards };
        self.jump(back, top);
        self.bind(out);
        self.forget();
        if let Some(limit) = limit {
            self.release(limit);
        }
    }

    /// Targets that the translator is told: right, wrong first, or none.
    fn predicted(&mut self, right: Label) -> Vec<Label> {
        let wrong = self.functions.first().copied().unwrap_or(right);
        match self.rng.below(4) {
            0 => vec![],
            1 => vec![wrong, right],
            _ => vec![right],
        }
    }

    /// A call in one of its forms; the callee may change every register that
    /// is not reserved.
    pub(super) fn call(&mut self) {
        if self.rng.chance(15) {
            return self.recursive_call();
        }
        // A loop may be counting in rcx, which functions do not save.
        if self.functions.is_empty() || self.depth > 2 || !self.is_free(RCX) {
            return self.access();
        }
        let label = self.rng.pick(&self.functions);
        let predicted = self.predicted(label);
        match self.rng.below(6) {
            0 => {
                let target = self.target();
                self.push(Node::Address(r64(target), label));
                self.known[target] = Known::Nothing;
                let call = Instruction::with1(Code::Call_rm64, r64(target));
                self.push(Node::Indirect(call.expect("call r64"), predicted));
            }
            1 => {
                // As through a PLT: call a stub that jumps through a slot.
                let slot = self.program.label();
                self.tail.extend([Node::Bind(slot), Node::Pointers(vec![label])]);
                self.push(Node::Through(Code::Call_rm64, slot, predicted));
            }
            2 => {
                // A pointer in memory, through a register.
                let (slot, target) = (self.program.label(), self.target());
                self.tail.extend([Node::Bind(slot), Node::Pointers(vec![label])]);
                self.push(Node::Address(r64(target), slot));
                self.known[target] = Known::Nothing;
                let memory = MemoryOperand::with_base(r64(target));
                let call = Instruction::with1(Code::Call_rm64, memory);
                self.push(Node::Indirect(call.expect("call m64"), predicted));
            }
            _ => self.jump(Code::Call_rel32_64, label),
        }
        self.forget();
    }

    fn recursive_call(&mut self) {
        if self.in_function || self.depth > 1 {
            return self.access();
        }
        let label = match self.recursive {
            Some(label) => label,
            None => {
                let label = self.program.label();
                self.recursive = Some(label);
                label
            }
        };
        if !self.is_free(RCX) {
            return self.access();
        }
        let depth = 1 + self.rng.below(7) as i32;
        self.emit(Instruction::with2(Code::Mov_r32_imm32, Register::ECX, depth));
        self.jump(Code::Call_rel32_64, label);
        self.forget();
    }

    /// A jump over what cannot run, through a register or the stack.
    pub(super) fn indirect(&mut self) {
        let (next, target) = (self.program.label(), self.target());
        match self.rng.below(4) {
            0 => {
                // call next; next: pop
                self.jump(Code::Call_rel32_64, next);
                self.bind(next);
                self.emit(Instruction::with1(Code::Pop_r64, r64(target)));
                self.forget();
                return;
            }
            1 => {
                // push next; ret
                self.push(Node::Address(r64(target), next));
                self.emit(Instruction::with1(Code::Push_r64, r64(target)));
                let ret = Instruction::with(Code::Retnq);
                let predicted = self.predicted(next);
                self.push(Node::Indirect(ret, predicted));
            }
            _ => {
                self.push(Node::Address(r64(target), next));
                let jump = Instruction::with1(Code::Jmp_rm64, r64(target));
                let predicted = self.predicted(next);
                self.push(Node::Indirect(jump.expect("jmp r64"), predicted));
            }
        }
        self.push(Node::Plain(Instruction::with(Code::Int3)));
        self.bind(next);
        self.forget();
    }

    /// A jump table, of addresses or of distances.
    pub(super) fn switch(&mut self) {
        if self.depth >= DEPTH {
            return self.access();
        }
        self.depth += 1;
        let count = 2 + self.rng.below(3);
        let cases: Vec<Label> = (0..count).map(|_| self.program.label()).collect();
        let (table, end) = (self.program.label(), self.program.label());
        let (index, base) = (self.target(), self.target());
        if index == base || index == RSP {
            self.depth -= 1;
            return self.access();
        }
        self.emit(Instruction::with2(Code::And_rm32_imm8, r32(index), 3));
        self.emit(Instruction::with2(Code::Cmp_rm32_imm8, r32(index), count as i32 - 1));
        self.jump(Code::Ja_rel32_64, end);
        self.push(Node::Address(r64(base), table));
        self.known[base] = Known::Nothing;
        let predicted = if self.rng.chance(70) { cases.clone() } else { vec![cases[0]] };
        let entry = |scale| MemoryOperand::with_base_index_scale(r64(base), r64(index), scale);
        if self.rng.chance(50) {
            self.tail.extend([Node::Bind(table), Node::Pointers(cases.clone())]);
            let jump = Instruction::with1(Code::Jmp_rm64, entry(8)).expect("jmp m64");
            self.push(Node::Indirect(jump, predicted));
        } else {
            self.tail.extend([Node::Bind(table), Node::Distances(cases.clone())]);
            self.emit(Instruction::with2(Code::Movsxd_r64_rm32, r64(index), entry(4)));
            self.emit(Instruction::with2(Code::Add_r64_rm64, r64(index), r64(base)));
            let jump = Instruction::with1(Code::Jmp_rm64, r64(index)).expect("jmp r64");
            self.push(Node::Indirect(jump, predicted));
        }
        let before = self.known;
        for label in cases {
            self.bind(label);
            self.known = before;
            let steps = self.rng.below(3);
            self.steps(steps);
            if self.rng.chance(80) {
                self.jump(Code::Jmp_rel32_64, end);
            }
        }
        self.bind(end);
        self.forget();
        self.depth -= 1;
    }

    fn enter_function(&mut self, label: Label, depth: usize) {
        self.depth = depth;
        self.in_function = true;
        self.forget();
        // Above is the return address.
        self.locals = 0;
        self.frame = 0;
        self.bind(label);
        if self.rng.chance(30) {
            self.emit(Ok(Instruction::with(Code::Endbr64)));
        }
    }

    pub(super) fn function(&mut self, label: Label, length: usize) {
        self.enter_function(label, 1);
        let reserved = self.reserved;
        let mut saved: Vec<usize> = SAVED.into_iter().filter(|&r| self.is_free(r)).collect();
        saved.retain(|_| self.rng.chance(40));
        for register in SAVED {
            self.reserved |= 1 << register;
        }
        for &register in &saved {
            self.emit(Instruction::with1(Code::Push_r64, r64(register)));
            self.reserved &= !(1 << register);
        }
        let steps = 1 + self.rng.below(length.max(1));
        self.steps(steps);
        for &register in saved.iter().rev() {
            self.emit(Instruction::with1(Code::Pop_r64, r64(register)));
        }
        match self.functions.first().copied() {
            Some(next) if self.rng.chance(15) => self.jump(Code::Jmp_rel32_64, next),
            _ => self.emit(Ok(Instruction::with(Code::Retnq))),
        }
        self.reserved = reserved;
    }

    /// Calls itself `rcx` times.
    pub(super) fn recursive_function(&mut self, label: Label) {
        self.enter_function(label, 2);
        let out = self.program.label();
        let reserved = self.reserved;
        let saved = self.target();
        for register in SAVED.into_iter().chain([RCX]).filter(|&r| r != saved) {
            self.reserved |= 1 << register;
        }
        self.emit(Instruction::with1(Code::Push_r64, r64(saved)));
        let steps = 1 + self.rng.below(2);
        self.steps(steps);
        self.emit(Instruction::with1(Code::Dec_rm32, Register::ECX));
        self.jump(Code::Jle_rel32_64, out);
        self.jump(Code::Call_rel32_64, label);
        self.forget();
        self.form();
        self.bind(out);
        self.emit(Instruction::with1(Code::Pop_r64, r64(saved)));
        self.emit(Ok(Instruction::with(Code::Retnq)));
        self.reserved = reserved;
    }
}

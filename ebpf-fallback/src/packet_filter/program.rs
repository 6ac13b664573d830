//! A [`Region`] as a BPF program that decides on packets.
//!
//! It is reached by a tail call from the gate of `bpf/filter.bpf.c` and
//! returns what socket filters return. Whatever cannot be read of a packet is
//! a reason to keep it.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::expression::{Condition, Expression, Operation, Relation};
use super::layout::{GATE_ARMED, GATE_DROPPED, GATE_KEPT};
use super::region::{Region, Tree};

/// Most instructions; the kernel takes more, but jumps must reach.
const MOST_INSTRUCTIONS: usize = 16_000;
/// Most values that wait on the stack, of the 64 that there is room for.
const DEEPEST: i16 = 60;

/// One instruction, as the kernel wants it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The region needs a larger program than there can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the filter would be too large")]
pub struct TooLarge;

/// Registers of the program: result and scratch, those of helpers, and three
/// that helpers leave alone.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const PACKET: u8 = 6;
const LENGTH: u8 = 7;
const FRAME: u8 = 10;

const LOAD_CONSTANT: u8 = 0x18;
const LOAD_WORD: u8 = 0x61;
const LOAD_HALF: u8 = 0x69;
const LOAD_BYTE: u8 = 0x71;
const LOAD_DOUBLE: u8 = 0x79;
const STORE_DOUBLE: u8 = 0x7b;
const STORE_CONSTANT: u8 = 0x7a;
const ATOMIC_DOUBLE: u8 = 0xdb;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// Arithmetic on 64 bits with a register; less 8 with a constant.
const WITH_REGISTER: u8 = 0x0f;
const ADD: u8 = 0x00;
const SUBTRACT: u8 = 0x10;
const MOVE: u8 = 0xb0;
const SWAP: u8 = 0xdc;
/// Jumps that compare with a register; less 8 with a constant.
const JUMP: u8 = 0x05;
const JUMP_WITH_REGISTER: u8 = 0x0d;
const IF_EQUAL: u8 = 0x10;
const IF_ABOVE: u8 = 0x20;
const IF_NOT_EQUAL: u8 = 0x50;
const IF_BELOW: u8 = 0xa0;
const IF_BELOW_SIGNED: u8 = 0xc0;
/// The second register of [`LOAD_CONSTANT`] for the value of a map.
const MAP_VALUE: u8 = 2;
const SKB_LOAD_BYTES: i32 = 26;
/// Where the length of the packet is in its context.
const CONTEXT_LENGTH: i16 = 0;

/// Where a jump goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    Keep,
    Drop,
    /// To this instruction.
    At(usize),
}

struct Builder {
    code: Vec<Instruction>,
    /// Jumps and where they go.
    jumps: Vec<(usize, Label)>,
    /// Bytes in front of what the program sees of a packet.
    header: i32,
}

/// Makes the program. `header` is how much of a packet the filter sees in
/// front of what the program receives; `gate` is the map that counts and that
/// keeping a packet disarms, if there is one.
///
/// # Errors
/// See [`TooLarge`].
pub(super) fn compile(
    region: &Region,
    header: u16,
    gate: Option<BorrowedFd<'_>>,
) -> Result<Vec<Instruction>, TooLarge> {
    let mut builder = Builder { code: Vec::new(), jumps: Vec::new(), header: i32::from(header) };
    let buffer = region.snapshot.buffer();
    let limit = i32::try_from(buffer.end - buffer.start).map_err(|_| TooLarge)?;
    builder.enter(limit);
    builder.tree(&region.tree)?;
    let keep = builder.end(gate, GATE_KEPT, true);
    let drop = builder.end(gate, GATE_DROPPED, false);
    builder.finish(keep, drop)
}

impl Builder {
    fn emit(&mut self, code: u8, to: u8, from: u8, offset: i16, immediate: i32) {
        self.code.push(Instruction { code, registers: to | from << 4, offset, immediate });
    }

    fn with_register(&mut self, operation: u8, to: u8, from: u8) {
        self.emit(WITH_REGISTER | operation, to, from, 0, 0);
    }

    fn with_constant(&mut self, operation: u8, to: u8, constant: i32) {
        self.emit((WITH_REGISTER - 8) | operation, to, 0, 0, constant);
    }

    fn jump_if(&mut self, relation: u8, left: u8, right: u8, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.emit(JUMP_WITH_REGISTER | relation, left, right, 0, 0);
    }

    fn jump_if_constant(&mut self, relation: u8, left: u8, right: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.emit(JUMP | relation, left, 0, 0, right);
    }

    fn jump(&mut self, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.emit(JUMP, 0, 0, 0, 0);
    }

    /// Finds out how much would be received.
    fn enter(&mut self, limit: i32) {
        self.with_register(MOVE, PACKET, R1);
        self.emit(LOAD_WORD, LENGTH, R1, CONTEXT_LENGTH, 0);
        self.jump_if_constant(IF_BELOW, LENGTH, self.header, Label::Keep);
        self.with_constant(SUBTRACT, LENGTH, self.header);
        let fits = self.code.len() + 2;
        self.jump_if_constant(IF_BELOW, LENGTH, limit, Label::At(fits));
        self.with_constant(MOVE, LENGTH, limit);
    }

    fn tree(&mut self, tree: &Tree) -> Result<(), TooLarge> {
        match tree {
            Tree::Keep => self.jump(Label::Keep),
            Tree::Drop => self.jump(Label::Drop),
            Tree::Branch { condition, then, otherwise } => {
                let branch = self.condition(condition)?;
                self.tree(otherwise)?;
                let here = self.code.len();
                self.jumps.push((branch, Label::At(here)));
                self.tree(then)?;
            }
        }
        if self.code.len() > MOST_INSTRUCTIONS { Err(TooLarge) } else { Ok(()) }
    }

    /// Emits a jump that is taken if `condition` holds, and says where it is.
    fn condition(&mut self, condition: &Condition) -> Result<usize, TooLarge> {
        let relation = match condition.relation {
            Relation::Equal => IF_EQUAL,
            Relation::Below => IF_BELOW,
            Relation::BelowSigned => IF_BELOW_SIGNED,
        };
        self.value(&condition.left, 0)?;
        let slot = Self::slot(0)?;
        self.emit(STORE_DOUBLE, FRAME, R0, slot, 0);
        self.value(&condition.right, 1)?;
        self.emit(LOAD_DOUBLE, R1, FRAME, slot, 0);
        let mut at = self.code.len();
        self.emit(JUMP_WITH_REGISTER | relation, R1, R0, 0, 0);
        if condition.negated {
            // Over the jump that is the opposite.
            self.code[at].offset = 1;
            at = self.code.len();
            self.emit(JUMP, 0, 0, 0, 0);
        }
        Ok(at)
    }

    /// Where a value waits on the stack; the first word is for bytes loaded.
    fn slot(depth: i16) -> Result<i16, TooLarge> {
        if depth >= DEEPEST { Err(TooLarge) } else { Ok(-8 * (depth + 2)) }
    }

    /// Puts a value into [`R0`], using stack from `depth` on.
    fn value(&mut self, value: &Expression, depth: i16) -> Result<(), TooLarge> {
        match value {
            Expression::Constant(value) => {
                self.emit(LOAD_CONSTANT, R0, 0, 0, *value as i32);
                self.emit(0, 0, 0, 0, (*value >> 32) as i32);
            }
            Expression::Length { .. } => self.with_register(MOVE, R0, LENGTH),
            Expression::Packet { offset, bytes } => {
                self.value(offset, depth)?;
                self.load(*bytes);
            }
            Expression::Swapped { bytes, value } => {
                self.value(value, depth)?;
                self.emit(SWAP, R0, 0, 0, 8 * i32::from(*bytes));
            }
            Expression::Binary { operation, left, right } => {
                self.value(left, depth)?;
                let slot = Self::slot(depth)?;
                self.emit(STORE_DOUBLE, FRAME, R0, slot, 0);
                self.value(right, depth + 1)?;
                self.with_register(MOVE, R1, R0);
                self.emit(LOAD_DOUBLE, R0, FRAME, slot, 0);
                let operation = match operation {
                    Operation::Add => ADD,
                    Operation::Subtract => SUBTRACT,
                    Operation::Multiply => 0x20,
                    Operation::Or => 0x40,
                    Operation::And => 0x50,
                    Operation::ShiftLeft => 0x60,
                    Operation::ShiftRight => 0x70,
                    Operation::Xor => 0xa0,
                    Operation::ShiftRightSigned => 0xc0,
                };
                self.with_register(operation, R0, R1);
            }
        }
        Ok(())
    }

    /// Loads the bytes of the packet at the offset in [`R0`], or keeps a
    /// packet that does not have them.
    fn load(&mut self, bytes: u8) {
        const SCRATCH: i16 = -8;

        self.jump_if_constant(IF_BELOW, LENGTH, i32::from(bytes), Label::Keep);
        self.with_register(MOVE, R2, LENGTH);
        self.with_constant(SUBTRACT, R2, i32::from(bytes));
        self.jump_if(IF_ABOVE, R0, R2, Label::Keep);
        self.with_register(MOVE, R1, PACKET);
        self.with_register(MOVE, R2, R0);
        self.with_constant(ADD, R2, self.header);
        self.with_register(MOVE, R3, FRAME);
        self.with_constant(ADD, R3, i32::from(SCRATCH));
        self.with_constant(MOVE, R4, i32::from(bytes));
        self.emit(CALL, 0, 0, 0, SKB_LOAD_BYTES);
        self.jump_if_constant(IF_NOT_EQUAL, R0, 0, Label::Keep);
        let load = match bytes {
            1 => LOAD_BYTE,
            2 => LOAD_HALF,
            4 => LOAD_WORD,
            _ => LOAD_DOUBLE,
        };
        self.emit(load, R0, FRAME, SCRATCH, 0);
    }

    /// Emits one of the two ends and says where it is.
    fn end(&mut self, gate: Option<BorrowedFd<'_>>, counter: i16, keeps: bool) -> usize {
        let at = self.code.len();
        if let Some(gate) = gate {
            self.emit(LOAD_CONSTANT, R1, MAP_VALUE, 0, gate.as_raw_fd());
            self.emit(0, 0, 0, 0, 0);
            if keeps {
                self.emit(STORE_CONSTANT, R1, 0, GATE_ARMED, 0);
            }
            self.with_constant(MOVE, R2, 1);
            self.emit(ATOMIC_DOUBLE, R1, R2, counter, i32::from(ADD));
        }
        self.with_constant(MOVE, R0, if keeps { -1 } else { 0 });
        self.emit(EXIT, 0, 0, 0, 0);
        at
    }

    fn finish(mut self, keep: usize, drop: usize) -> Result<Vec<Instruction>, TooLarge> {
        for (at, label) in self.jumps {
            let to = match label {
                Label::Keep => keep,
                Label::Drop => drop,
                Label::At(to) => to,
            };
            let offset = to as i64 - at as i64 - 1;
            self.code[at].offset = i16::try_from(offset).map_err(|_| TooLarge)?;
        }
        Ok(self.code)
    }
}

#[cfg(test)]
#[path = "../../tests/support/not_tested.rs"]
mod not_tested;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use iced_x86::code_asm::{
        CodeAssembler, byte_ptr, eax, ecx, edx, rax, rcx, rdi, rdx, rsi, word_ptr,
    };

    use super::not_tested::not_tested;
    use super::*;
    use crate::packet_filter::bpf;
    use crate::packet_filter::refusal::Effect;
    use crate::packet_filter::region::explore;
    use crate::packet_filter::state::{Memory, Snapshot};

    const BUFFER: u64 = 0x7000_0000;
    const BUFFER_BYTES: u64 = 256;
    const CODE: u64 = 0x40_0000;

    /// Code without any memory.
    struct Code(Vec<u8>);

    impl Memory for Code {
        fn read(&self, address: u64, _: &mut [u8]) -> Result<(), Effect> {
            Err(Effect::NoMemory(address))
        }

        fn read_code(&self, address: u64, to: &mut [u8]) -> usize {
            let rest = address.checked_sub(CODE).and_then(|start| self.0.get(start as usize..));
            let rest = rest.unwrap_or_default();
            let length = rest.len().min(to.len());
            to[..length].copy_from_slice(&rest[..length]);
            length
        }

        fn is_writable(&self, _: std::ops::Range<u64>) -> bool {
            false
        }
    }

    /// A loop around a receive call that asks all sorts of things.
    fn region() -> Region {
        let mut code = CodeAssembler::new(64).unwrap();
        let (mut again, mut keep) = (code.create_label(), code.create_label());
        code.set_label(&mut again).unwrap();
        code.xor(eax, eax).unwrap();
        code.syscall().unwrap();
        let resume = CODE + 4;
        code.cmp(rax, 40).unwrap();
        code.jl(again).unwrap();
        code.movzx(edx, word_ptr(rsi + 12)).unwrap();
        code.ror(iced_x86::code_asm::dx, 8).unwrap();
        code.cmp(edx, 0x8000).unwrap();
        code.jae(keep).unwrap();
        code.movsx(ecx, byte_ptr(rsi + 14)).unwrap();
        code.test(ecx, ecx).unwrap();
        code.js(again).unwrap();
        code.and(ecx, 15).unwrap();
        code.movzx(eax, word_ptr(rsi + rcx + 4)).unwrap();
        code.shr(eax, 3).unwrap();
        code.sub(eax, edx).unwrap();
        code.xor(eax, 0x155).unwrap();
        code.imul_3(eax, eax, 7).unwrap();
        code.bswap(eax).unwrap();
        code.cmp(eax, 0x1000_0000).unwrap();
        code.mov(ecx, 0).unwrap();
        code.mov(edx, BUFFER_BYTES as u32).unwrap();
        code.jg(again).unwrap();
        code.set_label(&mut keep).unwrap();
        code.ud2().unwrap();
        let mut snapshot = Snapshot { resume, flags: 0x246, ..Snapshot::default() };
        snapshot.registers[2] = BUFFER_BYTES;
        snapshot.registers[6] = BUFFER;
        let code = Code(code.assemble(CODE).unwrap());
        let _ = (rdi, rdx);
        explore(&snapshot, &code).unwrap_or_else(|refused| panic!("{refused}"))
    }

    #[test]
    fn the_kernel_decides_as_the_region_does() {
        if let Err(reason) = crate::packet_filter::permitted() {
            return not_tested(reason);
        }
        let region = region();
        for header in [0u16, 8] {
            let program = compile(&region, header, None).unwrap();
            let program = bpf::load(&program).unwrap_or_else(|error| panic!("{error}"));
            let mut state = 0x9e37_79b9_7f4a_7c15u64;
            let mut dropped = 0;
            for _ in 0..5000 {
                let mut random = || {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    state >> 33
                };
                let length = if random() % 4 == 0 { random() % 60 } else { random() % 400 };
                let packet: Vec<u8> =
                    (0..length).map(|_| random() as u8 >> (random() % 4)).collect();
                let mut seen = vec![0xee; usize::from(header)];
                seen.extend(&packet);
                let received = &packet[..packet.len().min(BUFFER_BYTES as usize)];
                let expected = region.is_dropped(received);
                let result = bpf::tests::run(program.as_fd(), &seen).unwrap();
                assert_eq!(result == 0, expected, "{packet:?}: {result:#x}");
                assert!(result == 0 || result == u32::MAX);
                dropped += u32::from(expected);
            }
            assert!((500..4500).contains(&dropped), "{dropped}");
        }
    }
}

//! Random programs with branches, loops, calls and indirect jumps. Loops
//! run on fuel, so every program ends.

use std::collections::BTreeMap;

use iced_x86::Register;

use crate::generate;
use crate::random::Random;

/// Registers that structured programs use themselves, or point into data.
const RESERVED: [Register; 6] =
    [Register::RBP, generate::FUEL, Register::RBX, Register::RSI, Register::RDI, Register::R13];

/// A program and what is known about its indirect branches.
pub struct Program {
    pub code: Vec<u8>,
    pub predicted: BTreeMap<u64, Vec<u64>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Block(usize),
    Function(usize),
}

struct Assembly {
    code: Vec<u8>,
    /// (offset of a rel32 field, what it leads to)
    fields: Vec<(usize, Label)>,
    places: Vec<(Label, usize)>,
    /// (offset of an indirect branch, where it leads)
    indirect: Vec<(usize, Label)>,
}

impl Assembly {
    fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    fn rel32(&mut self, opcode: &[u8], to: Label) {
        self.bytes(opcode);
        self.fields.push((self.code.len(), to));
        self.bytes(&[0; 4]);
    }

    fn place(&mut self, label: Label) {
        self.places.push((label, self.code.len()));
    }

    fn straight(&mut self, random: &mut Random, most: u64) {
        for _ in 0..random.below(most + 1) {
            let bytes = generate::instruction(random, &POINTERS, &RESERVED, false);
            // What is not translated would end most runs at once.
            if generate::is_translated(&bytes) || random.one_in(20) {
                self.bytes(&bytes);
            }
        }
    }
}

const POINTERS: [Register; 4] = [Register::RBX, Register::RSI, Register::RDI, Register::R13];

/// Makes a program to be placed at `base`.
pub fn program(random: &mut Random, base: u64) -> Program {
    let blocks = 2 + random.below(6) as usize;
    let functions = 1 + random.below(3) as usize;
    let mut a =
        Assembly { code: Vec::new(), fields: Vec::new(), places: Vec::new(), indirect: Vec::new() };
    for block in 0..blocks {
        a.place(Label::Block(block));
        a.straight(random, 5);
        let later = Label::Block(block + 1 + random.below((blocks - block) as u64) as usize);
        match random.below(10) {
            0 | 1 => a.rel32(&[0x0f, 0x80 | random.below(16) as u8], later),
            2 | 3 => {
                // dec r15; jg back
                a.bytes(&[0x49, 0xff, 0xcf]);
                let back = Label::Block(random.below(block as u64 + 1) as usize);
                a.rel32(&[0x0f, 0x8f], back);
            }
            4 | 5 => {
                let callee = Label::Function(random.below(functions as u64) as usize);
                a.rel32(&[0xe8], callee);
            }
            6 => {
                // lea rdx,[rip+..]; jmp rdx
                a.rel32(&[0x48, 0x8d, 0x15], later);
                a.indirect.push((a.code.len(), later));
                a.bytes(&[0xff, 0xe2]);
            }
            7 => {
                // lea r10,[rip+..]; call r10
                let callee = Label::Function(random.below(functions as u64) as usize);
                a.rel32(&[0x4c, 0x8d, 0x15], callee);
                a.indirect.push((a.code.len(), callee));
                a.bytes(&[0x41, 0xff, 0xd2]);
            }
            8 => {
                // jrcxz or loop over a jump
                a.bytes(&[random.pick(&[0xe3, 0xe2]), 5]);
                a.rel32(&[0xe9], later);
            }
            _ => {
                let register = random.below(3) as u8;
                a.bytes(&[0x50 | register, 0x41, 0x50 | register]);
                a.straight(random, 2);
                a.bytes(&[0x41, 0x58 | (7 & random.below(7) as u8), 0x58 | (register ^ 1)]);
            }
        }
    }
    a.place(Label::Block(blocks));
    a.bytes(&[0xcc]);
    for function in 0..functions {
        a.place(Label::Function(function));
        let framed = random.one_in(2);
        if framed {
            // push rbp; mov rbp,rsp; sub rsp,0x20
            a.bytes(&[0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x20]);
        }
        a.straight(random, 4);
        if function + 1 < functions && random.one_in(2) {
            a.rel32(&[0xe8], Label::Function(function + 1));
        }
        match (framed, random.below(3)) {
            (true, 0) => a.bytes(&[0x48, 0x83, 0xc4, 0x20, 0x5d, 0xc3]),
            // leave; ret
            (true, _) => a.bytes(&[0xc9, 0xc3]),
            // ret 8 behind pushing a word would do; here: lea rsp,[rsp-8];
            // mov rax,[rsp+8]; mov [rsp],rax; ret 8
            (false, 0) => a.bytes(&[
                0x48, 0x8d, 0x64, 0x24, 0xf8, 0x48, 0x8b, 0x44, 0x24, 0x08, 0x48, 0x89, 0x04, 0x24,
                0xc2, 0x08, 0x00,
            ]),
            (false, _) => a.bytes(&[0xc3]),
        }
    }
    link(a, random, base)
}

fn link(mut a: Assembly, random: &mut Random, base: u64) -> Program {
    let place = |label: Label| {
        a.places.iter().find(|(known, _)| *known == label).expect("every label is placed").1
    };
    for &(field, label) in &a.fields {
        let relative = place(label) as i32 - (field as i32 + 4);
        a.code[field..field + 4].copy_from_slice(&relative.to_le_bytes());
    }
    let mut predicted = BTreeMap::new();
    for &(at, label) in &a.indirect {
        let right = base + place(label) as u64;
        // Right, wrong first, or not at all.
        let targets = match random.below(4) {
            0 => continue,
            1 => vec![base, right],
            _ => vec![right],
        };
        predicted.insert(base + at as u64, targets);
    }
    Program { code: a.code, predicted }
}

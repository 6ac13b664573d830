//! A generated program: a list of nodes, any of which can be left out, and
//! its assembly.

use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, Decoder, DecoderOptions, IcedError, Instruction,
    InstructionBlock, MemoryOperand, Register,
};
use std::collections::BTreeMap;
use std::fmt::Write;

/// A place in a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label(pub usize);

/// One piece of a program.
#[derive(Debug, Clone)]
pub enum Node {
    /// An instruction that names no other.
    Plain(Instruction),
    /// The label is here.
    Bind(Label),
    /// A direct branch: its near form, or the only one it has.
    Jump(Code, Label),
    /// `lea r64,[rip+label]`.
    Address(Register, Label),
    /// `mov r64,[rip+label]`.
    Load(Register, Label),
    /// An indirect branch, with the targets that the translator is told.
    Indirect(Instruction, Vec<Label>),
    /// A branch through the pointer at the label, as a PLT stub has it.
    Through(Code, Label, Vec<Label>),
    /// 64-bit addresses of labels.
    Pointers(Vec<Label>),
    /// 32-bit distances of labels from the table's start.
    Distances(Vec<Label>),
    /// A constant.
    Quad(u64),
    /// The program's `syscall`.
    End,
}

/// Where nodes lie before they have an address: nothing else lies there.
const NOWHERE: u64 = 0x7000_0000_0000_0000;

/// A program that can be assembled for the guest it was made for.
#[derive(Debug, Clone, Default)]
pub struct Program {
    pub nodes: Vec<Node>,
    pub labels: usize,
}

/// A program's bytes.
#[derive(Debug, Clone)]
pub struct Image {
    pub code: Vec<u8>,
    /// Address of the final `syscall`.
    pub end: u64,
    /// Targets of indirect branches by address.
    pub predictions: BTreeMap<u64, Vec<u64>>,
    /// Addresses of the nodes, labels included.
    pub starts: Vec<u64>,
    /// How many bytes are instructions; data is behind.
    pub text: usize,
}

impl Program {
    pub fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels - 1)
    }

    /// Whether node `index` can be left out.
    pub fn is_optional(&self, index: usize) -> bool {
        !matches!(
            self.nodes[index],
            Node::Bind(_) | Node::End | Node::Pointers(_) | Node::Distances(_) | Node::Quad(_)
        )
    }

    /// Encodes it for `base`. `None` if an instruction cannot be encoded
    /// there, or a branch leads behind the last node.
    pub fn assemble(&self, base: u64) -> Option<Image> {
        self.encode(base).ok().flatten()
    }

    fn encode(&self, base: u64) -> Result<Option<Image>, IcedError> {
        // A label's node is the next one that is not a label.
        let mut place = vec![self.nodes.len(); self.labels];
        let mut waiting = Vec::new();
        for (i, node) in self.nodes.iter().enumerate() {
            match node {
                Node::Bind(label) => waiting.push(label.0),
                _ => waiting.drain(..).for_each(|label| place[label] = i),
            }
        }
        let is_lost = |label: &Label| place[label.0] == self.nodes.len();
        let lost = self.nodes.iter().any(|node| match node {
            Node::Jump(_, to) | Node::Address(_, to) | Node::Load(_, to) => is_lost(to),
            Node::Through(_, to, more) => is_lost(to) || more.iter().any(is_lost),
            Node::Pointers(list) | Node::Distances(list) | Node::Indirect(_, list) => {
                list.iter().any(is_lost)
            }
            _ => false,
        });
        if lost {
            return Ok(None);
        }
        let nowhere = |i: usize| NOWHERE + 16 * i as u64;
        let at = |label: &Label| nowhere(place[label.0]);
        let mut instructions = Vec::with_capacity(self.nodes.len());
        let mut nodes = Vec::with_capacity(self.nodes.len());
        for (i, node) in self.nodes.iter().enumerate() {
            let rip = |label| MemoryOperand::with_base_displ(Register::RIP, at(label) as i64);
            let mut add = |mut instruction: Instruction, first: bool| {
                // A second instruction of one node gets an address between.
                instruction.set_ip(nowhere(i) + u64::from(!first));
                instructions.push(instruction);
                nodes.push(i);
            };
            match node {
                Node::Bind(_) => {}
                Node::Plain(instruction) | Node::Indirect(instruction, _) => {
                    add(*instruction, true);
                }
                Node::Jump(code, to) => add(Instruction::with_branch(*code, at(to))?, true),
                Node::Address(r, to) => {
                    add(Instruction::with2(Code::Lea_r64_m, *r, rip(to))?, true);
                }
                Node::Load(r, from) => {
                    add(Instruction::with2(Code::Mov_r64_rm64, *r, rip(from))?, true);
                }
                Node::Through(code, slot, _) => {
                    add(Instruction::with1(*code, rip(slot))?, true);
                }
                Node::Pointers(labels) => {
                    for n in 0..labels.len() {
                        add(Instruction::with_declare_qword_1(0), n == 0);
                    }
                }
                Node::Distances(labels) => {
                    for n in 0..labels.len() {
                        add(Instruction::with_declare_dword_1(0), n == 0);
                    }
                }
                Node::Quad(value) => add(Instruction::with_declare_qword_1(*value), true),
                Node::End => add(Instruction::with(Code::Syscall), true),
            }
        }
        let block = InstructionBlock::new(&instructions, base);
        let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let mut result = BlockEncoder::encode(64, block, options)?;
        let offsets = &result.new_instruction_offsets;
        Ok(Some(self.link(base, &place, &nodes, &mut result.code_buffer, offsets)))
    }

    /// Fills tables in and finds what the translator is told.
    fn link(
        &self,
        base: u64,
        place: &[usize],
        nodes: &[usize],
        code: &mut Vec<u8>,
        offsets: &[u32],
    ) -> Image {
        // Offset of the first instruction of each node, or of the next one.
        let mut starts = vec![code.len(); self.nodes.len() + 1];
        for (&node, &offset) in nodes.iter().zip(offsets).rev() {
            starts[node] = offset as usize;
        }
        for i in (0..self.nodes.len()).rev() {
            if matches!(self.nodes[i], Node::Bind(_)) {
                starts[i] = starts[i + 1];
            }
        }
        let offset = |label: &Label| starts[place[label.0]];
        let mut image = Image {
            code: Vec::new(),
            end: 0,
            predictions: BTreeMap::new(),
            starts: starts.iter().map(|&s| base + s as u64).collect(),
            text: code.len(),
        };
        for (i, node) in self.nodes.iter().enumerate() {
            let start = starts[i];
            match node {
                Node::Indirect(_, targets) | Node::Through(_, _, targets)
                    if !targets.is_empty() =>
                {
                    let targets = targets.iter().map(|t| base + offset(t) as u64).collect();
                    image.predictions.insert(base + start as u64, targets);
                }
                Node::Pointers(labels) => {
                    image.text = image.text.min(start);
                    for (n, label) in labels.iter().enumerate() {
                        let address = base + offset(label) as u64;
                        code[start + 8 * n..][..8].copy_from_slice(&address.to_le_bytes());
                    }
                }
                Node::Distances(labels) => {
                    image.text = image.text.min(start);
                    for (n, label) in labels.iter().enumerate() {
                        let distance = offset(label) as i32 - start as i32;
                        code[start + 4 * n..][..4].copy_from_slice(&distance.to_le_bytes());
                    }
                }
                Node::Quad(_) => image.text = image.text.min(start),
                Node::End => image.end = base + start as u64,
                _ => {}
            }
        }
        image.code = std::mem::take(code);
        image
    }
}

impl Image {
    /// The program for people, without its data.
    pub fn listing(&self, base: u64) -> String {
        let mut text = String::new();
        let bytes = &self.code[..self.text];
        for i in Decoder::with_ip(64, bytes, base, DecoderOptions::NONE).iter() {
            let _ = writeln!(text, "{:#x} {i}", i.ip());
        }
        text
    }
}

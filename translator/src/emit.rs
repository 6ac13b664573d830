//! A stream of instructions with labels, in sections, and its assembly.

use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, Instruction, InstructionBlock, MemoryOperand, Register,
};

/// A place in the code, bound once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Label(usize);

/// The parts of a fragment in emission order. Jumps between sections lead
/// down the list, except the ones at the end of a poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Section {
    /// The translated blocks.
    Blocks,
    /// Polls on backward edges.
    Polls,
    /// Undoing a guard or fault before an exit.
    Undo,
    /// One `exit_id` write per exit.
    Exits,
    /// Restoring the user's registers and the jump to the runner.
    Restore,
}

const SECTIONS: usize = 5;

#[derive(Debug, Clone)]
struct Item {
    instruction: Instruction,
    /// Where a branch leads.
    target: Option<Label>,
    /// Where a fault of this instruction continues.
    landing: Option<Label>,
}

/// Collects instructions; [`Emitter::assemble`] turns them into bytes.
#[derive(Debug)]
pub(crate) struct Emitter {
    sections: [Vec<Item>; SECTIONS],
    current: Section,
    labels: Vec<Option<(Section, usize)>>,
    marks: Vec<(u64, Section, usize)>,
}

/// The bytes of a fragment and the tables that go with them.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub code: Vec<u8>,
    /// (fault, landing) offsets in code order.
    pub fixups: Vec<(u32, u32)>,
    /// Offsets of the `rel32` fields of runner jumps.
    pub relocations: Vec<u32>,
    /// (user address, offset) of each mark.
    pub map: Vec<(u64, u32)>,
}

/// Where the block is assembled; only differences matter.
const BASE: u64 = 0x1000_0000;
/// Stands for the runner: further from `BASE` than a short jump reaches.
const RUNNER: u64 = 0x4000_0000;

impl Emitter {
    pub(crate) fn new() -> Self {
        Self {
            sections: Default::default(),
            current: Section::Blocks,
            labels: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// Directs what follows into `section` and returns the former one.
    pub(crate) fn select(&mut self, section: Section) -> Section {
        std::mem::replace(&mut self.current, section)
    }

    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// A label here.
    pub(crate) fn here(&mut self) -> Label {
        let label = self.label();
        self.bind(label);
        label
    }

    pub(crate) fn bind(&mut self, label: Label) {
        debug_assert!(self.labels[label.0].is_none(), "label bound twice");
        self.labels[label.0] = Some((self.current, self.sections[self.current as usize].len()));
    }

    /// Notes that the code for the user instruction at `ip` starts here.
    pub(crate) fn mark(&mut self, ip: u64) {
        self.marks.push((ip, self.current, self.sections[self.current as usize].len()));
    }

    pub(crate) fn push(&mut self, instruction: Instruction) {
        self.item(instruction, None, None);
    }

    /// An instruction that continues at `landing` when it faults.
    pub(crate) fn faulting(&mut self, instruction: Instruction, landing: Label) {
        self.item(instruction, None, Some(landing));
    }

    /// A direct branch; `code` is its near form, or `jrcxz`.
    pub(crate) fn branch(&mut self, code: Code, target: Label) {
        let instruction = Instruction::with_branch(code, BASE).expect("a branch code");
        self.item(instruction, Some(target), None);
    }

    pub(crate) fn jmp(&mut self, target: Label) {
        self.branch(Code::Jmp_rel32_64, target);
    }

    /// The jump to the runner's exit stub, the fragment's relocation.
    pub(crate) fn leave(&mut self) {
        self.push(Instruction::with_branch(Code::Jmp_rel32_64, RUNNER).expect("a branch code"));
    }

    fn item(&mut self, instruction: Instruction, target: Option<Label>, landing: Option<Label>) {
        self.sections[self.current as usize].push(Item { instruction, target, landing });
    }

    /// Encodes everything. Err is a description of a translator bug.
    pub(crate) fn assemble(&self) -> Result<Assembled, String> {
        let mut first = [0; SECTIONS];
        for i in 1..SECTIONS {
            first[i] = first[i - 1] + self.sections[i - 1].len();
        }
        let index_of = |label: Label| -> Result<usize, String> {
            let (section, index) =
                self.labels[label.0].ok_or_else(|| format!("label {} is not bound", label.0))?;
            Ok(first[section as usize] + index)
        };
        let items: Vec<&Item> = self.sections.iter().flatten().collect();
        // Branch targets are found by instruction address, which need only
        // be unique.
        let address = |index: usize| BASE + index as u64;
        let mut instructions = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            let mut instruction = item.instruction;
            instruction.set_ip(address(i));
            if let Some(target) = item.target {
                let target = index_of(target)?;
                if target >= items.len() {
                    return Err("branch behind the last instruction".into());
                }
                instruction.set_near_branch64(address(target));
            }
            instructions.push(instruction);
        }
        let encoded = BlockEncoder::encode(
            64,
            InstructionBlock::new(&instructions, BASE),
            BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS,
        )
        .map_err(|error| format!("encoding failed: {error}"))?;
        let offsets = encoded.new_instruction_offsets;
        if let Some(i) = offsets.iter().position(|&offset| offset == u32::MAX) {
            return Err(format!("branch out of reach: {}", items[i].instruction));
        }
        let mut code = encoded.code_buffer;
        let mut fixups = Vec::new();
        let mut relocations = Vec::new();
        for (i, item) in items.iter().enumerate() {
            if let Some(landing) = item.landing {
                fixups.push((offsets[i], offsets[index_of(landing)?]));
            }
            if item.target.is_none()
                && item.instruction.code() == Code::Jmp_rel32_64
                && item.instruction.near_branch64() == RUNNER
            {
                let field = offsets[i] as usize + 1;
                if code[field - 1] != 0xe9 {
                    return Err("the jump to the runner is not jmp rel32".into());
                }
                code[field..field + 4].fill(0);
                relocations.push(field as u32);
            }
        }
        let offset_at = |index: usize| offsets.get(index).copied().unwrap_or(code.len() as u32);
        let map = self
            .marks
            .iter()
            .map(|&(ip, section, index)| (ip, offset_at(first[section as usize] + index)))
            .collect();
        Ok(Assembled { code, fixups, relocations, map })
    }
}

/// `[base+displacement]`, in the shortest encoding.
pub(crate) fn memory(base: Register, displacement: i64) -> MemoryOperand {
    let size = if displacement == 0 { 0 } else { 1 };
    MemoryOperand::new(base, Register::None, 1, displacement, size, false, Register::None)
}

/// `[base+index*scale+displacement]`.
pub(crate) fn indexed(
    base: Register,
    index: Register,
    scale: u32,
    displacement: i64,
) -> MemoryOperand {
    let size = if displacement == 0 { 0 } else { 1 };
    MemoryOperand::new(base, index, scale, displacement, size, false, Register::None)
}

/// A frame field; its operand has an 8-bit displacement by its value.
pub(crate) fn frame(offset: i32) -> MemoryOperand {
    memory(Register::RSP, i64::from(offset))
}

/// Shorthands for what the lowering emits; each is one instruction.
impl Emitter {
    pub(crate) fn mov(&mut self, to: Register, from: Register) {
        self.push(Instruction::with2(Code::Mov_r64_rm64, to, from).expect("mov r,r"));
    }

    pub(crate) fn load(&mut self, to: Register, from: MemoryOperand) {
        self.push(Instruction::with2(Code::Mov_r64_rm64, to, from).expect("mov r,m"));
    }

    pub(crate) fn store(&mut self, to: MemoryOperand, from: Register) {
        self.push(Instruction::with2(Code::Mov_rm64_r64, to, from).expect("mov m,r"));
    }

    pub(crate) fn immediate(&mut self, to: Register, value: u64) {
        self.push(Instruction::with2(Code::Mov_r64_imm64, to, value).expect("mov r,imm64"));
    }

    pub(crate) fn lea(&mut self, to: Register, address: MemoryOperand) {
        self.push(Instruction::with2(Code::Lea_r64_m, to, address).expect("lea"));
    }

    pub(crate) fn bit_reset63(&mut self, register: Register) {
        self.push(Instruction::with2(Code::Btr_rm64_imm8, register, 63).expect("btr"));
    }

    pub(crate) fn bit_set63(&mut self, register: Register) {
        self.push(Instruction::with2(Code::Bts_rm64_imm8, register, 63).expect("bts"));
    }
}

//! A stream of instructions with labels, in sections, and its assembly.

use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, Register};

use crate::assemble::Branch;
use crate::frame::{self, REP_LIMIT, SLOW_WORK};

/// A place in the code, bound once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Label(u32);

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

/// How many sections there are.
pub(crate) const SECTIONS: usize = 5;

/// What an [`Item`] does.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    /// Anything but a branch.
    Plain(Instruction),
    /// A branch inside the fragment.
    Branch(Branch, Label),
    /// The jump to the runner.
    Leave,
}

/// One instruction to be.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub operation: Operation,
    /// Where a fault of this instruction continues.
    pub landing: Option<Label>,
}

impl Item {
    /// Instructions that executing it takes, repetitions counted.
    fn work(&self) -> u32 {
        match &self.operation {
            Operation::Plain(instruction)
                if instruction.has_rep_prefix() || instruction.has_repne_prefix() =>
            {
                REP_LIMIT.unsigned_abs()
            }
            Operation::Plain(instruction) if is_slow(instruction.mnemonic()) => SLOW_WORK,
            _ => 1,
        }
    }
}

/// Whether it counts for [`SLOW_WORK`] instructions.
fn is_slow(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Div
            | M::Idiv
            | M::Rdrand
            | M::Rdseed
            | M::Pause
            | M::Clflush
            | M::Clflushopt
            | M::Clwb
            | M::Mfence
    )
}

/// Collects instructions; [`assemble`](crate::assemble::assemble) turns them
/// into bytes.
#[derive(Debug)]
pub(crate) struct Emitter {
    pub(crate) sections: [Vec<Item>; SECTIONS],
    current: Section,
    labels: Vec<Option<(Section, usize)>>,
    pub(crate) marks: Vec<(u64, Section, usize)>,
}

impl Emitter {
    /// For about `items` instructions.
    pub(crate) fn new(items: usize) -> Self {
        Self {
            sections: [
                Vec::with_capacity(items),
                Vec::new(),
                Vec::with_capacity(items / 4),
                Vec::with_capacity(items / 2),
                Vec::with_capacity(10),
            ],
            current: Section::Blocks,
            labels: Vec::with_capacity(items / 2),
            marks: Vec::with_capacity(items / 4),
        }
    }

    /// Directs what follows into `section` and returns the former one.
    pub(crate) fn select(&mut self, section: Section) -> Section {
        std::mem::replace(&mut self.current, section)
    }

    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() as u32 - 1)
    }

    /// A label here.
    pub(crate) fn here(&mut self) -> Label {
        let label = self.label();
        self.bind(label);
        label
    }

    pub(crate) fn bind(&mut self, label: Label) {
        debug_assert!(self.labels[label.0 as usize].is_none(), "label bound twice");
        self.labels[label.0 as usize] =
            Some((self.current, self.sections[self.current as usize].len()));
    }

    /// Notes that the code for the user instruction at `ip` starts here.
    pub(crate) fn mark(&mut self, ip: u64) {
        self.marks.push((ip, self.current, self.sections[self.current as usize].len()));
    }

    pub(crate) fn push(&mut self, instruction: Instruction) {
        self.item(Operation::Plain(instruction), None);
    }

    /// An instruction that continues at `landing` when it faults.
    pub(crate) fn faulting(&mut self, instruction: Instruction, landing: Label) {
        self.item(Operation::Plain(instruction), Some(landing));
    }

    /// A direct branch; `code` is its near form, or `jrcxz`.
    pub(crate) fn branch(&mut self, code: Code, target: Label) {
        self.item(Operation::Branch(Branch::of(code), target), None);
    }

    pub(crate) fn jmp(&mut self, target: Label) {
        self.item(Operation::Branch(Branch::Always, target), None);
    }

    /// The jump to the runner's exit stub, the fragment's relocation.
    pub(crate) fn leave(&mut self) {
        self.item(Operation::Leave, None);
    }

    fn item(&mut self, operation: Operation, landing: Option<Label>) {
        self.sections[self.current as usize].push(Item { operation, landing });
    }

    /// Takes off the budget what was executed since the last poll. How much that is
    /// [`count_work`](Self::count_work) fills in.
    pub(crate) fn take_off_budget(&mut self) {
        let field = frame(frame::BUDGET);
        self.push(Instruction::with2(Code::Sub_rm32_imm32, field, 0).expect("sub m32,imm32"));
    }

    /// The most instructions, repetitions counted, of a path from the entry or a poll to
    /// the next poll, or out. Has each poll take off what the longest path to the jump
    /// backward behind it has.
    pub(crate) fn count_work(&mut self) -> u32 {
        let mut starts = [0; SECTIONS];
        let mut count = 0;
        for (start, items) in starts.iter_mut().zip(&self.sections) {
            *start = count;
            count += items.len();
        }
        let place = |label: Label| {
            let (section, index) = self.place_of(label).unwrap_or((Section::Blocks, 0));
            starts[section as usize] + index
        };
        // Of what is before each item, from the first to the last: jumps backward end a
        // poll, so what is left has no loops.
        let mut before = vec![0_u32; count + 1];
        let (mut longest, mut poll, mut polls) = (0, None, Vec::new());
        for (at, item) in self.sections.iter().flatten().enumerate() {
            let path = before[at] + item.work();
            longest = longest.max(path);
            let mut reach = |target: usize| before[target] = before[target].max(path);
            match item.operation {
                Operation::Plain(instruction) => {
                    reach(at + 1);
                    if instruction.code() == Code::Sub_rm32_imm32
                        && instruction.memory_base() == Register::RSP
                    {
                        poll = Some(at);
                    }
                }
                Operation::Branch(branch, label) => {
                    let target = place(label);
                    if target > at {
                        reach(target);
                    } else if let Some(poll) = poll.take() {
                        polls.push((poll, path));
                    }
                    if branch != Branch::Always {
                        reach(at + 1);
                    }
                }
                Operation::Leave => {}
            }
            if let Some(landing) = item.landing.map(place).filter(|landing| *landing > at) {
                reach(landing);
            }
        }
        for (at, path) in polls {
            let section = (0..SECTIONS).rfind(|section| starts[*section] <= at);
            let section = section.expect("the first one starts at 0");
            let items = &mut self.sections[section];
            if let Operation::Plain(instruction) = &mut items[at - starts[section]].operation {
                instruction.set_immediate32(path);
            }
        }
        longest
    }

    /// The section and index in it that `label` is bound to.
    pub(crate) fn place_of(&self, label: Label) -> Option<(Section, usize)> {
        self.labels[label.0 as usize]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_path_is_that_between_polls() {
        let mut emit = Emitter::new(16);
        let mov = |emit: &mut Emitter, count: usize| {
            for _ in 0..count {
                emit.mov(Register::RAX, Register::RCX);
            }
        };
        let top = emit.here();
        let (aside, landing) = (emit.label(), emit.label());
        mov(&mut emit, 3);
        emit.branch(Code::Jne_rel32_64, aside);
        mov(&mut emit, 5);
        emit.leave();
        emit.select(Section::Polls);
        emit.bind(aside);
        mov(&mut emit, 2);
        // Back: a path of its own begins there.
        emit.jmp(top);
        assert_eq!(emit.count_work(), 3 + 1 + 5 + 1);
        emit.select(Section::Undo);
        emit.bind(landing);
        mov(&mut emit, 20);
        emit.leave();
        assert_eq!(emit.count_work(), 21);
        emit.select(Section::Polls);
        let fault = Instruction::with2(Code::Mov_r64_rm64, Register::RAX, memory(Register::RCX, 0));
        emit.faulting(fault.expect("mov r,m"), landing);
        // Behind the jump, so nothing leads there but itself.
        assert_eq!(emit.count_work(), 22);
    }

    #[test]
    fn polls_take_off_what_leads_to_their_jumps() {
        let mut emit = Emitter::new(16);
        let (top, shorter) = (emit.here(), emit.label());
        emit.branch(Code::Jne_rel32_64, shorter);
        for _ in 0..4 {
            emit.mov(Register::RAX, Register::RCX);
        }
        emit.bind(shorter);
        emit.take_off_budget();
        emit.mov(Register::RAX, Register::RCX);
        emit.jmp(top);
        emit.count_work();
        let taken = emit.sections[Section::Blocks as usize].iter().find_map(|item| {
            let Operation::Plain(instruction) = item.operation else { return None };
            (instruction.code() == Code::Sub_rm32_imm32).then(|| instruction.immediate32())
        });
        assert_eq!(taken, Some(1 + 4 + 1 + 1 + 1));
    }

    #[test]
    fn repetitions_and_slow_instructions_count() {
        let mut emit = Emitter::new(1);
        let copy = Instruction::with_rep_movsb(64).expect("rep movsb");
        emit.push(copy);
        assert_eq!(emit.count_work(), REP_LIMIT.unsigned_abs());
        emit.push(Instruction::with(Code::Pause));
        assert_eq!(emit.count_work(), REP_LIMIT.unsigned_abs() + SLOW_WORK);
    }
}

//! Random guest programs that end at a `syscall`. They mostly keep to their
//! data and stack; where one does not, it faults, the same way natively.
//!
//! * this file: what is known of registers, and instructions of all forms;
//! * [`addresses`]: where accesses go, in every addressing mode;
//! * [`control`]: branches, loops, calls, jump tables;
//! * [`stack`]: what programs do with their stack pointer;
//! * [`special`]: string, locked and dividing instructions.

mod addresses;
mod control;
mod special;
mod stack;

use crate::catalogue::Catalogue;
use crate::operands::instantiate;
use crate::program::{Label, Node, Program};
use crate::rng::Rng;
use iced_x86::{
    Code, Encoder, IcedError, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register,
};
use ub_ring3::GuestMemory;

pub const RAX: usize = 0;
pub const RCX: usize = 1;
pub const RDX: usize = 2;
pub const RSP: usize = 4;
pub const RBP: usize = 5;
pub const RSI: usize = 6;
pub const RDI: usize = 7;
/// What a function saves before it uses it: loops may count in these across
/// calls.
const SAVED: [usize; 6] = [3, RBP, 12, 13, 14, 15];

pub fn r64(number: usize) -> Register {
    Register::RAX + number as u32
}

pub fn r32(number: usize) -> Register {
    Register::EAX + number as u32
}

/// What the generator knows of a register where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    Nothing,
    /// An address in the data area: an offset in `low..=high` that is
    /// `low` modulo `step`.
    Pointer {
        low: i64,
        high: i64,
        step: i64,
    },
    /// At most this, as an unsigned number.
    Small(u64),
}

/// Where a program will run.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    pub data: u64,
    pub code: u64,
    pub low: bool,
    pub fs_base: u64,
}

impl Guest {
    pub fn of(memory: &GuestMemory) -> Self {
        let fs_base: u64;
        // SAFETY: the x86-64 psABI: the word at fs:0 is the FS base itself.
        unsafe {
            std::arch::asm!(
                "mov {}, fs:[0]", out(reg) fs_base, options(nostack, readonly, preserves_flags)
            );
        }
        Self { data: memory.data(), code: memory.code(), low: memory.is_low(), fs_base }
    }
}

/// What [`generate`] makes.
pub struct Made {
    pub program: Program,
    /// Registers that hold addresses of the data area all the time, with
    /// their offsets.
    pub pointers: Vec<(usize, i64)>,
}

pub struct Generator<'a> {
    rng: &'a mut Rng,
    catalogue: &'a Catalogue,
    factory: InstructionInfoFactory,
    guest: Guest,
    program: Program,
    known: [Known; 16],
    /// Registers that must keep their value, one bit each.
    reserved: u16,
    /// Bytes above the stack pointer that may be overwritten.
    locals: i64,
    /// Bytes below `rbp` that may be overwritten, in a function with a frame.
    frame: i64,
    depth: usize,
    functions: Vec<Label>,
    recursive: Option<Label>,
    /// Constants and tables behind the code.
    tail: Vec<Node>,
    /// Percentage of accesses through registers with anything in them.
    wild: usize,
    /// The next access is near the end of a cache line.
    line_end: bool,
    in_function: bool,
}

/// Makes a program of about `length` steps.
pub fn generate(rng: &mut Rng, catalogue: &Catalogue, guest: Guest, length: usize) -> Made {
    let mut g = Generator {
        wild: if rng.chance(10) { 10 } else { 0 },
        rng,
        catalogue,
        factory: InstructionInfoFactory::new(),
        guest,
        program: Program::default(),
        known: [Known::Nothing; 16],
        reserved: 1 << RSP,
        locals: 512,
        frame: 0,
        depth: 0,
        functions: Vec::new(),
        recursive: None,
        tail: Vec::new(),
        line_end: false,
        in_function: false,
    };
    let mut pointers = Vec::new();
    for _ in 0..1 + g.rng.below(3) {
        let register = g.target();
        // Others than these may hold what string instructions need.
        if !matches!(register, RAX | RCX | RDX | RSI | RDI) {
            let offset = 8192 + 64 * g.rng.below(768) as i64;
            g.known[register] = Known::Pointer { low: offset, high: offset, step: 1 };
            g.reserved |= 1 << register;
            pointers.push((register, offset));
        }
    }
    let functions: Vec<Label> = (0..g.rng.below(4)).map(|_| g.program.label()).collect();
    g.functions.clone_from(&functions);
    g.steps(length);
    g.program.nodes.push(Node::End);
    for (i, &function) in functions.iter().enumerate() {
        // A function calls only those behind it.
        g.functions = functions[i + 1..].to_vec();
        g.function(function, length / 4);
    }
    if let Some(label) = g.recursive.take() {
        g.functions.clear();
        g.recursive_function(label);
    }
    let mut program = g.program;
    program.nodes.append(&mut g.tail);
    Made { program, pointers }
}

impl Generator<'_> {
    fn push(&mut self, node: Node) {
        self.program.nodes.push(node);
    }

    /// Adds an instruction and forgets what it changes.
    ///
    /// # Panics
    /// If the operands do not suit the code: a bug of the generator.
    fn emit(&mut self, instruction: Result<Instruction, IcedError>) {
        let instruction = instruction.expect("operands that suit the code");
        for register in self.written(&instruction) {
            self.known[register] = Known::Nothing;
        }
        self.push(Node::Plain(instruction));
    }

    /// Numbers of the general registers that it may write.
    fn written(&mut self, instruction: &Instruction) -> Vec<usize> {
        let used = self.factory.info(instruction).used_registers().iter();
        used.filter(|u| !matches!(u.access(), OpAccess::Read | OpAccess::CondRead))
            .filter(|u| u.register().is_gpr())
            .map(|u| u.register().full_register().number())
            .collect()
    }

    fn is_free(&self, register: usize) -> bool {
        self.reserved & (1 << register) == 0
    }

    /// A register that may be written.
    fn target(&mut self) -> usize {
        loop {
            let register = self.rng.below(16);
            if self.is_free(register) {
                return register;
            }
        }
    }

    /// Any register.
    fn source(&mut self) -> usize {
        self.rng.below(16)
    }

    /// A register that functions save, to write, reserved until
    /// [`Self::release`].
    fn reserve(&mut self) -> Option<usize> {
        let first = self.rng.below(SAVED.len());
        let mut order = (0..SAVED.len()).map(|i| SAVED[(first + i) % SAVED.len()]);
        let register = order.find(|&r| self.is_free(r))?;
        self.reserved |= 1 << register;
        Some(register)
    }

    fn release(&mut self, register: usize) {
        self.reserved &= !(1 << register);
        self.known[register] = Known::Nothing;
    }

    /// What does not hold where other paths join.
    fn forget(&mut self) {
        for register in 0..16 {
            if self.is_free(register) {
                self.known[register] = Known::Nothing;
            }
        }
    }

    fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..=51 => self.form(),
            52..=57 => self.known_value(),
            58..=60 => self.compare(),
            61..=70 => self.stack(),
            71..=73 => self.string(),
            74..=77 => self.locked(),
            78 | 79 => self.divide(),
            80..=84 => self.branch(),
            85..=90 => self.looped(),
            91..=94 => self.call(),
            95 | 96 => self.indirect(),
            97 | 98 => self.switch(),
            _ => self.counter(),
        }
    }

    /// An instruction of any form.
    fn form(&mut self) {
        for _ in 0..10 {
            let shape = self.catalogue.pick(self.rng);
            let mnemonic = shape.code.mnemonic();
            if matches!(mnemonic, Mnemonic::Div | Mnemonic::Idiv) && !self.rng.chance(5) {
                continue;
            }
            if self.shaped(shape) {
                return;
            }
        }
    }

    /// An instruction of this shape, if one comes up that may stand here.
    fn shaped(&mut self, shape: crate::operands::Shape) -> bool {
        for _ in 0..4 {
            // The memory operand may want nodes in front; drop them again if
            // the instruction does not suit.
            let (nodes, known) = (self.program.nodes.len(), self.known);
            let mut operands = Drawn { generator: self };
            if let Some(instruction) = operands.instantiate(shape) {
                let written = self.written(&instruction);
                let suits = written.iter().all(|&register| self.is_free(register));
                if suits && Encoder::new(64).encode(&instruction, self.guest.code).is_ok() {
                    self.emit(Ok(instruction));
                    return true;
                }
            }
            self.program.nodes.truncate(nodes);
            self.known = known;
        }
        false
    }

    /// Flags for what follows, often alive across accesses.
    fn compare(&mut self) {
        let (a, b) = (self.source(), self.source());
        let (which, value) = (self.rng.below(4), i32::from(self.rng.next() as i8));
        self.emit(match which {
            0 => Instruction::with2(Code::Test_rm64_r64, r64(a), r64(b)),
            1 => Instruction::with2(Code::Cmp_rm32_imm8, r32(a), value),
            _ => Instruction::with2(Code::Cmp_r64_rm64, r64(a), r64(b)),
        });
        if self.rng.chance(60) {
            self.access();
        }
        // Something that reads them.
        if self.rng.chance(50) {
            let condition = self.rng.below(16);
            let (to, from) = (self.target(), self.source());
            // Both families are in the order of the encoding.
            let moves = Code::Cmovo_r64_rm64 as usize + 3 * condition;
            let sets = Code::Seto_rm8 as usize + condition;
            let byte =
                if to < 4 { Register::AL + to as u32 } else { Register::SPL + to as u32 - 4 };
            let set = self.rng.chance(50);
            self.emit(if set {
                Code::try_from(sets).and_then(|c| Instruction::with1(c, byte))
            } else {
                Code::try_from(moves).and_then(|c| Instruction::with2(c, r64(to), r64(from)))
            });
        }
    }

    /// A register gets a value that is known: a small number or a pointer.
    fn known_value(&mut self) {
        let target = self.target();
        match self.rng.below(8) {
            0 => {
                let value = self.rng.below(64) as i32;
                self.emit(Instruction::with2(Code::Mov_r32_imm32, r32(target), value));
                self.known[target] = Known::Small(value as u64);
            }
            1 => {
                self.emit(Instruction::with2(Code::And_rm32_imm8, r32(target), 0x3f));
                self.known[target] = Known::Small(0x3f);
            }
            2 => {
                self.emit(Instruction::with2(Code::Shr_rm64_imm8, r64(target), 58));
                self.known[target] = Known::Small(63);
            }
            3 => {
                let address = self.address(1);
                self.emit(Instruction::with2(Code::Movzx_r32_rm8, r32(target), address));
                self.known[target] = Known::Small(255);
            }
            4 => {
                let value = self.rng.value();
                self.emit(Instruction::with2(Code::Mov_r64_imm64, r64(target), value));
            }
            _ => self.pointer(target),
        }
    }
}

/// Draws the operands of an instruction for the place where it will stand.
struct Drawn<'a, 'b> {
    generator: &'a mut Generator<'b>,
}

impl Drawn<'_, '_> {
    fn instantiate(&mut self, shape: crate::operands::Shape) -> Option<Instruction> {
        // Both need the generator's numbers: give this step its own.
        let mut rng = Rng(self.generator.rng.next());
        instantiate(&mut rng, shape, self)
    }
}

impl crate::operands::Operands for Drawn<'_, '_> {
    fn gpr(&mut self, rng: &mut Rng) -> usize {
        if rng.chance(75) { self.generator.target() } else { self.generator.source() }
    }

    fn memory(&mut self, _: &mut Rng, size: usize) -> iced_x86::MemoryOperand {
        self.generator.address(size)
    }
}

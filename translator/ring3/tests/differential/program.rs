//! Random guest programs that end at a `syscall`, touch only their data and
//! stack, and leave no undefined flag behind.

use crate::rng::Rng;
use iced_x86::code_asm::{CodeAssembler, CodeLabel};
use iced_x86::{Code, IcedError, Instruction, MemoryOperand, Register};
use ub_ring3::GuestMemory;
use ub_ring3::memory::DATA_BYTES;

type Asm = Result<(), IcedError>;

const R64: [Register; 16] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RBX,
    Register::RSP,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];
const RSP: usize = 4;

/// What the generator knows of a register where it stands.
#[derive(Clone, Copy, PartialEq)]
enum Known {
    Nothing,
    /// Address of this offset into the data area.
    Pointer(i64),
    /// At most this.
    Small(i64),
}

#[derive(Clone, Copy, PartialEq)]
enum Size {
    B,
    W,
    D,
    Q,
}

fn sized(register: usize, size: Size) -> Register {
    match size {
        // Only the REX forms: ah and friends are generated apart.
        Size::B => match register {
            4 => Register::SPL,
            5 => Register::BPL,
            6 => Register::SIL,
            7 => Register::DIL,
            0..4 => Register::AL + register as u32,
            _ => Register::R8L + (register as u32 - 8),
        },
        Size::W => Register::AX + register as u32,
        Size::D => Register::EAX + register as u32,
        Size::Q => R64[register],
    }
}

/// `op r/m,r`, `op r,r/m` and `op r/m,imm` of one operation, by size.
struct Alu {
    store: [Code; 4],
    load: [Code; 4],
    immediate: [Code; 4],
}

macro_rules! alu {
    ($($s8:ident $s16:ident $s32:ident $s64:ident $l8:ident $l16:ident $l32:ident $l64:ident
       $i8:ident $i16:ident $i32:ident $i64:ident;)*) => {
        &[$(Alu {
            store: [Code::$s8, Code::$s16, Code::$s32, Code::$s64],
            load: [Code::$l8, Code::$l16, Code::$l32, Code::$l64],
            immediate: [Code::$i8, Code::$i16, Code::$i32, Code::$i64],
        }),*]
    };
}

/// The last three read the carry flag (adc, sbb) or only compare.
const ALU: &[Alu] = alu! {
    Add_rm8_r8 Add_rm16_r16 Add_rm32_r32 Add_rm64_r64
    Add_r8_rm8 Add_r16_rm16 Add_r32_rm32 Add_r64_rm64
    Add_rm8_imm8 Add_rm16_imm8 Add_rm32_imm8 Add_rm64_imm32;
    Sub_rm8_r8 Sub_rm16_r16 Sub_rm32_r32 Sub_rm64_r64
    Sub_r8_rm8 Sub_r16_rm16 Sub_r32_rm32 Sub_r64_rm64
    Sub_rm8_imm8 Sub_rm16_imm8 Sub_rm32_imm8 Sub_rm64_imm32;
    And_rm8_r8 And_rm16_r16 And_rm32_r32 And_rm64_r64
    And_r8_rm8 And_r16_rm16 And_r32_rm32 And_r64_rm64
    And_rm8_imm8 And_rm16_imm8 And_rm32_imm8 And_rm64_imm32;
    Or_rm8_r8 Or_rm16_r16 Or_rm32_r32 Or_rm64_r64
    Or_r8_rm8 Or_r16_rm16 Or_r32_rm32 Or_r64_rm64
    Or_rm8_imm8 Or_rm16_imm8 Or_rm32_imm8 Or_rm64_imm32;
    Xor_rm8_r8 Xor_rm16_r16 Xor_rm32_r32 Xor_rm64_r64
    Xor_r8_rm8 Xor_r16_rm16 Xor_r32_rm32 Xor_r64_rm64
    Xor_rm8_imm8 Xor_rm16_imm8 Xor_rm32_imm8 Xor_rm64_imm32;
    Cmp_rm8_r8 Cmp_rm16_r16 Cmp_rm32_r32 Cmp_rm64_r64
    Cmp_r8_rm8 Cmp_r16_rm16 Cmp_r32_rm32 Cmp_r64_rm64
    Cmp_rm8_imm8 Cmp_rm16_imm8 Cmp_rm32_imm8 Cmp_rm64_imm32;
    Adc_rm8_r8 Adc_rm16_r16 Adc_rm32_r32 Adc_rm64_r64
    Adc_r8_rm8 Adc_r16_rm16 Adc_r32_rm32 Adc_r64_rm64
    Adc_rm8_imm8 Adc_rm16_imm8 Adc_rm32_imm8 Adc_rm64_imm32;
    Sbb_rm8_r8 Sbb_rm16_r16 Sbb_rm32_r32 Sbb_rm64_r64
    Sbb_r8_rm8 Sbb_r16_rm16 Sbb_r32_rm32 Sbb_r64_rm64
    Sbb_rm8_imm8 Sbb_rm16_imm8 Sbb_rm32_imm8 Sbb_rm64_imm32;
};
const READS_CARRY: usize = 6;

const MOV_LOAD: [Code; 4] =
    [Code::Mov_r8_rm8, Code::Mov_r16_rm16, Code::Mov_r32_rm32, Code::Mov_r64_rm64];
const MOV_STORE: [Code; 4] =
    [Code::Mov_rm8_r8, Code::Mov_rm16_r16, Code::Mov_rm32_r32, Code::Mov_rm64_r64];

/// A generated program.
pub struct Program {
    pub code: Vec<u8>,
    /// Address of the final `syscall`.
    pub end: u64,
}

struct Generator<'a> {
    rng: &'a mut Rng,
    a: CodeAssembler,
    memory: &'a GuestMemory,
    known: [Known; 16],
    /// Loop counters: written by loops only.
    counters: [usize; 2],
    depth: usize,
    flags_defined: bool,
    functions: Vec<CodeLabel>,
    bmi2: bool,
    avx2: bool,
    avx512: bool,
    in_function: bool,
}

/// Makes a program of about `length` steps for `memory`'s addresses.
pub fn generate(rng: &mut Rng, memory: &GuestMemory, length: usize) -> Program {
    build(rng, memory, length).expect("the generator makes only encodable instructions")
}

fn build(rng: &mut Rng, memory: &GuestMemory, length: usize) -> Result<Program, IcedError> {
    let writable = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    let first = rng.pick(&writable);
    let second = rng.pick(&writable);
    let mut g = Generator {
        rng,
        a: CodeAssembler::new(64)?,
        memory,
        known: [Known::Nothing; 16],
        counters: [first, if second == first { ((first + 8) % 16) | 1 } else { second }],
        depth: 0,
        flags_defined: false,
        functions: Vec::new(),
        bmi2: std::arch::is_x86_feature_detected!("bmi2")
            && std::arch::is_x86_feature_detected!("movbe"),
        avx2: std::arch::is_x86_feature_detected!("avx2"),
        avx512: std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512bw"),
        in_function: false,
    };
    for _ in 0..g.rng.below(3) {
        let label = g.a.create_label();
        g.functions.push(label);
    }
    let functions = g.functions.clone();
    g.steps(length)?;
    // The flags are alive at the end, across a last access.
    g.define_flags()?;
    if g.rng.chance(50) {
        g.load()?;
    }
    let mut end = g.a.create_label();
    g.a.set_label(&mut end)?;
    g.a.syscall()?;
    for mut label in functions {
        g.a.set_label(&mut label)?;
        g.functions.clear();
        g.forget();
        g.function(length / 4)?;
    }
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = g.a.assemble_options(memory.code(), options)?;
    let end = result.label_ip(&end)?;
    Ok(Program { code: result.inner.code_buffer, end })
}

impl Generator<'_> {
    fn forget(&mut self) {
        self.known = [Known::Nothing; 16];
        self.flags_defined = false;
    }

    fn emit(&mut self, instruction: Instruction) -> Asm {
        self.a.add_instruction(instruction)
    }

    /// A register that may be written.
    fn target(&mut self) -> usize {
        loop {
            let r = self.rng.below(16);
            if r != RSP && !self.counters.contains(&r) {
                return r;
            }
        }
    }

    /// Any register to read; now and then the stack pointer.
    fn source(&mut self) -> usize {
        self.rng.below(16)
    }

    fn wrote(&mut self, register: usize) {
        self.known[register] = Known::Nothing;
    }

    fn free(&self, register: usize) -> bool {
        !self.counters.contains(&register)
    }

    fn define_flags(&mut self) -> Asm {
        let (a, b) = (self.source(), self.source());
        self.emit(Instruction::with2(Code::Cmp_r64_rm64, R64[a], R64[b])?)?;
        self.flags_defined = true;
        Ok(())
    }

    fn need_flags(&mut self) -> Asm {
        if self.flags_defined { Ok(()) } else { self.define_flags() }
    }

    fn load_pointer(&mut self, register: usize) -> Asm {
        let offset = 4096 + self.rng.below(DATA_BYTES - 8192) as i64;
        let address = self.memory.data() as i64 + offset;
        if self.rng.chance(50) {
            let instruction = Instruction::with2(Code::Mov_r64_imm64, R64[register], address)?;
            self.emit(instruction)?;
        } else {
            let memory = MemoryOperand::with_base_displ(Register::RIP, address);
            self.emit(Instruction::with2(Code::Lea_r64_m, R64[register], memory)?)?;
        }
        self.known[register] = Known::Pointer(offset);
        Ok(())
    }

    fn find(&mut self, wanted: impl Fn(Known) -> bool) -> Option<usize> {
        let start = self.rng.below(16);
        (0..16).map(|i| (start + i) % 16).find(|r| wanted(self.known[*r]))
    }

    /// An operand of at most 64 bytes inside the data or stack area.
    fn memory(&mut self) -> Result<MemoryOperand, IcedError> {
        match self.rng.below(10) {
            0 => {
                let at = self.memory.data() as i64 + self.rng.below(DATA_BYTES - 64) as i64;
                return Ok(MemoryOperand::with_base_displ(Register::RIP, at));
            }
            1 | 2 => {
                // In a function, what lies above may be the return address.
                let reach = if self.in_function { 192 } else { 512 };
                let displacement = self.rng.below(reach) as i64 - 256;
                return Ok(MemoryOperand::with_base_displ(Register::RSP, displacement));
            }
            _ => {}
        }
        let base = match self.find(|k| matches!(k, Known::Pointer(_))) {
            Some(base) => base,
            None => {
                let base = self.target();
                self.load_pointer(base)?;
                base
            }
        };
        let Known::Pointer(offset) = self.known[base] else { unreachable!("just found") };
        let room = |rng: &mut Rng, used: i64| {
            let low = (-offset).max(-3000);
            let high = (DATA_BYTES as i64 - 64 - offset - used).min(3000);
            low + rng.below((high - low).max(1) as usize) as i64
        };
        if self.rng.chance(30)
            && let Some(index) = self.find(|k| matches!(k, Known::Small(_)))
            && let Known::Small(most) = self.known[index]
        {
            let scale = self.rng.pick(&[1u32, 2, 4, 8]);
            let displacement = room(self.rng, most * i64::from(scale));
            return Ok(MemoryOperand::with_base_index_scale_displ_size(
                R64[base],
                R64[index],
                scale,
                displacement,
                if displacement == 0 { 0 } else { 8 },
            ));
        }
        let displacement = if self.rng.chance(30) { 0 } else { room(self.rng, 0) };
        Ok(MemoryOperand::with_base_displ(R64[base], displacement))
    }

    fn steps(&mut self, count: usize) -> Asm {
        for _ in 0..count {
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Asm {
        match self.rng.below(42) {
            0..=6 => self.alu(),
            7..=10 => self.load(),
            11..=13 => self.store(),
            14 | 15 => self.small(),
            16 | 17 => self.unary(),
            18 => self.shift(),
            19 => self.multiply(),
            20 => self.divide(),
            21 => self.conditional(),
            22 => self.bits(),
            23..=25 => self.stack(),
            26 => self.frame(),
            27..=29 => self.vector(),
            30 => self.float(),
            31 => self.string(),
            32 | 33 => self.locked(),
            34 => self.branch(),
            35 => self.counted_loop(),
            36 | 37 => self.call(),
            38 => self.extend(),
            39 | 40 => self.modern(),
            _ => self.thread_pointer(),
        }
    }

    fn size(&mut self) -> usize {
        self.rng.pick(&[0, 1, 2, 3, 2, 3])
    }

    fn alu(&mut self) -> Asm {
        let operation = self.rng.below(ALU.len());
        let alu = &ALU[operation];
        if operation >= READS_CARRY {
            self.need_flags()?;
        }
        let size = self.size();
        let s = [Size::B, Size::W, Size::D, Size::Q][size];
        let (target, source) = (self.target(), self.source());
        match self.rng.below(5) {
            0 => {
                let memory = self.memory()?;
                self.emit(Instruction::with2(alu.store[size], memory, sized(source, s))?)?;
            }
            1 => {
                let memory = self.memory()?;
                self.emit(Instruction::with2(alu.load[size], sized(target, s), memory)?)?;
                self.wrote(target);
            }
            2 => {
                let (memory, value) = (self.memory()?, self.rng.next() as i8);
                self.emit(Instruction::with2(alu.immediate[size], memory, i32::from(value))?)?;
            }
            3 => {
                let value = i32::from(self.rng.next() as i8);
                let target64 = sized(target, s);
                self.emit(Instruction::with2(alu.immediate[size], target64, value)?)?;
                self.wrote(target);
            }
            _ => {
                self.emit(Instruction::with2(alu.load[size], sized(target, s), sized(source, s))?)?;
                self.wrote(target);
            }
        }
        self.flags_defined = true;
        Ok(())
    }

    fn load(&mut self) -> Asm {
        let size = self.size();
        let s = [Size::B, Size::W, Size::D, Size::Q][size];
        let (target, memory) = (self.target(), self.memory()?);
        self.emit(Instruction::with2(MOV_LOAD[size], sized(target, s), memory)?)?;
        self.wrote(target);
        Ok(())
    }

    fn store(&mut self) -> Asm {
        let size = self.size();
        let s = [Size::B, Size::W, Size::D, Size::Q][size];
        let (source, memory) = (self.source(), self.memory()?);
        if self.rng.chance(25) {
            let value = self.rng.next() as i32;
            return self.emit(Instruction::with2(Code::Mov_rm64_imm32, memory, value)?);
        }
        self.emit(Instruction::with2(MOV_STORE[size], memory, sized(source, s))?)
    }

    /// A register becomes an index, a pointer or an interesting value.
    fn small(&mut self) -> Asm {
        let target = self.target();
        match self.rng.below(4) {
            0 => {
                let value = self.rng.below(64) as i64;
                self.emit(Instruction::with2(
                    Code::Mov_r32_imm32,
                    sized(target, Size::D),
                    value as i32,
                )?)?;
                self.known[target] = Known::Small(value);
            }
            1 => {
                self.emit(Instruction::with2(Code::And_rm64_imm8, R64[target], 0x3f)?)?;
                self.known[target] = Known::Small(0x3f);
                self.flags_defined = true;
            }
            2 => self.load_pointer(target)?,
            _ => {
                let value = self.rng.value();
                self.emit(Instruction::with2(Code::Mov_r64_imm64, R64[target], value)?)?;
                self.wrote(target);
            }
        }
        Ok(())
    }

    fn unary(&mut self) -> Asm {
        let codes = [
            (Code::Inc_rm32, Size::D),
            (Code::Inc_rm64, Size::Q),
            (Code::Dec_rm8, Size::B),
            (Code::Dec_rm64, Size::Q),
            (Code::Neg_rm16, Size::W),
            (Code::Neg_rm64, Size::Q),
            (Code::Not_rm32, Size::D),
            (Code::Not_rm64, Size::Q),
        ];
        let (code, size) = self.rng.pick(&codes);
        if matches!(code, Code::Inc_rm32 | Code::Inc_rm64 | Code::Dec_rm8 | Code::Dec_rm64) {
            // They keep the carry flag.
            self.need_flags()?;
        }
        if self.rng.chance(40) {
            let memory = self.memory()?;
            return self.emit(Instruction::with1(code, memory)?);
        }
        let target = self.target();
        self.emit(Instruction::with1(code, sized(target, size))?)?;
        self.wrote(target);
        Ok(())
    }

    fn shift(&mut self) -> Asm {
        let codes = [
            Code::Shl_rm64_imm8,
            Code::Shr_rm64_imm8,
            Code::Sar_rm64_imm8,
            Code::Rol_rm64_imm8,
            Code::Ror_rm64_imm8,
        ];
        let by_cl = [Code::Shl_rm32_CL, Code::Shr_rm64_CL, Code::Sar_rm32_CL, Code::Rol_rm64_CL];
        let target = self.target();
        if self.rng.chance(50) {
            let (code, count) = (self.rng.pick(&codes), self.rng.below(64) as i32);
            self.emit(Instruction::with2(code, R64[target], count)?)?;
        } else {
            let code = self.rng.pick(&by_cl);
            let wide = matches!(code, Code::Shr_rm64_CL | Code::Rol_rm64_CL);
            let register = sized(target, if wide { Size::Q } else { Size::D });
            self.emit(Instruction::with2(code, register, Register::CL)?)?;
        }
        self.wrote(target);
        self.flags_defined = false;
        Ok(())
    }

    fn multiply(&mut self) -> Asm {
        let (target, source) = (self.target(), self.source());
        if self.rng.chance(50) || !self.free(0) || !self.free(2) {
            let memory = self.memory()?;
            self.emit(Instruction::with2(Code::Imul_r64_rm64, R64[target], memory)?)?;
            self.wrote(target);
        } else {
            let code = self.rng.pick(&[Code::Mul_rm64, Code::Imul_rm64]);
            self.emit(Instruction::with1(code, R64[source])?)?;
            self.wrote(0);
            self.wrote(2);
        }
        self.flags_defined = false;
        Ok(())
    }

    fn divide(&mut self) -> Asm {
        if !self.free(0) || !self.free(2) {
            return Ok(());
        }
        let divisor = loop {
            let r = self.target();
            if r != 0 && r != 2 {
                break r;
            }
        };
        let value = 1 + self.rng.below(1000) as i32;
        self.emit(Instruction::with2(Code::Mov_r32_imm32, sized(divisor, Size::D), value)?)?;
        self.wrote(divisor);
        if self.rng.chance(50) {
            self.emit(Instruction::with2(Code::Xor_r32_rm32, Register::EDX, Register::EDX)?)?;
            self.emit(Instruction::with1(Code::Div_rm64, R64[divisor])?)?;
        } else {
            self.emit(Instruction::with(Code::Cqo))?;
            self.emit(Instruction::with1(Code::Idiv_rm64, R64[divisor])?)?;
        }
        self.wrote(0);
        self.wrote(2);
        self.flags_defined = false;
        Ok(())
    }

    fn conditional(&mut self) -> Asm {
        self.need_flags()?;
        let target = self.target();
        let moves = [
            Code::Cmove_r64_rm64,
            Code::Cmovb_r64_rm64,
            Code::Cmovl_r64_rm64,
            Code::Cmovs_r32_rm32,
            Code::Cmovo_r64_rm64,
            Code::Cmovp_r64_rm64,
        ];
        let sets = [Code::Sete_rm8, Code::Setb_rm8, Code::Setg_rm8, Code::Seto_rm8, Code::Setp_rm8];
        match self.rng.below(3) {
            0 => {
                let (code, memory) = (self.rng.pick(&moves), self.memory()?);
                let size = if code == Code::Cmovs_r32_rm32 { Size::D } else { Size::Q };
                // memory() may have made a pointer, which keeps the flags.
                self.emit(Instruction::with2(code, sized(target, size), memory)?)?;
                self.wrote(target);
            }
            1 => {
                let (code, memory) = (self.rng.pick(&sets), self.memory()?);
                self.emit(Instruction::with1(code, memory)?)?;
            }
            _ => {
                let code = self.rng.pick(&sets);
                self.emit(Instruction::with1(code, sized(target, Size::B))?)?;
                self.wrote(target);
            }
        }
        Ok(())
    }

    fn bits(&mut self) -> Asm {
        let (target, source) = (self.target(), self.source());
        match self.rng.below(6) {
            0 => {
                let bit = self.rng.below(64) as i32;
                self.emit(Instruction::with2(Code::Btr_rm64_imm8, R64[target], bit)?)?;
            }
            1 => self.emit(Instruction::with2(Code::Bts_rm64_r64, R64[target], R64[source])?)?,
            2 => {
                let memory = self.memory()?;
                self.emit(Instruction::with2(Code::Bt_rm32_imm8, memory, 5)?)?;
            }
            3 => {
                let memory = self.memory()?;
                self.emit(Instruction::with2(Code::Popcnt_r64_rm64, R64[target], memory)?)?;
            }
            4 => self.emit(Instruction::with1(Code::Bswap_r64, R64[target])?)?,
            _ => self.emit(Instruction::with2(Code::Xchg_rm64_r64, R64[target], R64[target])?)?,
        }
        self.wrote(target);
        self.flags_defined = false;
        Ok(())
    }

    fn extend(&mut self) -> Asm {
        let codes = [
            (Code::Movzx_r32_rm8, Size::D),
            (Code::Movzx_r64_rm16, Size::Q),
            (Code::Movsx_r64_rm8, Size::Q),
            (Code::Movsxd_r64_rm32, Size::Q),
            (Code::Movsx_r16_rm8, Size::W),
        ];
        let (code, size) = self.rng.pick(&codes);
        let (target, memory) = (self.target(), self.memory()?);
        self.emit(Instruction::with2(code, sized(target, size), memory)?)?;
        self.wrote(target);
        if self.rng.chance(30) {
            let high = self.rng.pick(&[Register::AH, Register::CH, Register::DH, Register::BH]);
            let low = self.rng.pick(&[Register::AL, Register::CL, Register::DL, Register::BL]);
            let written = low.full_register().number();
            if self.free(written) {
                self.emit(Instruction::with2(Code::Mov_r8_rm8, low, high)?)?;
                self.wrote(written);
            }
        }
        Ok(())
    }

    /// Balanced pushes and pops, with something in between.
    fn stack(&mut self) -> Asm {
        match self.rng.below(5) {
            0 => {
                let (source, target) = (self.source(), self.target());
                self.emit(Instruction::with1(Code::Push_r64, R64[source])?)?;
                self.load()?;
                self.emit(Instruction::with1(Code::Pop_r64, R64[target])?)?;
                self.wrote(target);
            }
            1 => {
                let memory = self.memory()?;
                self.emit(Instruction::with1(Code::Push_rm64, memory)?)?;
                let target = self.target();
                self.emit(Instruction::with1(Code::Pop_r64, R64[target])?)?;
                self.wrote(target);
            }
            2 => {
                let value = self.rng.next() as i32;
                self.emit(Instruction::with1(Code::Pushq_imm32, value)?)?;
                self.store()?;
                let target = self.target();
                self.emit(Instruction::with1(Code::Pop_r64, R64[target])?)?;
                self.wrote(target);
            }
            3 => {
                let size = 8 * (1 + self.rng.below(30)) as i32;
                self.emit(Instruction::with2(Code::Sub_rm64_imm32, Register::RSP, size)?)?;
                self.flags_defined = true;
                self.store()?;
                self.alu()?;
                self.emit(Instruction::with2(Code::Add_rm64_imm32, Register::RSP, size)?)?;
                self.flags_defined = true;
            }
            _ => {
                let size = 8 * (1 + self.rng.below(30)) as i64;
                let down = MemoryOperand::with_base_displ(Register::RSP, -size);
                let up = MemoryOperand::with_base_displ(Register::RSP, size);
                self.emit(Instruction::with2(Code::Lea_r64_m, Register::RSP, down)?)?;
                self.load()?;
                self.emit(Instruction::with2(Code::Lea_r64_m, Register::RSP, up)?)?;
            }
        }
        Ok(())
    }

    /// `push rbp; mov rbp,rsp; sub rsp; ...; leave`
    fn frame(&mut self) -> Asm {
        if !self.free(5) {
            return Ok(());
        }
        self.emit(Instruction::with1(Code::Push_r64, Register::RBP)?)?;
        self.emit(Instruction::with2(Code::Mov_r64_rm64, Register::RBP, Register::RSP)?)?;
        self.emit(Instruction::with2(Code::Sub_rm64_imm8, Register::RSP, 64)?)?;
        if self.rng.chance(30) {
            self.emit(Instruction::with2(Code::And_rm64_imm8, Register::RSP, -16)?)?;
        }
        let slot = MemoryOperand::with_base_displ(Register::RBP, -16);
        let source = self.source();
        self.emit(Instruction::with2(Code::Mov_rm64_r64, slot, R64[source])?)?;
        self.known[5] = Known::Nothing;
        self.flags_defined = true;
        self.emit(Instruction::with(Code::Leaveq))?;
        self.wrote(5);
        Ok(())
    }

    fn vector(&mut self) -> Asm {
        let x = |rng: &mut Rng| Register::XMM0 + rng.below(16) as u32;
        let (a, b, c) = (x(self.rng), x(self.rng), x(self.rng));
        let two = [
            Code::Paddb_xmm_xmmm128,
            Code::Pxor_xmm_xmmm128,
            Code::Pcmpeqb_xmm_xmmm128,
            Code::Pand_xmm_xmmm128,
            Code::Psubd_xmm_xmmm128,
            Code::Pminub_xmm_xmmm128,
            Code::Punpcklbw_xmm_xmmm128,
            Code::Movaps_xmm_xmmm128,
        ];
        match self.rng.below(if self.avx2 { 12 } else { 8 }) {
            0 | 1 => {
                let memory = self.memory()?;
                self.emit(Instruction::with2(Code::Movdqu_xmm_xmmm128, a, memory)?)
            }
            2 => {
                let memory = self.memory()?;
                self.emit(Instruction::with2(Code::Movups_xmmm128_xmm, memory, a)?)
            }
            3 => {
                let code = self.rng.pick(&two);
                self.emit(Instruction::with2(code, a, b)?)
            }
            4 => {
                let target = self.target();
                self.emit(Instruction::with2(Code::Pmovmskb_r32_xmm, sized(target, Size::D), a)?)?;
                self.wrote(target);
                Ok(())
            }
            5 => {
                let source = self.source();
                self.emit(Instruction::with2(Code::Movq_xmm_rm64, a, R64[source])?)
            }
            6 => {
                let target = self.target();
                self.emit(Instruction::with2(Code::Movq_rm64_xmm, R64[target], a)?)?;
                self.wrote(target);
                Ok(())
            }
            7 => {
                let memory = self.memory()?;
                self.emit(Instruction::with2(Code::Movq_xmmm64_xmm, memory, a)?)
            }
            8 => {
                let memory = self.memory()?;
                let y = Register::YMM0 + self.rng.below(16) as u32;
                self.emit(Instruction::with2(Code::VEX_Vmovdqu_ymm_ymmm256, y, memory)?)
            }
            9 => {
                let memory = self.memory()?;
                let y = Register::YMM0 + self.rng.below(16) as u32;
                self.emit(Instruction::with3(Code::VEX_Vpcmpeqb_ymm_ymm_ymmm256, y, y, memory)?)
            }
            10 => self.emit(Instruction::with3(Code::VEX_Vpaddd_xmm_xmm_xmmm128, a, b, c)?),
            _ => {
                let memory = self.memory()?;
                let y = Register::YMM0 + self.rng.below(16) as u32;
                self.emit(Instruction::with2(Code::VEX_Vmovdqu_ymmm256_ymm, memory, y)?)
            }
        }
    }

    fn float(&mut self) -> Asm {
        let a = Register::XMM0 + self.rng.below(16) as u32;
        let b = Register::XMM0 + self.rng.below(16) as u32;
        match self.rng.below(4) {
            0 => {
                let source = self.source();
                self.emit(Instruction::with2(Code::Cvtsi2sd_xmm_rm64, a, R64[source])?)
            }
            1 => {
                let code = self.rng.pick(&[
                    Code::Addsd_xmm_xmmm64,
                    Code::Mulsd_xmm_xmmm64,
                    Code::Divsd_xmm_xmmm64,
                    Code::Sqrtsd_xmm_xmmm64,
                ]);
                self.emit(Instruction::with2(code, a, b)?)
            }
            2 => {
                let (target, memory) = (self.target(), self.memory()?);
                self.emit(Instruction::with2(Code::Cvttsd2si_r64_xmmm64, R64[target], memory)?)?;
                self.wrote(target);
                Ok(())
            }
            _ => {
                self.emit(Instruction::with2(Code::Ucomisd_xmm_xmmm64, a, b)?)?;
                self.flags_defined = true;
                Ok(())
            }
        }
    }

    fn string(&mut self) -> Asm {
        const RCX: usize = 1;
        const RSI: usize = 6;
        const RDI: usize = 7;
        if !self.free(0) || !self.free(RCX) || !self.free(RSI) || !self.free(RDI) {
            return Ok(());
        }
        self.load_pointer(RSI)?;
        self.load_pointer(RDI)?;
        let count = self.rng.below(60) as i32;
        self.emit(Instruction::with2(Code::Mov_r32_imm32, Register::ECX, count)?)?;
        let codes = [
            (Code::Movsb_m8_m8, 1),
            (Code::Movsq_m64_m64, 1),
            (Code::Stosb_m8_AL, 1),
            (Code::Stosd_m32_EAX, 1),
            (Code::Lodsb_AL_m8, 0),
            (Code::Scasb_AL_m8, 2),
            (Code::Cmpsb_m8_m8, 2),
            (Code::Stosq_m64_RAX, 1),
            (Code::Movsw_m16_m16, 1),
        ];
        let (code, repeat) = self.rng.pick(&codes);
        let mut instruction = match code {
            Code::Movsb_m8_m8 => {
                Instruction::with_movsb(64, Register::None, iced_x86::RepPrefixKind::None)?
            }
            Code::Movsw_m16_m16 => {
                Instruction::with_movsw(64, Register::None, iced_x86::RepPrefixKind::None)?
            }
            Code::Movsq_m64_m64 => {
                Instruction::with_movsq(64, Register::None, iced_x86::RepPrefixKind::None)?
            }
            Code::Stosb_m8_AL => Instruction::with_stosb(64, iced_x86::RepPrefixKind::None)?,
            Code::Stosd_m32_EAX => Instruction::with_stosd(64, iced_x86::RepPrefixKind::None)?,
            Code::Stosq_m64_RAX => Instruction::with_stosq(64, iced_x86::RepPrefixKind::None)?,
            Code::Lodsb_AL_m8 => {
                Instruction::with_lodsb(64, Register::None, iced_x86::RepPrefixKind::None)?
            }
            Code::Scasb_AL_m8 => Instruction::with_scasb(64, iced_x86::RepPrefixKind::None)?,
            _ => Instruction::with_cmpsb(64, Register::None, iced_x86::RepPrefixKind::None)?,
        };
        if repeat != 0 && self.rng.chance(60) {
            if repeat == 2 {
                // With rcx = 0 the flags stay what they were.
                self.need_flags()?;
                if self.rng.chance(50) {
                    instruction.set_has_repne_prefix(true);
                } else {
                    instruction.set_has_rep_prefix(true);
                }
            } else {
                instruction.set_has_rep_prefix(true);
            }
        }
        self.emit(instruction)?;
        if repeat == 2 {
            self.flags_defined = true;
        }
        for register in [0, RCX, RSI, RDI] {
            self.wrote(register);
        }
        Ok(())
    }

    fn locked(&mut self) -> Asm {
        let (memory, source) = (self.memory()?, self.source());
        let target = self.target();
        let mut instruction = match self.rng.below(6) {
            0 => Instruction::with2(Code::Add_rm64_r64, memory, R64[source])?,
            1 => Instruction::with1(Code::Inc_rm32, memory)?,
            2 => {
                self.wrote(target);
                Instruction::with2(Code::Xadd_rm64_r64, memory, R64[target])?
            }
            3 if self.free(0) => {
                self.wrote(0);
                Instruction::with2(Code::Cmpxchg_rm64_r64, memory, R64[source])?
            }
            4 => {
                self.wrote(target);
                Instruction::with2(Code::Xchg_rm32_r32, memory, sized(target, Size::D))?
            }
            _ => Instruction::with2(Code::And_rm8_imm8, memory, 0x55)?,
        };
        instruction.set_has_lock_prefix(instruction.code() != Code::Xchg_rm32_r32);
        if instruction.code() == Code::Inc_rm32 {
            self.define_flags()?;
        }
        self.emit(instruction)?;
        self.flags_defined = self.flags_defined || instruction.code() == Code::Add_rm64_r64;
        Ok(())
    }

    fn branch(&mut self) -> Asm {
        if self.depth > 2 {
            return Ok(());
        }
        self.depth += 1;
        self.need_flags()?;
        let mut label = self.a.create_label();
        match self.rng.below(8) {
            0 => self.a.je(label)?,
            1 => self.a.jb(label)?,
            2 => self.a.jl(label)?,
            3 => self.a.js(label)?,
            4 => self.a.jo(label)?,
            5 => self.a.jp(label)?,
            6 => self.a.ja(label)?,
            _ => self.a.jrcxz(label)?,
        }
        // Few enough for the short form of jrcxz.
        let count = 1 + self.rng.below(2);
        let before = self.known;
        self.alu_steps(count)?;
        // What both paths know is what neither wrote.
        for (known, old) in self.known.iter_mut().zip(before) {
            if *known != old {
                *known = Known::Nothing;
            }
        }
        self.a.set_label(&mut label)?;
        self.a.zero_bytes()?;
        self.flags_defined = false;
        self.depth -= 1;
        Ok(())
    }

    fn alu_steps(&mut self, count: usize) -> Asm {
        for _ in 0..count {
            if self.rng.chance(50) { self.alu()? } else { self.store()? }
        }
        Ok(())
    }

    fn counted_loop(&mut self) -> Asm {
        if self.depth >= 2 {
            return Ok(());
        }
        let counter = self.counters[self.depth];
        self.depth += 1;
        let count = 1 + self.rng.below(8) as i32;
        self.emit(Instruction::with2(Code::Mov_r32_imm32, sized(counter, Size::D), count)?)?;
        let mut top = self.a.create_label();
        self.a.set_label(&mut top)?;
        self.a.zero_bytes()?;
        self.forget();
        let steps = 1 + self.rng.below(6);
        self.steps(steps)?;
        self.emit(Instruction::with1(Code::Dec_rm64, R64[counter])?)?;
        if self.rng.chance(20) {
            // A jump forward over a jump backward.
            let mut out = self.a.create_label();
            self.a.je(out)?;
            self.a.jmp(top)?;
            self.a.set_label(&mut out)?;
            self.a.zero_bytes()?;
        } else {
            self.a.jne(top)?;
        }
        self.flags_defined = false;
        self.depth -= 1;
        Ok(())
    }

    fn call(&mut self) -> Asm {
        if self.functions.is_empty() {
            return Ok(());
        }
        let label = self.rng.pick(&self.functions);
        match self.rng.below(3) {
            0 => {
                let target = self.target();
                let register = iced_x86::code_asm::registers::gpr64::get_gpr64(R64[target])
                    .expect("a 64-bit register");
                self.a.lea(register, iced_x86::code_asm::ptr(label))?;
                self.emit(Instruction::with1(Code::Call_rm64, R64[target])?)?;
            }
            _ => self.a.call(label)?,
        }
        self.forget();
        Ok(())
    }

    fn function(&mut self, length: usize) -> Asm {
        // Loops inside would write the caller's counters.
        self.depth = 2;
        self.in_function = true;
        let saved: Vec<usize> = (0..self.rng.below(4)).map(|_| self.target()).collect();
        for register in &saved {
            self.emit(Instruction::with1(Code::Push_r64, R64[*register])?)?;
        }
        self.steps(length.max(2))?;
        for register in saved.iter().rev() {
            self.emit(Instruction::with1(Code::Pop_r64, R64[*register])?)?;
        }
        self.a.ret()
    }

    /// Flag-free integer forms, and AVX-512 as string functions use it.
    fn modern(&mut self) -> Asm {
        if !self.bmi2 {
            return self.alu();
        }
        let (target, source, other) = (self.target(), self.source(), self.source());
        let (t, s, o) = (R64[target], R64[source], R64[other]);
        if self.rng.chance(50) || !self.avx512 {
            let memory = self.memory()?;
            let instruction = match self.rng.below(6) {
                0 => Instruction::with3(Code::VEX_Shlx_r64_rm64_r64, t, s, o)?,
                1 => Instruction::with3(Code::VEX_Rorx_r64_rm64_imm8, t, memory, 13)?,
                2 => Instruction::with3(Code::VEX_Sarx_r64_rm64_r64, t, memory, s)?,
                3 => Instruction::with2(Code::Movbe_r64_m64, t, memory)?,
                4 => Instruction::with3(Code::Imul_r64_rm64_imm32, t, s, -7)?,
                _ => Instruction::with2(Code::Cmpxchg_rm64_r64, memory, s)?,
            };
            match instruction.code() {
                Code::Cmpxchg_rm64_r64 if !self.free(0) => return Ok(()),
                Code::Cmpxchg_rm64_r64 => {
                    self.wrote(0);
                    self.flags_defined = true;
                }
                Code::Imul_r64_rm64_imm32 => self.flags_defined = false,
                _ => {}
            }
            self.wrote(target);
            return self.emit(instruction);
        }
        let memory = self.memory()?;
        let z = |rng: &mut Rng| Register::ZMM0 + rng.below(32) as u32;
        let y = |rng: &mut Rng| Register::YMM0 + rng.below(32) as u32;
        let k = Register::K1 + self.rng.below(7) as u32;
        let mut instruction = match self.rng.below(9) {
            0 => Instruction::with2(Code::EVEX_Vmovdqu64_zmm_k1z_zmmm512, z(self.rng), memory)?,
            1 => Instruction::with2(Code::EVEX_Vmovdqu8_ymmm256_k1z_ymm, memory, y(self.rng))?,
            2 => {
                let code = Code::EVEX_Vpcmpub_kr_k1_ymm_ymmm256_imm8;
                Instruction::with4(code, k, y(self.rng), memory, 1)?
            }
            3 => {
                let code = Code::EVEX_Vptestnmb_kr_k1_ymm_ymmm256;
                Instruction::with3(code, k, y(self.rng), memory)?
            }
            4 => {
                let code = Code::EVEX_Vpternlogd_ymm_k1z_ymm_ymmm256b32_imm8;
                Instruction::with4(code, y(self.rng), y(self.rng), y(self.rng), 0x96)?
            }
            5 => {
                self.wrote(target);
                Instruction::with2(Code::VEX_Kmovd_r32_kr, sized(target, Size::D), k)?
            }
            6 => Instruction::with2(Code::VEX_Kmovd_kr_r32, k, sized(source, Size::D))?,
            7 => {
                self.flags_defined = true;
                Instruction::with2(Code::VEX_Kortestd_kr_kr, k, k)?
            }
            _ => {
                let code = Code::EVEX_Vpminub_ymm_k1z_ymm_ymmm256;
                Instruction::with3(code, y(self.rng), y(self.rng), memory)?
            }
        };
        let maskable = matches!(
            instruction.code(),
            Code::EVEX_Vmovdqu64_zmm_k1z_zmmm512
                | Code::EVEX_Vmovdqu8_ymmm256_k1z_ymm
                | Code::EVEX_Vpminub_ymm_k1z_ymm_ymmm256
        );
        if maskable && self.rng.chance(40) {
            instruction.set_op_mask(k);
        }
        self.emit(instruction)
    }

    fn thread_pointer(&mut self) -> Asm {
        let target = self.target();
        let memory =
            MemoryOperand::new(Register::None, Register::None, 1, 0x28, 8, false, Register::FS);
        self.emit(Instruction::with2(Code::Mov_r64_rm64, R64[target], memory)?)?;
        self.wrote(target);
        Ok(())
    }
}

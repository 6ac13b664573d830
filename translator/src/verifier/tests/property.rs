//! Ranges against the CPU: random sequences of instructions run in ring 3, and
//! every register must lie in the range that was claimed for it.

use super::super::code::Code;
use super::super::state::{RSP, State};
use super::super::step::Stepper;
use super::super::value::Value;
use super::*;
use iced_x86::{Code as Op, Decoder, Instruction, MemoryOperand, Register};
use ub_ring3::{CpuState, GuestMemory, NativeStop, run_native};

/// Sequences per run, and instructions of each.
const SEQUENCES: usize = 4000;
const LENGTH: usize = 10;

/// Linear congruential: the same sequences in every run.
pub(super) struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    pub fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// Few, so that instructions meet the results of others.
const WIDE: [Register; 5] =
    [Register::RAX, Register::RCX, Register::RDX, Register::RBX, Register::R8];
const IMMEDIATES: [i32; 16] =
    [0, 1, -1, 7, 8, -8, 63, 64, 255, -256, 2047, 2048, -2048, -2049, i32::MAX, i32::MIN];
/// With what the registers begin; the first is an address that can be read.
const VALUES: [u64; 8] =
    [0, 1, 0xff, 0xffff_ffff, 1 << 32, 0x7fff_ffff_ffff_ffff, 1 << 63, u64::MAX];

#[rustfmt::skip]
const TWO_REGISTERS: [Op; 40] = [
    Op::Mov_r64_rm64, Op::Mov_r32_rm32, Op::Mov_r8_rm8, Op::Mov_r16_rm16, Op::Movzx_r64_rm8,
    Op::Movzx_r32_rm16, Op::Movzx_r64_rm16, Op::Movsx_r32_rm8, Op::Movsx_r64_rm8,
    Op::Movsxd_r64_rm32, Op::Add_r64_rm64, Op::Add_r32_rm32, Op::Adc_r32_rm32, Op::Sub_r64_rm64,
    Op::Sub_r32_rm32, Op::Sbb_r32_rm32, Op::And_r64_rm64, Op::And_r32_rm32, Op::Or_r32_rm32,
    Op::Or_r64_rm64, Op::Xor_r64_rm64, Op::Xor_r32_rm32, Op::Xor_r8_rm8, Op::Imul_r32_rm32,
    Op::Imul_r64_rm64, Op::Cmove_r64_rm64, Op::Cmovb_r64_rm64, Op::Cmove_r32_rm32,
    Op::Cmova_r32_rm32, Op::Bsf_r32_rm32, Op::Bsr_r64_rm64, Op::Tzcnt_r32_rm32,
    Op::Lzcnt_r64_rm64, Op::Popcnt_r32_rm32, Op::Xchg_rm64_r64, Op::Xchg_rm32_r32,
    Op::Xadd_rm64_r64, Op::Cmpxchg_rm32_r32, Op::Cmpxchg_rm64_r64, Op::Test_rm64_r64,
];
#[rustfmt::skip]
const IMMEDIATE: [Op; 14] = [
    Op::Add_rm64_imm32, Op::Add_rm64_imm8, Op::Add_rm32_imm8, Op::Sub_rm64_imm32,
    Op::Sub_rm64_imm8, Op::Sub_rm32_imm32, Op::And_rm64_imm32, Op::And_rm64_imm8,
    Op::And_rm32_imm8, Op::And_rm32_imm32, Op::Mov_r32_imm32, Op::Mov_rm64_imm32,
    Op::Add_rm8_imm8, Op::Or_rm32_imm8,
];
#[rustfmt::skip]
const SHIFTS: [Op; 12] = [
    Op::Shr_rm64_imm8, Op::Shr_rm32_imm8, Op::Shl_rm64_imm8, Op::Shl_rm32_imm8,
    Op::Sar_rm64_imm8, Op::Sar_rm32_imm8, Op::Rol_rm32_imm8, Op::Ror_rm64_imm8,
    Op::Btr_rm64_imm8, Op::Btr_rm32_imm8, Op::Rcl_rm32_imm8, Op::Shr_rm16_imm8,
];
#[rustfmt::skip]
const ONE_REGISTER: [Op; 13] = [
    Op::Inc_rm64, Op::Inc_rm32, Op::Dec_rm64, Op::Dec_rm32, Op::Neg_rm64, Op::Neg_rm32,
    Op::Not_rm64, Op::Not_rm32, Op::Bswap_r32, Op::Sete_rm8, Op::Imul_rm32, Op::Mul_rm64,
    Op::Inc_rm16,
];
#[rustfmt::skip]
const BY_CL: [Op; 7] = [
    Op::Shl_rm32_CL, Op::Shl_rm64_CL, Op::Shr_rm32_CL, Op::Sar_rm32_CL, Op::Ror_rm32_CL,
    Op::Rol_rm16_CL, Op::Shld_rm32_r32_CL,
];

/// The register of `wide`'s number in the width that operand `n` of `op` has.
fn sized(random: &mut Random, op: Op, n: usize) -> Register {
    let name = format!("{op:?}");
    let width = name.split('_').nth(n + 1).unwrap_or("");
    let wide = random.of(&WIDE);
    match width.trim_start_matches(['r', 'm']) {
        "64" => wide,
        "32" => wide.full_register32(),
        // ah and the like as well, if nothing needs a REX prefix.
        "16" => [Register::AX, Register::CX, Register::DX, Register::BX][random.below(4)],
        _ => random.of(&[Register::AL, Register::CL, Register::DL, Register::BH, Register::CH]),
    }
}

fn instruction(random: &mut Random) -> Instruction {
    let scale = random.of(&[1, 2, 4, 8]);
    let made = match random.below(12) {
        0..=3 => {
            let op = random.of(&TWO_REGISTERS);
            let (a, b) = (sized(random, op, 0), sized(random, op, 1));
            Instruction::with2(op, a, b)
        }
        4 | 5 => {
            let op = random.of(&IMMEDIATE);
            let value = random.of(&IMMEDIATES);
            let value =
                if format!("{op:?}").ends_with("imm8") { i32::from(value as i8) } else { value };
            Instruction::with2(op, sized(random, op, 0), value)
        }
        6 => {
            let op = random.of(&SHIFTS);
            let count = random.of(&[0, 1, 3, 8, 31, 32, 33, 63, 64, 65]);
            Instruction::with2(op, sized(random, op, 0), count)
        }
        7 => {
            let op = random.of(&ONE_REGISTER);
            Instruction::with1(op, sized(random, op, 0))
        }
        8 => {
            let op = random.of(&BY_CL);
            match op {
                Op::Shld_rm32_r32_CL => {
                    Instruction::with3(op, sized(random, op, 0), sized(random, op, 1), Register::CL)
                }
                _ => Instruction::with2(op, sized(random, op, 0), Register::CL),
            }
        }
        9 => {
            let op = random.of(&[Op::Lea_r64_m, Op::Lea_r32_m]);
            let to = sized(random, op, 0);
            let (base, index) = (random.of(&WIDE), random.of(&WIDE));
            let base = random.of(&[Register::None, base, base]);
            let index = random.of(&[Register::None, index]);
            let d = i64::from(random.of(&IMMEDIATES));
            let none = Register::None;
            Instruction::with2(op, to, MemoryOperand::new(base, index, scale, d, 8, false, none))
        }
        10 => {
            let op = random.of(&[Op::Imul_r64_rm64_imm32, Op::Imul_r32_rm32_imm32]);
            let (a, b) = (sized(random, op, 0), sized(random, op, 1));
            Instruction::with3(op, a, b, random.of(&IMMEDIATES))
        }
        _ => {
            let op = random.of(&[Op::Mov_r64_rm64, Op::Mov_r32_rm32, Op::Add_r64_rm64]);
            let to = sized(random, op, 0);
            let d = random.of(&[0, 8, -8, 2040, 2048, -2048]);
            Instruction::with2(op, to, MemoryOperand::with_base_displ(random.of(&WIDE), d))
        }
    };
    made.expect("operands of the instruction's own kind")
}

fn contains(value: Value, number: u64) -> bool {
    value.high >= 64
        || number < 1 << value.high
        || (number as i64) < 0 && number as i64 >= i64::from(value.low)
}

#[test]
fn registers_lie_in_their_ranges() {
    let policy = Policy::new(Features::host());
    let mut memory = GuestMemory::new().unwrap();
    let mut random = Random(3);
    let (mut narrow, mut soft, mut faults) = (0, 0, 0);
    for _ in 0..SEQUENCES {
        // A pointer that an access has narrowed, for the others to move.
        let pointer = random.of(&WIDE);
        let btr = Instruction::with2(Op::Btr_rm64_imm8, pointer, 63).unwrap();
        let there = MemoryOperand::with_base_displ(pointer, random.of(&[0, 8, -8, 2000, -2048]));
        let load = Instruction::with2(Op::Mov_r32_rm32, Register::ESI, there).unwrap();
        let body: Vec<Instruction> = [btr, load]
            .into_iter()
            .chain((0..LENGTH).map(|_| instruction(&mut random)))
            // Not `bh` with a REX prefix.
            .filter(|i| iced_x86::Encoder::new(64).encode(i, 0).is_ok())
            .filter(|i| policy.features.include(Features::needed(i.code())))
            .collect();
        let parts = parts(|b| {
            body.iter().try_for_each(|i| {
                b.faulting()?;
                b.a.add_instruction(*i)
            })
        });
        let Ok(code) = Code::new(&parts, &policy) else { panic!("{body:?} is in a listed form") };
        // The states before each instruction, up to the first that is refused.
        let stepper = Stepper { exits: &parts.exits, policy: &policy };
        let mut states = vec![State::entry()];
        for line in &code.lines[..2 + body.len()] {
            let mut state = states[states.len() - 1];
            if stepper.step(line, &mut state).is_err() {
                break;
            }
            states.push(state);
        }
        // `states[2]` holds where the body begins.
        let offset = |i: usize| code.lines[i].instruction.ip() as usize;
        let start = offset(2);
        let length = offset(states.len() - 1) - start;
        let mut native = parts.code[start..start + length].to_vec();
        native.push(0xcc);
        memory.write_code(0, &native).unwrap();
        for _ in 0..4 {
            let mut cpu = CpuState::default();
            for register in &mut cpu.gpr {
                *register = match random.below(3) {
                    0 => random.of(&VALUES),
                    1 => memory.data() + 4096,
                    _ => (random.below(1 << 30) as u64) << random.below(34),
                };
            }
            cpu.gpr[RSP] = memory.data() + 4096;
            cpu.rflags = random.of(&[0, 1, 0x40, 0x41]);
            let initial = cpu.gpr;
            // SAFETY: straight-line code without system calls that ends with
            // int3; its only accesses are loads.
            let stop = unsafe { run_native(memory.code(), &mut cpu) }.unwrap();
            let at = match stop {
                NativeStop::Trap(ip) => ip,
                NativeStop::Signal(fault) => fault.ip,
            };
            faults += usize::from(matches!(stop, NativeStop::Signal(_)));
            let reached = (at - memory.code()) as usize + start;
            let state = (2..states.len()).find(|&i| offset(i) == reached).map(|i| &states[i]);
            let state = state.expect("it stops between two instructions");
            for (register, &number) in cpu.gpr.iter().enumerate().filter(|(r, _)| *r != RSP) {
                let value = state.get(register);
                narrow += usize::from(value.high < 64);
                soft += usize::from(value.soft && value.high < 64);
                let text: Vec<String> =
                    Decoder::with_ip(64, &native, 0, 0).iter().map(|i| i.to_string()).collect();
                assert!(
                    contains(value, number),
                    "register {register} is {number:#x}, not in {value:?}; began with {initial:x?}, \
                     stopped at {:#x}: {text:#?}",
                    at - memory.code()
                );
            }
        }
    }
    // Most claims are about something.
    assert!(
        narrow > SEQUENCES && soft > SEQUENCES / 100 && faults > SEQUENCES / 100,
        "{narrow} ranges, {soft} soft, {faults} faults"
    );
}

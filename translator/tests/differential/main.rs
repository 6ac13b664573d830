//! Random programs on the real CPU: translated and native runs must agree in
//! every register, flag and byte of memory, wherever the fragment is left.
//!
//! `UB_FUZZ_SEED` and `UB_FUZZ_PROGRAMS` choose other and more programs.

mod generate;
mod oracle;
mod program;
mod random;

use std::collections::BTreeMap;
use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Register};
use oracle::{Oracle, Outcome};
use program::Program;
use random::Random;
use ub_ring3::CpuState;
use ub_ring3::memory::DATA_BYTES;
use ub_ring3::state::gpr;
use ub_translator::Options;
use ub_translator::fragment::ExitKind;

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value.parse().expect("the setting is a number"),
        Err(_) => default,
    }
}

fn random_state(random: &mut Random, oracle: &Oracle, pointers: &[Register]) -> CpuState {
    let mut state = CpuState::default();
    for value in &mut state.gpr {
        *value = match random.below(8) {
            0 => random.next(),
            1 => oracle.memory.data() + random.below(DATA_BYTES as u64),
            2 => random.next() | 1 << 63,
            _ => random.below(256),
        };
    }
    for pointer in pointers {
        let at = 4096 + (random.below(DATA_BYTES as u64 - 8192) & !63);
        state.gpr[pointer.number()] = oracle.memory.data() + at;
    }
    state.gpr[gpr::RSP] = oracle.memory.stack_end() - 8192 + (random.below(64) << 3);
    state.rflags = random.next() & ub_ring3::state::ARITHMETIC_FLAGS;
    for vector in &mut state.vectors.zmm {
        if random.one_in(2) {
            for byte in vector {
                *byte = random.next() as u8;
            }
        }
    }
    for mask in &mut state.vectors.k {
        *mask = random.next();
    }
    // Some programs get their #XM: one of the exceptions unmasked.
    if random.one_in(8) {
        state.vectors.mxcsr &= !(0x80 << random.below(6));
    }
    state
}

fn fill_data(random: &mut Random, oracle: &mut Oracle) {
    let bytes: Vec<u8> = (0..DATA_BYTES / 8)
        .flat_map(|_| (random.next() >> random.below(64)).to_le_bytes())
        .collect();
    oracle.memory.write_data(0, &bytes).expect("the data fits");
}

fn listing(code: &[u8], ip: u64) -> String {
    let mut text = String::new();
    for instruction in Decoder::with_ip(64, code, ip, DecoderOptions::NONE).iter() {
        let _ = writeln!(text, "{:#x} {instruction}", instruction.ip());
    }
    text
}

const POINTERS: [Register; 6] =
    [Register::RBX, Register::RBP, Register::RSI, Register::RDI, Register::R9, Register::R13];

/// One program to compare.
struct Case {
    code: Vec<u8>,
    options: Options,
    /// Most fragments to run before going on natively.
    fragments: usize,
    /// Whether polls see work.
    pending: bool,
}

impl Case {
    fn new(code: Vec<u8>) -> Self {
        Self { code, options: Oracle::options(), fragments: 1, pending: false }
    }
}

/// Compares `programs` cases made by `make`; panics at the first difference
/// with the code that shows it.
fn fuzz(
    name: &str,
    programs: u64,
    mut make: impl FnMut(&mut Random, u64) -> Case,
) -> BTreeMap<String, u64> {
    let first = setting("UB_FUZZ_SEED", 1);
    let programs = setting("UB_FUZZ_PROGRAMS", programs);
    let mut oracle = Oracle::new();
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    for seed in first..first + programs {
        let mut random = Random::new(seed);
        let case = make(&mut random, oracle.memory.code());
        oracle.memory.write_code(0, &case.code).expect("the program fits");
        fill_data(&mut random, &mut oracle);
        let mut state = random_state(&mut random, &oracle, &POINTERS);
        state.gpr[gpr::R15] = random.below(30);
        let text = || listing(&case.code, oracle.memory.code());
        if programs == 1 {
            // One chosen program may take the whole process down.
            println!("{}{state:?}", text());
        }
        match oracle.compare(&state, &case.options, case.fragments, case.pending) {
            Ok(outcome) => *outcomes.entry(format!("{outcome:?}")).or_default() += 1,
            Err(difference) => panic!(
                "{name}, UB_FUZZ_SEED={seed}: {difference}\n{}",
                listing(&case.code, oracle.memory.code())
            ),
        }
    }
    println!("{name}: {programs} programs: {outcomes:?}");
    outcomes
}

fn count(outcomes: &BTreeMap<String, u64>, kind: ExitKind) -> u64 {
    outcomes.get(&format!("{:?}", Outcome::Left(kind))).copied().unwrap_or(0)
}

/// Single instructions: every form gets its turn, in every register.
#[test]
fn single_instructions() {
    let outcomes = fuzz("single", 1_500, |random, _| {
        let mut code = generate::instruction(random, &POINTERS, &[], true);
        code.push(0xcc);
        Case::new(code)
    });
    let through = count(&outcomes, ExitKind::Unsupported);
    let total: u64 = outcomes.values().sum();
    assert!(total == 1 || through * 3 > total, "too little is translated: {outcomes:?}");
}

/// Straight code: what one instruction leaves behind (confined registers,
/// flags, slots) must be right for the next.
#[test]
fn straight_programs() {
    fuzz("straight", 500, |random, _| {
        let mut code = Vec::new();
        for _ in 0..4 + random.below(16) {
            code.extend(generate::instruction(random, &POINTERS, &[], true));
        }
        code.push(0xcc);
        Case::new(code)
    });
}

/// Branches, loops with polls, calls, returns and predicted indirect jumps,
/// also cut into several fragments by small limits.
#[test]
fn structured_programs() {
    fuzz("structured", 700, |random, base| {
        let Program { code, predicted } = program::program(random, base);
        let mut case = Case::new(code);
        case.options.predicted_targets = predicted;
        if random.one_in(3) {
            case.options.max_instructions = 1 + random.below(20) as usize;
        }
        case.fragments = 1 + random.below(20) as usize;
        case.pending = random.one_in(4);
        case
    });
}

/// Code that random programs seldom hit: `rsp` from all sorts of places, fs,
/// locks and repetitions with live flags, and bad pointers. `int3` at the end.
#[rustfmt::skip]
const CHOSEN: &[&[u8]] = &[
    // mov rsp,rbp; pop rax; and rsp,-16; push rbx
    &[0x48, 0x89, 0xec, 0x58, 0x48, 0x83, 0xe4, 0xf0, 0x53, 0xcc],
    // sub rsp,rcx; jb +2; inc eax; add rsp,0x80; sete al
    &[0x48, 0x29, 0xcc, 0x72, 0x02, 0xff, 0xc0, 0x48, 0x81, 0xc4, 0x80, 0x00, 0x00, 0x00, 0x0f, 0x94, 0xc0, 0xcc],
    // cmp eax,edx; mov [rbx],rbx; mov rsp,[rbx]; push rsp; setb dl; pop rcx
    &[0x48, 0x89, 0x1b, 0x39, 0xd0, 0x48, 0x8b, 0x23, 0x54, 0x0f, 0x92, 0xc2, 0x59, 0xcc],
    // cmp eax,edx; lea rsp,[rsp+rcx*8-64]; push qword [rsp+8]; push -5; setl dl
    &[0x39, 0xd0, 0x48, 0x8d, 0x64, 0xcc, 0xc0, 0xff, 0x74, 0x24, 0x08, 0x6a, 0xfb, 0x0f, 0x9c, 0xc2, 0xcc],
    // cmp eax,edx; mov rax,fs:[0x28]; mov rcx,0x28; mov rdx,fs:[rcx]; lea r10d,[ecx+edx]; seta bl
    &[0x39, 0xd0, 0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0x00, 0x00, 0x00, 0xb9, 0x28, 0x00, 0x00, 0x00, 0x64, 0x48, 0x8b, 0x11, 0x67, 0x44, 0x8d, 0x14, 0x11, 0x0f, 0x97, 0xc3, 0xcc],
    // cmp eax,edx; xchg [rsi+4],rax; lock not dword [rdi]; xchg [rbx+61],cl; setg dl
    &[0x39, 0xd0, 0x48, 0x87, 0x46, 0x04, 0xf0, 0xf7, 0x17, 0x86, 0x4b, 0x3d, 0x0f, 0x9f, 0xc2, 0xcc],
    // mov ecx,300; cmp eax,edx; rep movsb; mov ecx,5000; rep stosb; setge al
    &[0xb9, 0x2c, 0x01, 0x00, 0x00, 0x39, 0xd0, 0xf3, 0xa4, 0xb9, 0x88, 0x13, 0x00, 0x00, 0xf3, 0xaa, 0x0f, 0x9d, 0xc0, 0xcc],
    // rep movs that faults on its way
    &[0xb9, 0xa0, 0x0f, 0x00, 0x00, 0x48, 0x81, 0xcf, 0xff, 0xff, 0x00, 0x00, 0xf3, 0x48, 0xa5, 0xcc],
    // mov rdi into the kernel half, then a load
    &[0x48, 0xbf, 0x00, 0x00, 0x00, 0x00, 0x80, 0x88, 0xff, 0xff, 0x39, 0xd0, 0x48, 0x8b, 0x07, 0xcc],
    // a non-canonical address
    &[0x48, 0xbf, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x08, 0x00, 0x48, 0x8b, 0x04, 0x0f, 0xcc],
    // null
    &[0x31, 0xff, 0xff, 0x47, 0x08, 0xcc],
];

#[test]
fn chosen_programs() {
    let outcomes = fuzz("chosen", 20 * CHOSEN.len() as u64, |random, _| {
        Case::new(random.pick(CHOSEN).to_vec())
    });
    for kind in [ExitKind::Fault, ExitKind::Guard, ExitKind::Unsupported] {
        assert!(count(&outcomes, kind) > 0, "no {kind:?} exit: {outcomes:?}");
    }
}

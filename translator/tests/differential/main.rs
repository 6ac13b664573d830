//! Random programs on the real CPU: translated and native runs must agree in
//! every register, flag and byte of memory, wherever the fragment is left.
//!
//! `UB_FUZZ_SEED` and `UB_FUZZ_PROGRAMS` choose other and more programs.

mod generate;
mod oracle;
mod random;

use std::collections::BTreeMap;
use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Register};
use oracle::{Oracle, Outcome};
use random::Random;
use ub_ring3::CpuState;
use ub_ring3::memory::DATA_BYTES;
use ub_ring3::state::gpr;

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
    let bytes: Vec<u8> =
        (0..DATA_BYTES / 8).flat_map(|_| (random.next() >> random.below(64)).to_le_bytes()).collect();
    oracle.memory.write_data(0, &bytes).expect("the data fits");
}

fn listing(code: &[u8], ip: u64) -> String {
    let mut text = String::new();
    for instruction in Decoder::with_ip(64, code, ip, DecoderOptions::NONE).iter() {
        let _ = writeln!(text, "{:#x} {instruction}", instruction.ip());
    }
    text
}

const POINTERS: [Register; 6] = [
    Register::RBX,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R9,
    Register::R13,
];

/// Runs `programs` made by `make` and reports the first difference with the
/// code that shows it.
fn fuzz(
    name: &str,
    programs: u64,
    mut make: impl FnMut(&mut Random, u64) -> Vec<u8>,
) -> BTreeMap<String, u64> {
    let first = setting("UB_FUZZ_SEED", 1);
    let programs = setting("UB_FUZZ_PROGRAMS", programs);
    let mut oracle = Oracle::new();
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    for seed in first..first + programs {
        let mut random = Random::new(seed);
        let code = make(&mut random, oracle.memory.code());
        oracle.memory.write_code(0, &code).expect("the program fits");
        fill_data(&mut random, &mut oracle);
        let state = random_state(&mut random, &oracle, &POINTERS);
        match oracle.compare(&state, &Oracle::options()) {
            Ok(Outcome::Useless) => *outcomes.entry("Useless".into()).or_default() += 1,
            Ok(Outcome::Left(kind, _)) => *outcomes.entry(format!("{kind:?}")).or_default() += 1,
            Err(difference) => panic!(
                "{name}, UB_FUZZ_SEED={seed}: {difference}\n{}",
                listing(&code, oracle.memory.code())
            ),
        }
    }
    println!("{name}: {programs} programs, left by {outcomes:?}");
    outcomes
}

/// Single instructions: every form gets its turn, in every register.
#[test]
fn single_instructions() {
    let outcomes = fuzz("single", 20_000, |random, _| {
        let mut code = generate::instruction(random, &POINTERS);
        code.push(0xcc);
        code
    });
    let through = outcomes["Unsupported"];
    assert!(through * 3 > outcomes["Useless"], "too little is translated: {outcomes:?}");
}

/// Straight code: what one instruction leaves behind (confined registers,
/// flags, slots) must be right for the next.
#[test]
fn straight_programs() {
    fuzz("straight", 6_000, |random, _| {
        let mut code = Vec::new();
        for _ in 0..4 + random.below(16) {
            code.extend(generate::instruction(random, &POINTERS));
        }
        code.push(0xcc);
        code
    });
}

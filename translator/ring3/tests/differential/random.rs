//! Random programs: same registers, flags, vectors and memory at the end.

use crate::harness::{listing, run_reference, run_translated};
use crate::program::generate;
use crate::rng::Rng;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use ub_ring3::memory::DATA_BYTES;
use ub_ring3::state::{ARITHMETIC_FLAGS, gpr};
use ub_ring3::{CpuState, GuestMemory, NativeStop, PollWords, Runner};
use ub_translator::fragment::ExitKind;

/// How many programs run unless UB_FUZZ_PROGRAMS says otherwise.
const PROGRAMS: u64 = 1500;
const SEED: u64 = 0x5eed_0000;

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} must be a number")),
        Err(_) => default,
    }
}

pub fn random_state(rng: &mut Rng, memory: &GuestMemory) -> CpuState {
    let mut state = CpuState::default();
    for r in &mut state.gpr {
        *r = rng.value();
    }
    state.gpr[gpr::RSP] = memory.stack_end() - 16384 - 16 * rng.below(64) as u64;
    state.rflags = rng.next() & ARITHMETIC_FLAGS;
    let wide = std::arch::is_x86_feature_detected!("avx512bw");
    let low = match std::arch::is_x86_feature_detected!("avx") {
        _ if wide => 64,
        true => 32,
        false => 16,
    };
    if wide {
        state.vectors.k = std::array::from_fn(|_| rng.value());
    }
    for z in state.vectors.zmm.iter_mut().take(if wide { 32 } else { 16 }) {
        for chunk in z[..low].chunks_mut(8) {
            let value =
                if rng.chance(50) { rng.value() } else { (rng.value() as i64 as f64).to_bits() };
            chunk.copy_from_slice(&value.to_le_bytes());
        }
    }
    state
}

#[test]
fn random_programs_end_as_natively() {
    let _guests = crate::beside_others();
    let programs = number("UB_FUZZ_PROGRAMS", PROGRAMS);
    let seed = number("UB_FUZZ_SEED", SEED);
    println!("UB_FUZZ_SEED={seed} UB_FUZZ_PROGRAMS={programs}");
    let mut memory = GuestMemory::new().unwrap();
    let mut runner = Runner::new().unwrap();
    let (mut whole, mut fragments) = (0, 0);
    let mut left: BTreeMap<String, u64> = BTreeMap::new();
    for index in 0..programs {
        let program_seed = seed.wrapping_add(index);
        let context = format!("repeat with UB_FUZZ_SEED={program_seed} UB_FUZZ_PROGRAMS=1");
        let mut rng = Rng(program_seed);
        let length = 4 + rng.below(60);
        let program = generate(&mut rng, &memory, length);
        memory.write_code(0, &program.code).unwrap();
        let data: Vec<u8> = (0..DATA_BYTES / 8).flat_map(|_| rng.value().to_le_bytes()).collect();
        memory.write_data(0, &data).unwrap();
        let before = memory.snapshot();
        let start = memory.code();

        let mut expected = random_state(&mut rng, &memory);
        let mut state = expected.clone();
        let (stop, expected_memory) = run_reference(&mut memory, start, program.end, &mut expected);
        assert_eq!(
            stop,
            NativeStop::Trap(program.end),
            "{context}: generator bug\n{}",
            match stop {
                NativeStop::Signal(fault) =>
                    listing(&program.code, fault.ip.wrapping_sub(start) as usize),
                NativeStop::Trap(_) => String::new(),
            }
        );

        memory.restore(&before);
        if rng.chance(20) {
            runner.poll_words().flags.store(PollWords::MASK, Ordering::SeqCst);
        }
        let mut next = start;
        // Where the translator leaves, the program goes on natively.
        if let Some(chain) = run_translated(&memory, &mut runner, start, &mut state, &context) {
            next = chain.last.next_ip();
            fragments += chain.entered;
            if (chain.last.exit.kind, next) == (ExitKind::Syscall, program.end) {
                whole += 1;
            } else {
                let why = (chain.last.exit.kind, chain.last.exit.reason);
                *left.entry(format!("{why:?}")).or_insert(0) += 1;
            }
        }
        runner.poll_words().clear();
        if next != program.end {
            let (stop, _) = run_reference(&mut memory, next, program.end, &mut state);
            assert_eq!(stop, NativeStop::Trap(program.end), "{context}: left at {next:#x}");
        }
        let differences = state.differences(&expected, ARITHMETIC_FLAGS);
        assert!(differences.is_empty(), "{context}: left at {next:#x}: {differences:#?}");
        if let Some(difference) = memory.snapshot().first_difference(&expected_memory) {
            panic!("{context}: left at {next:#x}: memory {difference:x?}");
        }
    }
    println!("{whole} of {programs} programs ran translated to the end, in {fragments} fragments");
    println!("the others left translated code by {left:?}");
    assert!(programs < 100 || whole * 10 > programs * 5, "only {whole} of {programs}");
}

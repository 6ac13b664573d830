//! The verifier against damaged fragments. Most mutants it refuses; whatever
//! it accepts is executed with hostile registers and must show none of the
//! effects that ring 0 must never have:
//!
//! * a signal without a fixup (an oops);
//! * a page fault at a kernel address (the access would have succeeded there;
//!   a non-canonical address reports no address, as #GP does);
//! * an address of the frame, the poll words or the code in a register, a
//!   vector or the guest's memory (a leak);
//! * running on although work is pending (the alarm ends the test).

use crate::harness::{fragment_at, listing};
use crate::program::generate;
use crate::random::random_state;
use crate::rng::Rng;
use iced_x86::{Decoder, Register};
use std::ops::Range;
use std::sync::atomic::Ordering;
use ub_ring3::memory::Snapshot;
use ub_ring3::state::gpr;
use ub_ring3::{CpuState, GuestMemory, Loaded, PollWords, Runner};
use ub_translator::fragment::{Fragment, Parts};
use ub_translator::verifier::{Features, Policy, verify};

const FRAGMENTS: u64 = 80;
const MUTANTS: u64 = 250;
/// A hanging mutant ends the test process after this many seconds.
const ALARM_SECONDS: u32 = 300;
/// The top of the address space is a hole that small negative displacements
/// may reach.
const TOP_HOLE: u64 = 0u64.wrapping_sub(2 << 20);

/// Flips one bit, or replaces one byte, or damages a table.
fn mutate(rng: &mut Rng, parts: &mut Parts) {
    let at = rng.below(parts.code.len());
    match rng.below(10) {
        0..=4 => parts.code[at] ^= 1 << rng.below(8),
        5 | 6 => parts.code[at] = rng.next() as u8,
        7 => {
            let from = rng.below(parts.code.len());
            parts.code[at] = parts.code[from];
        }
        8 if !parts.fixups.is_empty() => {
            let which = rng.below(parts.fixups.len());
            let starts: Vec<u32> =
                Decoder::with_ip(64, &parts.code, 0, 0).iter().map(|i| i.ip() as u32).collect();
            parts.fixups[which].landing = rng.pick(&starts);
        }
        _ => {
            let (a, b) = (rng.below(parts.exits.len()), rng.below(parts.exits.len()));
            parts.exits.swap(a, b);
        }
    }
}

/// Registers full of what a hostile program would try.
fn hostile_state(rng: &mut Rng, memory: &GuestMemory) -> CpuState {
    let mut state = random_state(rng, memory);
    let style = rng.below(3);
    for (i, r) in state.gpr.iter_mut().enumerate() {
        let data = memory.data() + 4096 + rng.next() % 32768;
        if i != gpr::RSP {
            *r = match style {
                0 => 0xffff_8880_0000_0000 | rng.next() & 0xfff_ffff,
                1 => rng.pick(&[data, data | 1 << 63, 0xffff_ffff_8100_0000, 0]),
                _ => rng.pick(&[data, *r, data & 0xff]),
            };
        }
    }
    state
}

/// Whether running the code could write to this thread's own TLS, which the
/// test itself lives on.
fn uses_fs(code: &[u8]) -> bool {
    Decoder::with_ip(64, code, 0, 0).iter().any(|i| i.segment_prefix() == Register::FS)
}

fn leaks(state: &CpuState, private: &[Range<u64>]) -> Option<u64> {
    let vectors = state.vectors.zmm.iter().flat_map(|z| z.chunks_exact(8));
    let words = vectors.map(|c| u64::from_le_bytes(c.try_into().expect("eight bytes")));
    state.gpr.iter().copied().chain(words).find(|v| private.iter().any(|r| r.contains(v)))
}

fn leaks_in_memory(memory: &GuestMemory, private: &[Range<u64>]) -> Option<u64> {
    memory.snapshot().words().find(|v| private.iter().any(|r| r.contains(v)))
}

#[test]
fn accepted_mutants_are_harmless() {
    let _guests = crate::alone();
    // SAFETY: only sets a timer; its signal's default action ends the process.
    unsafe { libc::alarm(ALARM_SECONDS) };
    let scale = std::env::var("UB_FUZZ_MUTANTS").map_or(1, |s| s.parse().expect("a factor"));
    let mut memory = GuestMemory::new().unwrap();
    let mut runner = Runner::new().unwrap();
    let policy = Policy::new(Features::host());
    let (mut accepted, mut refused, mut run) = (0u64, 0u64, 0u64);
    for seed in 0..FRAGMENTS {
        let mut rng = Rng(0xbad_0000 + seed);
        let length = 4 + rng.below(30);
        let program = generate(&mut rng, &memory, length);
        memory.write_code(0, &program.code).unwrap();
        let Some(original) = fragment_at(&memory, memory.code(), "original") else { continue };
        let clean: Snapshot = memory.snapshot();
        let mut code_ranges = Vec::new();
        for mutant in 0..MUTANTS * scale {
            let mut parts = original.parts().clone();
            for _ in 0..1 + rng.below(2) {
                mutate(&mut rng, &mut parts);
            }
            if parts == *original.parts() {
                continue;
            }
            let Ok(fragment) = verify(Fragment::new(parts), &policy) else {
                refused += 1;
                continue;
            };
            accepted += 1;
            let code = &fragment.parts().code;
            if uses_fs(code) {
                continue;
            }
            run += 1;
            let loaded = Loaded::new(&fragment).unwrap();
            let mut private = runner.private_ranges().to_vec();
            private.push(loaded.address()..loaded.address() + code.len() as u64);
            code_ranges.push(private[2].clone());
            for _ in 0..2 {
                let mut state = hostile_state(&mut rng, &memory);
                // Every loop has to end at its first poll.
                runner.poll_words().flags.store(PollWords::MASK, Ordering::SeqCst);
                let what =
                    |offset| format!("seed {seed} mutant {mutant}:\n{}", listing(code, offset));
                // SAFETY: verified; its pointers lead into the guest or,
                // being random, to nothing. That is what is tested.
                match unsafe { runner.enter(&loaded, &mut state) } {
                    Err(error) => panic!("{error}: {}", what(0)),
                    Ok(left) => {
                        if let Some(fault) = left.fault {
                            let kernel =
                                fault.address >= 0xffff_8000_0000_0000 && fault.address < TOP_HOLE;
                            let offset = (fault.ip - loaded.address()) as usize;
                            assert!(!kernel, "{fault:x?}: {}", what(offset));
                        }
                    }
                }
                if let Some(value) = leaks(&state, &private) {
                    panic!("leaked {value:#x}: {}", what(0));
                }
            }
        }
        code_ranges.extend(runner.private_ranges());
        let leaked = leaks_in_memory(&memory, &code_ranges);
        assert_eq!(leaked, None, "seed {seed}: kernel data in the guest's memory");
        memory.restore(&clean);
    }
    println!("{refused} mutants refused, {accepted} accepted, {run} of them run");
    assert!(refused > accepted / 4, "the verifier refuses hardly anything");
    assert!(run > 100, "hardly any mutant was run");
    // SAFETY: as above; takes the timer back.
    unsafe { libc::alarm(0) };
}

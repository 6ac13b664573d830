//! The verifier against damaged fragments. Most mutants it refuses; whatever
//! it accepts is executed with hostile registers and must do no harm.

use crate::case::{Case, predictions};
use crate::catalogue::Catalogue;
use crate::harm::{hostile_state, run, uses_fs};
use crate::mutate::mutate;
use crate::oracle::Oracle;
use crate::random::number;
use crate::rng::Rng;
use crate::worker::{Child, Shared, progress, spawn};
use iced_x86::{Decoder, DecoderOptions};
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;
use ub_ring3::Runner;
use ub_translator::fragment::{Fragment, Parts};
use ub_translator::verifier::{Policy, verify};
use ub_translator::{SliceSource, translate};

/// How many mutants are tried unless UB_FUZZ_MUTANTS says otherwise.
const MUTANTS: u64 = 12_000;
/// The same for the long run.
const MANY_MUTANTS: u64 = 100_000;
const SEED: u64 = 0xbad_0000;
const PER_FRAGMENT: u64 = 50;
const WORKERS: u64 = 2;
/// Hostile states that each accepted mutant is run with.
const RUNS: usize = 3;

/// Where [`Shared::counts`] has what.
const REFUSED: usize = 0;
const ACCEPTED: usize = 1;
const RUN: usize = 2;

/// The whole of `code`, for people.
fn whole(parts: &Parts) -> String {
    let mut text = String::new();
    for i in Decoder::with_ip(64, &parts.code, 0, DecoderOptions::NONE).iter() {
        let _ = writeln!(text, "  {:#06x} {i}", i.ip());
    }
    let _ = writeln!(text, "fixups {:x?}\nexits {:x?}", parts.fixups, parts.exits);
    text
}

/// One worker's mutants: the first harm that one does, or nothing.
fn share(
    worker: u64,
    first: u64,
    mutants: u64,
    policy: &Policy,
    catalogue: &Catalogue,
    shared: &Shared,
) -> String {
    let mut oracle = Oracle::new();
    let mut runner = Runner::new().expect("the runner can be set up");
    let mut seed = first + worker;
    while shared.done.load(Relaxed) < mutants {
        shared.current[worker as usize].store(seed, Relaxed);
        let case = Case::new(seed, catalogue, &oracle.memories);
        let mut rng = Rng(seed ^ 0x6d75_7461);
        let repeat = format!("repeat with UB_FUZZ_SEED={}", seed - worker);
        seed += WORKERS;
        let memory = &mut oracle.memories[usize::from(case.low)];
        let base = memory.code();
        let Some(image) = case.program.assemble(base) else { continue };
        memory.write_code(0, &image.code).expect("the program fits");
        let clean = memory.snapshot();
        let mut options = case.options.clone();
        options.predictions = predictions(&case, &image);
        let mut source = SliceSource { address: base, bytes: &image.code };
        let Ok(original) = translate(base, &mut source, &options) else { continue };
        for _ in 0..PER_FRAGMENT {
            progress();
            let Some(parts) = mutate(&mut rng, original.parts()) else { continue };
            if parts == *original.parts() {
                continue;
            }
            shared.done.fetch_add(1, Relaxed);
            let Ok(fragment) = verify(Fragment::new(parts), policy) else {
                shared.counts[REFUSED].fetch_add(1, Relaxed);
                continue;
            };
            shared.counts[ACCEPTED].fetch_add(1, Relaxed);
            if uses_fs(&fragment.parts().code) {
                continue;
            }
            shared.counts[RUN].fetch_add(1, Relaxed);
            for _ in 0..RUNS {
                let mut state = case.state.clone();
                if rng.chance(70) {
                    state = hostile_state(&mut rng, &state, memory);
                }
                if let Err(harm) = run(&fragment, &state, memory, &mut runner) {
                    return format!(
                        "{repeat}: an accepted mutant does harm: {harm}\nfrom {state:?}\n{}",
                        whole(fragment.parts())
                    );
                }
            }
        }
        memory.restore(&clean);
    }
    String::new()
}

/// What the first harmful mutants do; none if none is harmful.
pub fn harm(mutants: u64, seed: u64, policy: &Policy, shared: &Shared) -> Option<String> {
    let catalogue = Catalogue::new();
    let workers: Vec<Child> = (0..WORKERS)
        .map(|worker| spawn(|| share(worker, seed, mutants, policy, &catalogue, shared)))
        .collect();
    let mut found = None;
    for (worker, child) in workers.into_iter().enumerate() {
        let at = shared.current[worker].load(Relaxed);
        match child.wait() {
            Ok(text) if text.is_empty() => {}
            Ok(text) => found = Some(text),
            Err(death) => {
                found = Some(format!("a mutant of seed {at} takes its process: {}", death.0));
            }
        }
    }
    found
}

fn harmless(mutants: u64, seed: u64) {
    println!("UB_FUZZ_SEED={seed} UB_FUZZ_MUTANTS={mutants}");
    let start = Instant::now();
    let shared = Shared::new();
    let found = harm(mutants, seed, &crate::host::policy(), shared);
    assert_eq!(found, None, "{}", found.as_deref().unwrap_or_default());
    let [refused, accepted, run] =
        [REFUSED, ACCEPTED, RUN].map(|counter| shared.counts[counter].load(Relaxed));
    println!(
        "{refused} mutants refused, {accepted} accepted, {run} of them run in {:.1?}",
        start.elapsed()
    );
    assert!(refused > accepted / 4, "the verifier refuses hardly anything");
    assert!(mutants < 1000 || run > mutants / 50, "hardly any mutant was run");
}

#[test]
fn accepted_mutants_are_harmless() {
    let _guests = crate::alone();
    harmless(number("UB_FUZZ_MUTANTS", MUTANTS), number("UB_FUZZ_SEED", SEED));
}

#[test]
#[ignore = "a long run: make fuzz"]
fn fuzz_mutants() {
    let _guests = crate::alone();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = now.map_or(SEED, |now| now.as_secs() << 24);
    harmless(number("UB_FUZZ_MUTANTS", MANY_MUTANTS), number("UB_FUZZ_SEED", seed));
}

//! Random programs: same registers, flags, vectors and memory at the end.

use crate::case::Case;
use crate::catalogue::Catalogue;
use crate::oracle::{Oracle, Outcome};
use crate::program::Node;
use crate::shrink::report;
use crate::worker::{Child, Shared, progress, spawn};
use iced_x86::Code;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

/// How many programs run unless UB_FUZZ_PROGRAMS says otherwise.
const PROGRAMS: u64 = 15_000;
/// The same for the long run.
const MANY_PROGRAMS: u64 = 1_000_000;
const SEED: u64 = 0x5eed_0000;
const WORKERS: u64 = 2;
/// A worker stops after failures of so many kinds.
const KINDS: usize = 6;

/// The number in an environment variable.
pub fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} must be a number")),
        Err(_) => default,
    }
}

const COUNTS: [&str; 7] = [
    "whole programs ran translated to the end",
    "ended in a fault",
    "fragments ran",
    "faults were injected",
    "polls saw work",
    "guards refused",
    "instructions were left out",
];

fn count(shared: &Shared, outcome: &Outcome) {
    let values = [
        u64::from(outcome.whole),
        u64::from(outcome.faulted),
        outcome.fragments,
        outcome.injected,
        outcome.polled,
        outcome.guarded,
        outcome.unsupported,
    ];
    for (counter, value) in shared.counts.iter().zip(values) {
        counter.fetch_add(value, Relaxed);
    }
}

/// What a failure has in common with others of its kind: its text up to the
/// first instruction or number.
fn kind(what: &str) -> String {
    let words = what.split_whitespace().filter(|w| !w.contains(|c: char| c.is_ascii_digit()));
    words.take(12).collect::<Vec<_>>().join(" ")
}

/// One worker's share; the reports of its first failures, each of another
/// kind, or nothing.
fn share(
    worker: u64,
    mut seed: u64,
    end: u64,
    catalogue: &Catalogue,
    shared: &'static Shared,
) -> String {
    let mut oracle = Oracle::new();
    oracle.natively = Some(&shared.natively[worker as usize]);
    let mut reports: BTreeMap<String, String> = BTreeMap::new();
    while seed < end {
        shared.current[worker as usize].store(seed, Relaxed);
        progress();
        let case = Case::new(seed, catalogue, &oracle.memories);
        for node in &case.program.nodes {
            if let Node::Plain(i) | Node::Indirect(i, _) = node {
                shared.seen[i.code() as usize].store(1, Relaxed);
            }
        }
        match oracle.compare(&case) {
            Ok(outcome) => count(shared, &outcome.unwrap_or_default()),
            Err(failure) => {
                let kind = kind(&failure.what);
                reports.entry(kind).or_insert_with(|| report(&mut oracle, &case));
                if reports.len() >= KINDS {
                    break;
                }
            }
        }
        shared.done.fetch_add(1, Relaxed);
        seed += WORKERS;
    }
    reports.into_values().collect::<Vec<_>>().join("\n\n")
}

fn run(programs: u64, seed: u64) -> &'static Shared {
    let start = Instant::now();
    println!("UB_FUZZ_SEED={seed} UB_FUZZ_PROGRAMS={programs}");
    let catalogue = Catalogue::new();
    let shared = Shared::new();
    let end = seed + programs;
    let work = |worker, from| spawn(|| share(worker, from, end, &catalogue, shared));
    let mut workers: VecDeque<(u64, Child)> =
        (0..WORKERS).map(|worker| (worker, work(worker, seed + worker))).collect();
    let mut failures = Vec::new();
    let mut endless = 0;
    while let Some((worker, child)) = workers.pop_front() {
        match child.wait() {
            Ok(text) if text.is_empty() => {}
            Ok(text) => failures.push(text),
            Err(death) => {
                let at = shared.current[worker as usize].load(Relaxed);
                if death.is_hang() && shared.natively[worker as usize].load(Relaxed) == 1 {
                    // The generator's mistake: it shows nothing.
                    endless += 1;
                    workers.push_back((worker, work(worker, at + WORKERS)));
                    continue;
                }
                let mut oracle = Oracle::new();
                let case = Case::new(at, &catalogue, &oracle.memories);
                failures.push(format!("{}: {}", death.0, report(&mut oracle, &case)));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    let done = shared.done.load(Relaxed);
    assert!(endless <= programs / 10_000, "{endless} endless programs");
    println!("{done} programs without a mismatch in {:.1?}", start.elapsed());
    for (name, value) in COUNTS.iter().zip(&shared.counts) {
        println!("{:>10} {name}", value.load(Relaxed));
    }
    let seen = Code::values().filter(|&c| shared.seen[c as usize].load(Relaxed) != 0).count();
    println!("{seen} of iced's codes in programs; {} forms are translated", catalogue.len());
    shared
}

#[test]
fn random_programs_end_as_natively() {
    let _guests = crate::beside_others();
    let programs = number("UB_FUZZ_PROGRAMS", PROGRAMS);
    let shared = run(programs, number("UB_FUZZ_SEED", SEED));
    let whole = shared.counts[0].load(Relaxed);
    assert!(programs < 100 || whole * 10 > programs * 5, "only {whole} ran translated to the end");
    let injected = shared.counts[3].load(Relaxed);
    assert!(programs < 100 || injected * 10 > programs, "only {injected} faults were injected");
}

#[test]
#[ignore = "a long run: make fuzz"]
fn fuzz_programs() {
    let _guests = crate::beside_others();
    // Another seed every time, unless one is given.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = now.map_or(SEED, |now| now.as_secs() << 24);
    run(number("UB_FUZZ_PROGRAMS", MANY_PROGRAMS), number("UB_FUZZ_SEED", seed));
}

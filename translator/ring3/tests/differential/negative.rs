//! Negative controls: mistakes made on purpose, in the emitter and in the
//! verifier, are found by the same tests with the same budget that show that
//! there are none. A planted bug that is not found means that the generator
//! or the mutations have become too weak.

use crate::case::Case;
use crate::catalogue::Catalogue;
use crate::mutation::harm;
use crate::oracle::Oracle;
use crate::worker::{Shared, progress, spawn};
use ub_translator::PlantedBug;
use ub_translator::verifier;

const SEED: u64 = 0x9e9a;
/// Most programs until a bug of the emitter must have shown.
const PROGRAMS: u64 = 3_000;
/// Most mutants until a bug of the verifier must have shown.
const MUTANTS: u64 = 12_000;

/// After how many programs the difference shows; none if it does not. The
/// verifier, which would refuse most of these fragments, is not asked.
fn shows_after(bug: Option<PlantedBug>, programs: u64, catalogue: &Catalogue) -> Option<u64> {
    let shared = Shared::new();
    let child = spawn(|| {
        let mut oracle = Oracle::new();
        oracle.verifies = bug.is_none();
        for seed in SEED..SEED + programs {
            progress();
            let mut case = Case::new(seed, catalogue, &oracle.memories);
            case.options.planted = bug;
            if oracle.compare(&case).is_err() {
                return (seed - SEED + 1).to_string();
            }
            shared.done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        String::new()
    });
    match child.wait() {
        Ok(text) => text.parse().ok(),
        // It took its process, as it would have taken the kernel.
        Err(_) => Some(shared.done.load(std::sync::atomic::Ordering::Relaxed) + 1),
    }
}

#[test]
fn planted_bugs_of_the_emitter_are_found() {
    let _guests = crate::alone();
    let catalogue = Catalogue::new();
    assert_eq!(shows_after(None, 300, &catalogue), None, "a difference without a planted bug");
    for bug in PlantedBug::ALL {
        let after = shows_after(Some(bug), PROGRAMS, &catalogue);
        println!("{bug:?} shows after {after:?} programs");
        assert!(after.is_some(), "{bug:?} is not found by {PROGRAMS} programs");
    }
}

#[test]
fn planted_bugs_of_the_verifier_are_found() {
    let _guests = crate::alone();
    for bug in [
        verifier::PlantedBug::SkipConfinement,
        verifier::PlantedBug::TrustIndex,
        verifier::PlantedBug::SkipFixup,
        verifier::PlantedBug::SkipSlotRead,
    ] {
        let policy = crate::host::policy().without(bug);
        let shared = Shared::new();
        let found = harm(MUTANTS, SEED, &policy, shared);
        let after = shared.done.load(std::sync::atomic::Ordering::Relaxed);
        let first = found.as_deref().map(|text| text.lines().next().unwrap_or_default());
        println!("{bug:?} after {after} mutants: {first:?}");
        assert!(found.is_some(), "{bug:?} is not found by {MUTANTS} mutants");
    }
}

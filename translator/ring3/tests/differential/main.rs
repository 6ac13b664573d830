//! Translated code against the original, on the real CPU.
//!
//! Random programs, in which every form occurs that the translator takes
//! (`catalogue`, `generate`, `program`, `case`), run natively and translated
//! (`oracle`); a failing one is made small (`shrink`). Fragments are damaged
//! (`edit`, `mutate`) or written to do harm (`escapes`), and what the verifier
//! lets through is run and watched (`harm`, `mutation`). Bugs planted into
//! emitter and verifier must be found (`negative`). What needs a setting of
//! its own: `faults`, `polls`.
//!
//! `make fuzz` is the long run. `UB_FUZZ_SEED`, `UB_FUZZ_PROGRAMS` and
//! `UB_FUZZ_MUTANTS` choose what runs; every failure says how to repeat it.

mod case;
mod catalogue;
mod edit;
mod escapes;
mod faults;
mod generate;
mod harm;
mod harness;
mod host;
mod mutate;
mod mutation;
mod negative;
mod operands;
mod oracle;
mod polls;
mod program;
mod random;
mod rng;
mod show;
mod shrink;
mod worker;

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A damaged fragment may write to any user address, the guests of other
/// tests included: it runs alone.
static GUESTS: RwLock<()> = RwLock::new(());

/// Held by a test whose guests keep to their own memory.
fn beside_others() -> RwLockReadGuard<'static, ()> {
    GUESTS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held by a test whose guests may not.
fn alone() -> RwLockWriteGuard<'static, ()> {
    GUESTS.write().unwrap_or_else(PoisonError::into_inner)
}

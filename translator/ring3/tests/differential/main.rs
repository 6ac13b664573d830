//! Translated code against the original, on the real CPU.

mod faults;
mod harness;
mod mutation;
mod polls;
mod program;
mod random;
mod rng;

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

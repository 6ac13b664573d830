//! What sessions leave alone, whatever riding it would gain.

use std::collections::HashMap;

use serde::Serialize;

use crate::profile::Profile;

/// Thresholds of sessions, see `ub run --help`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Limits {
    /// System calls of a thread in a second, below which it is left alone.
    pub min_rate: u32,
    /// The longest gap that is tried, in nanoseconds.
    pub gap_max_ns: f64,
}

impl Default for Limits {
    /// Those of a session for which nothing is set (`module/session.c`).
    fn default() -> Self {
        Self { min_rate: 50_000, gap_max_ns: 32_000.0 }
    }
}

/// System calls a second of each thread, over the time in which they were timed: bursts may
/// be faster.
pub(super) fn rates(profile: &Profile) -> HashMap<u32, f64> {
    let rate = |calls: u64, elapsed_ns: u64| calls as f64 / (elapsed_ns as f64 / 1e9).max(1e-9);
    let timed = rate(profile.calls(), profile.elapsed_ns);
    let counted = rate(profile.counted.calls, profile.counted.elapsed_ns);
    // Programs are faster where nobody times their calls.
    let faster =
        if profile.counted.is_enough() { (counted / timed.max(1e-9)).max(1.0) } else { 1.0 };
    let mut rates = HashMap::new();
    for gap in &profile.gaps {
        *rates.entry(gap.thread).or_default() += faster * rate(gap.count, profile.elapsed_ns);
    }
    rates
}

impl Limits {
    /// Whether a gap that takes `user_ns`, of a thread that makes `rate` system calls a
    /// second, is tried.
    pub(super) fn admit(self, rate: f64, user_ns: f64) -> bool {
        rate >= f64::from(self.min_rate) && user_ns <= self.gap_max_ns
    }
}

//! What the supervisor counts about its own work.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Durations kept for the median.
const SAMPLES: usize = 4096;

/// Refused entries kept for the report.
const REFUSED: usize = 64;

/// Why a report did not lead to a fragment. The names are those of the JSON
/// report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Nothing on the allow-list at this address, or the code is unreadable.
    Unsupported,
    /// Translated, but leads to no system call and no further code.
    Useless,
    /// The translator found a mistake of its own.
    TranslatorBug,
    /// The verifier did not accept the translation.
    VerifierRefused,
    /// Translator or verifier panicked.
    Panic,
    /// The code kept changing while it was translated.
    Stale,
    /// A limit of the session or the arena was reached.
    NoRoom,
    /// The module did not accept a verified fragment.
    ModuleRefused,
    /// The address space ended meanwhile.
    Gone,
}

impl Failure {
    /// Name for people and for the JSON report.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unsupported => "unsupported",
            Self::Useless => "useless",
            Self::TranslatorBug => "translator_bug",
            Self::VerifierRefused => "verifier_refused",
            Self::Panic => "panic",
            Self::Stale => "stale",
            Self::NoRoom => "no_room",
            Self::ModuleRefused => "module_refused",
            Self::Gone => "gone",
        }
    }
}

/// An address of which no fragment was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedEntry {
    /// The user address.
    pub address: u64,
    /// The reason, for counting.
    pub failure: Failure,
    /// The reason, for people.
    pub message: String,
}

/// Counters of one supervisor.
#[derive(Debug, Default)]
pub struct Counters {
    /// Reports handled.
    pub reports: u64,
    /// Reports of a kind that this program does not know.
    pub unknown_reports: u64,
    /// Reports about addresses already known to be useless or installed.
    pub repeated_reports: u64,
    /// Reports passed over while there was no room.
    pub passed_over: u64,
    /// Translations begun, repetitions included.
    pub translations: u64,
    /// Fragments installed.
    pub installed: u64,
    /// Installs that were repeated because the code had changed.
    pub stale_retries: u64,
    /// Fragments retired because they did not pay.
    pub retired_unpaid: u64,
    /// Code bytes installed.
    pub code_bytes: u64,
    /// User instructions in the installed fragments.
    pub guest_instructions: u64,
    /// Reports that led to nothing, by reason.
    pub failures: BTreeMap<Failure, u64>,
    refused: Vec<RefusedEntry>,
    time_total: Duration,
    recent: VecDeque<Duration>,
}

impl Counters {
    /// Counts a report that led to nothing.
    pub fn fail(&mut self, failure: Failure) {
        *self.failures.entry(failure).or_default() += 1;
    }

    /// Counts an address of which nothing can be made, and remembers it while
    /// there is room.
    pub fn refuse(&mut self, address: u64, failure: Failure, message: impl ToString) {
        self.fail(failure);
        let known = self.refused.iter().any(|entry| entry.address == address);
        if !known && self.refused.len() < REFUSED {
            let message = message.to_string();
            self.refused.push(RefusedEntry { address, failure, message });
        }
    }

    /// The first addresses (at most 64) that were refused.
    #[must_use]
    pub fn refused(&self) -> &[RefusedEntry] {
        &self.refused
    }

    /// Counts the time of one translation with its verification.
    pub fn took(&mut self, time: Duration) {
        self.translations += 1;
        self.time_total += time;
        if self.recent.len() == SAMPLES {
            self.recent.pop_front();
        }
        self.recent.push_back(time);
    }

    /// Time spent translating and verifying.
    #[must_use]
    pub fn time_total(&self) -> Duration {
        self.time_total
    }

    /// Median time of the last translations (at most 4096).
    #[must_use]
    pub fn time_median(&self) -> Option<Duration> {
        let mut times: Vec<_> = self.recent.iter().copied().collect();
        let middle = times.len() / 2;
        (!times.is_empty()).then(|| *times.select_nth_unstable(middle).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_of_the_latest() {
        let mut counters = Counters::default();
        assert_eq!(counters.time_median(), None);
        for _ in 0..SAMPLES {
            counters.took(Duration::from_secs(9));
        }
        for micros in 0..SAMPLES as u64 {
            counters.took(Duration::from_micros(micros));
        }
        assert_eq!(counters.time_median(), Some(Duration::from_micros(SAMPLES as u64 / 2)));
        assert_eq!(counters.translations, 2 * SAMPLES as u64);
    }
}

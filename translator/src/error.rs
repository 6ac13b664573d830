//! Why a translation failed as a whole.

use thiserror::Error;

use crate::fragment::Unsupported;

/// Why [`crate::translate()`] produced no fragment.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TranslateError {
    /// Nothing can be run before the first exit. Not an error of anyone: the
    /// entry should not be asked for again until its code changes.
    #[error("nothing to run at {entry:#x}: the first instruction is unsupported ({reason:?})")]
    Useless {
        /// The entry asked for.
        entry: u64,
        /// Why its first instruction ends the fragment.
        reason: Unsupported,
    },
    /// The options leave no room for even one instruction.
    #[error("no room at {entry:#x}: raise Options::max_code_bytes above {needed}")]
    NoRoom {
        /// The entry asked for.
        entry: u64,
        /// Size in bytes of the smallest attempt.
        needed: usize,
    },
    /// The translator contradicts itself; please report it with the code at
    /// the entry.
    #[error("translator bug at {entry:#x}: {what}")]
    Bug {
        /// The entry asked for.
        entry: u64,
        /// What went wrong.
        what: String,
    },
}

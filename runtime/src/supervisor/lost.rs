//! Reports that the module had no room for.
//!
//! Most are made again: of hot gaps, misses and guards whenever their count has
//! doubled. Those of code that changed, and of fragments that went, are not. So when
//! some were lost, what they could have voided is forgotten; the module says what
//! is missing. That an exit was linked is told again only when it is linked anew:
//! until then a fragment may stay smaller than it could be, which costs time.

use tracing::info;

use super::{Pipeline, Supervisor};
use crate::kernel::Kernel;

/// Fewer reports than this fit into the module's queue at any time: while no
/// more were waiting, it has had room for all.
pub(super) const BACKLOG: u64 = 256;

/// What is needed to notice that reports were lost.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Reports read since none was waiting.
    backlog: u64,
    /// Reports lost when last looked at.
    known: u64,
}

impl<K: Kernel, P: Pipeline> Supervisor<K, P> {
    /// So many reports were read at once.
    pub(super) fn were_waiting(&mut self, reports: usize) {
        self.lost.backlog += reports as u64;
    }

    /// None is waiting: forgets what may be void, if some were lost meanwhile.
    pub(super) fn make_up_for_lost(&mut self) {
        if std::mem::take(&mut self.lost.backlog) < BACKLOG {
            return;
        }
        // An unusable session ends the supervisor when it is read next.
        let Ok(stats) = self.kernel.stats() else { return };
        if stats.reports_dropped == self.lost.known {
            return;
        }
        info!(lost = stats.reports_dropped - self.lost.known, "reports were lost");
        self.lost.known = stats.reports_dropped;
        self.spaces.values_mut().for_each(super::AddressSpace::doubt);
        self.room.appeared();
    }
}

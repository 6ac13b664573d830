//! Which arithmetic flags are live where. Flags are the user's: a sequence
//! may clobber them only where this analysis proves them dead.

use std::collections::BTreeMap;

use crate::flags::{Effects, Flags, effects};
use crate::region::{Block, End, Region};

/// Flags live at the start of each block.
#[derive(Debug, Clone)]
pub(crate) struct Liveness {
    at_start: BTreeMap<u64, Flags>,
}

/// Solves the backward problem over the region. All flags are live wherever
/// control may leave the fragment by a branch or exit. Fault, guard and poll
/// exits add nothing: there a dead flag is one that the code at the exit
/// replaces before reading.
pub(crate) fn analyse(region: &Region) -> Liveness {
    let mut liveness = Liveness {
        at_start: region.blocks.keys().map(|&start| (start, Flags::NONE)).collect(),
    };
    let mut changed = true;
    while changed {
        changed = false;
        for (start, block) in region.blocks.iter().rev() {
            let live = liveness.in_block(block).first().copied().unwrap_or(Flags::ALL);
            if liveness.at_start.insert(*start, live) != Some(live) {
                changed = true;
            }
        }
    }
    liveness
}

impl Liveness {
    /// Flags live at `address`, all of them outside the region.
    pub(crate) fn at(&self, address: u64) -> Flags {
        self.at_start.get(&address).copied().unwrap_or(Flags::ALL)
    }

    /// Flags live before each body instruction, then before the terminator,
    /// then behind it.
    pub(crate) fn in_block(&self, block: &Block) -> Vec<Flags> {
        let behind = match &block.end {
            End::Next(next) => self.at(*next),
            End::Branch { taken, next } => self.at(*taken).union(self.at(*next)),
            End::Jump { target } => self.at(*target),
            End::Call { callee, .. } => self.at(*callee),
            // A miss leaves the fragment.
            End::Exit { .. }
            | End::IndirectJump { .. }
            | End::IndirectCall { .. }
            | End::Return { .. } => Flags::ALL,
        };
        let mut live = vec![behind];
        for guest in block.body.iter().chain(&block.terminator).rev() {
            let after = live[live.len() - 1];
            live.push(after.before(effects_of(guest)));
        }
        live.reverse();
        live
    }
}

fn effects_of(guest: &crate::region::Guest) -> Effects {
    if guest.class == crate::forms::Class::Hint {
        return Effects { reads: Flags::NONE, replaces: Flags::NONE, touches: Flags::NONE };
    }
    effects(&guest.instruction)
}

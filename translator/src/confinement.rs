//! Which user registers are known to have bit 63 clear at the start of each
//! block, so that a base confined on every way there is not confined again.
//!
//! Only saves guards: the verifier follows the same facts on its own.

use std::collections::BTreeMap;

use iced_x86::Register;

use crate::layout::Layout;
use crate::liveness::Liveness;
use crate::region::Region;
use crate::regs::GprSet;

/// What one block does to the set.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BlockEffect {
    /// Confined at its end, whatever held at its start.
    pub gains: GprSet,
    /// Lost somewhere in it.
    pub loses: GprSet,
}

/// Solves the forward problem: at a block's start, what holds at the end of
/// all blocks before it. Nothing holds at the region's entry.
pub(crate) fn solve(
    region: &Region,
    layout: &Layout,
    liveness: &Liveness,
    effects: &BTreeMap<u64, BlockEffect>,
) -> BTreeMap<u64, GprSet> {
    let mut at_start: BTreeMap<u64, GprSet> =
        layout.order.iter().map(|&start| (start, GprSet::ALL)).collect();
    at_start.insert(region.entry, GprSet::default());
    let mut changed = true;
    while changed {
        changed = false;
        for &from in &layout.order {
            let effect = effects.get(&from).copied().unwrap_or_default();
            let at_end = at_start[&from].without(effect.loses).union(effect.gains);
            for to in region.blocks[&from].successors() {
                let Some(&known) = at_start.get(&to) else { continue };
                let mut arriving = at_end;
                if layout.is_backward(from, to) && !liveness.at(to).is_empty() {
                    // The poll on this edge reloads rax from its slot.
                    arriving.remove(Register::RAX);
                }
                let joined = known.intersection(arriving);
                if joined != known {
                    at_start.insert(to, joined);
                    changed = true;
                }
            }
        }
    }
    at_start
}

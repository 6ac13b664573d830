//! Which user registers are known to have bit 63 clear at the start of each
//! block, so that a base confined on every way there is not confined again.
//!
//! Only saves guards: the verifier follows the same facts on its own.

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
/// all blocks before it. Nothing holds at the region's entry. By position.
pub(crate) fn solve(
    region: &Region,
    layout: &Layout,
    liveness: &Liveness,
    effects: &[BlockEffect],
) -> Vec<GprSet> {
    let mut at_start = vec![GprSet::ALL; layout.order.len()];
    at_start[layout.position[&region.entry]] = GprSet::default();
    let mut changed = true;
    while changed {
        changed = false;
        for &(from, to) in &layout.edges {
            let effect = effects[from];
            let mut arriving = at_start[from].without(effect.loses).union(effect.gains);
            if to <= from && !liveness.at(layout.order[to]).is_empty() {
                // The poll on this edge reloads rax from its slot.
                arriving.remove(Register::RAX);
            }
            let joined = at_start[to].intersection(arriving);
            changed |= joined != at_start[to];
            at_start[to] = joined;
        }
    }
    at_start
}

//! The order in which blocks are emitted, and how deep in loops they lie.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;

use crate::region::{End, Region};
use crate::steps::{AddressHasher, AddressMap};

/// Emission order of a region's blocks.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Block starts; the entry comes first.
    pub order: Vec<u64>,
    /// Position of each block in `order`.
    pub position: AddressMap<usize>,
    /// Edges between blocks in `order`, by position, sorted by origin.
    pub edges: Vec<(usize, usize)>,
    /// How many backward edges span each block, by position.
    pub depth: Vec<u32>,
}

impl Layout {
    /// Whether a jump from the block at `from` to the one at `to` leads to a
    /// lower offset, which takes a poll.
    pub(crate) fn is_backward(&self, from: u64, to: u64) -> bool {
        self.position[&to] <= self.position[&from]
    }
}

/// Reverse postorder: every edge that closes no cycle leads forward, so only
/// loops pay for polls. A callee comes before its return site.
pub(crate) fn layout(region: &Region) -> Layout {
    let mut postorder = Vec::with_capacity(region.blocks.len());
    let mut state: AddressMap<Vec<u64>> = AddressMap::default();
    let mut stack = Vec::new();
    let mut visit = |start: u64, stack: &mut Vec<u64>| {
        stack.push(start);
        while let Some(&at) = stack.last() {
            let pending = state.entry(at).or_insert_with(|| {
                // Popped from the back: what should come next goes first,
                // because the last one visited is laid next.
                let block = &region.blocks[&at];
                let mut next = block.successors();
                if let End::Call { site, .. } | End::IndirectCall { site, .. } = &block.end {
                    next.insert(0, *site);
                }
                next.reverse();
                next.retain(|target| region.blocks.contains_key(target));
                next
            });
            match pending.pop() {
                Some(next) if !state.contains_key(&next) => stack.push(next),
                Some(_) => {}
                None => {
                    stack.pop();
                    postorder.push(at);
                }
            }
        }
    };
    visit(region.entry, &mut stack);
    postorder.reverse();
    // A return site whose call never returns inside the region was ordered,
    // but nothing leads to it. Bare exits need no block: edges lead to their
    // stubs.
    let reachable = reachable(region);
    let order: Vec<u64> = postorder
        .into_iter()
        .filter(|at| {
            let bare = region.blocks[at].is_bare_exit() && *at != region.entry;
            reachable.contains(at) && !bare
        })
        .collect();
    let position: AddressMap<usize> =
        order.iter().enumerate().map(|(i, &start)| (start, i)).collect();
    let mut depth = vec![0; order.len()];
    let mut edges = Vec::with_capacity(2 * order.len());
    for (from, start) in order.iter().enumerate() {
        for target in region.blocks[start].successors() {
            let Some(&to) = position.get(&target) else { continue };
            edges.push((from, to));
            if to <= from {
                for level in &mut depth[to..=from] {
                    *level += 1;
                }
            }
        }
    }
    Layout { order, position, edges, depth }
}

fn reachable(region: &Region) -> HashSet<u64, BuildHasherDefault<AddressHasher>> {
    let mut reachable = HashSet::default();
    let mut stack = vec![region.entry];
    while let Some(at) = stack.pop() {
        if let Some(block) = region.blocks.get(&at)
            && reachable.insert(at)
        {
            stack.extend(block.successors());
        }
    }
    reachable
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CpuFeatures;
    use crate::region::discover;
    use crate::source::SliceSource;
    use crate::steps::Steps;

    fn layout_of(bytes: &[u8]) -> Layout {
        let mut source = SliceSource { address: 0x1000, bytes };
        let options = crate::Options::new(CpuFeatures::all());
        layout(
            &discover(
                0x1000,
                &mut Steps::new(&mut source, options.cpu),
                &options.predicted_targets,
                100,
            )
            .expect("a region"),
        )
    }

    #[test]
    fn both_arms_come_before_their_join() {
        // 1000 je 1006; 1002 inc eax; 1004 jmp 1008; 1006 dec eax; 1008 inc eax; syscall
        let layout = layout_of(&[0x74, 4, 0xff, 0xc0, 0xeb, 2, 0xff, 0xc8, 0xff, 0xc0, 0x0f, 0x05]);
        assert_eq!(layout.order, [0x1000, 0x1002, 0x1006, 0x1008]);
        assert_eq!(layout.depth, [0, 0, 0, 0]);
    }

    #[test]
    fn a_callee_comes_before_its_return_site() {
        // 1000 call 1009; 1005 inc eax; 1007 syscall; 1009 inc ecx; 100b ret
        let layout = layout_of(&[0xe8, 4, 0, 0, 0, 0xff, 0xc0, 0x0f, 0x05, 0xff, 0xc1, 0xc3]);
        assert_eq!(layout.order, [0x1000, 0x1009, 0x1005]);
    }

    #[test]
    fn only_loops_are_backward_and_deep() {
        // 1000 inc eax; 1002 dec ecx; 1004 jne 1002; 1006 inc eax; syscall
        let layout = layout_of(&[0xff, 0xc0, 0xff, 0xc9, 0x75, 0xfc, 0xff, 0xc0, 0x0f, 0x05]);
        assert_eq!(layout.depth, [0, 1, 0]);
        assert!(layout.is_backward(0x1002, 0x1002));
        assert!(!layout.is_backward(0x1002, 0x1006));
    }
}

//! The order in which blocks are emitted, and how deep in loops they lie.

use crate::graph::{BlockId, Graph};

/// Emission order of a graph's blocks.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The blocks that are emitted; the entry comes first.
    pub order: Vec<BlockId>,
    /// Position of each block in `order`; [`NOWHERE`] for the ones that are not.
    position: Vec<u32>,
    /// Edges between blocks in `order`, by position, sorted by origin.
    pub edges: Vec<(usize, usize)>,
    /// How many backward edges span each block, by position.
    pub depth: Vec<u32>,
    /// The only block that leads to each, by position.
    sole_predecessor: Vec<Option<BlockId>>,
}

const NOWHERE: u32 = u32::MAX;

impl Layout {
    /// Position of a block that is emitted.
    pub(crate) fn position(&self, block: BlockId) -> usize {
        debug_assert_ne!(self.position[block.index()], NOWHERE);
        self.position[block.index()] as usize
    }

    /// The only block that leads to `block`, which is not the entry.
    pub(crate) fn sole_predecessor(&self, block: BlockId) -> Option<BlockId> {
        self.sole_predecessor[self.position(block)]
    }

    /// Whether control goes backward from the block at `position`.
    pub(crate) fn is_latch(&self, position: usize) -> bool {
        let first = self.edges.partition_point(|edge| edge.0 < position);
        self.edges[first..]
            .iter()
            .take_while(|edge| edge.0 == position)
            .any(|edge| edge.1 <= position)
    }

    /// Whether a jump from the block `from` to the block `to` leads to a lower
    /// offset, which takes a poll.
    pub(crate) fn is_backward(&self, from: BlockId, to: BlockId) -> bool {
        self.position(to) <= self.position(from)
    }
}

/// Reverse postorder: every edge that closes no cycle leads forward, so only
/// loops pay for polls. What is likeliest next comes next.
pub(crate) fn layout(graph: &Graph) -> Layout {
    let postorder = postorder(graph);
    // Bare exits need no block: edges lead to their stubs.
    let emitted = |block: &BlockId| *block == BlockId::ENTRY || !graph.block(*block).is_bare_exit();
    let order: Vec<BlockId> = postorder.into_iter().rev().filter(emitted).collect();
    let mut position = vec![NOWHERE; graph.blocks.len()];
    for (i, block) in order.iter().enumerate() {
        position[block.index()] = i as u32;
    }
    let mut depth = vec![0; order.len()];
    let mut edges = Vec::with_capacity(2 * order.len());
    for (from, &block) in order.iter().enumerate() {
        graph.block(block).for_successors(|target| {
            let to = position[target.index()];
            if to == NOWHERE {
                return;
            }
            let to = to as usize;
            edges.push((from, to));
            if to <= from {
                for level in &mut depth[to..=from] {
                    *level += 1;
                }
            }
        });
    }
    let mut sole_predecessor = vec![None; order.len()];
    let mut entered = vec![false; order.len()];
    entered[0] = true;
    for &(from, to) in &edges {
        let another = std::mem::replace(&mut entered[to], true);
        sole_predecessor[to] = if another { None } else { Some(order[from]) };
    }
    Layout { order, position, edges, depth, sole_predecessor }
}

/// The blocks that the entry leads to, each behind its successors.
fn postorder(graph: &Graph) -> Vec<BlockId> {
    let mut postorder = Vec::with_capacity(graph.blocks.len());
    let mut visited = vec![false; graph.blocks.len()];
    let mut stack = vec![(BlockId::ENTRY, false)];
    while let Some((block, done)) = stack.pop() {
        if done {
            postorder.push(block);
            continue;
        }
        if std::mem::replace(&mut visited[block.index()], true) {
            continue;
        }
        stack.push((block, true));
        let first = stack.len();
        graph.block(block).for_successors(|to| {
            if !visited[to.index()] {
                stack.push((to, false));
            }
        });
        // What is visited last is laid next; the top of the stack is first.
        stack[first..].reverse();
    }
    postorder
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuFeatures;
    use crate::graph::build;
    use crate::region::discover;
    use crate::source::SliceSource;
    use crate::steps::Steps;
    use crate::translate::Predictions;

    /// The start addresses in order, and the layout.
    fn layout_of(bytes: &[u8]) -> (Vec<u64>, Layout) {
        let mut source = SliceSource { address: 0x1000, bytes };
        let mut steps = Steps::new(&mut source, CpuFeatures::all());
        let region =
            discover(0x1000, &mut steps, &Predictions::default(), 100, false).expect("a region");
        let graph = build(&region, &steps, 0);
        let layout = layout(&graph);
        let order = layout.order.iter().map(|&block| graph.block(block).start).collect();
        (order, layout)
    }

    #[test]
    fn both_arms_come_before_their_join() {
        // 1000 je 1006; 1002 inc eax; 1004 jmp 1008; 1006 dec eax; 1008 inc eax; syscall
        let code = [0x74, 4, 0xff, 0xc0, 0xeb, 2, 0xff, 0xc8, 0xff, 0xc0, 0x0f, 0x05];
        let (order, layout) = layout_of(&code);
        assert_eq!(order, [0x1000, 0x1002, 0x1006, 0x1008]);
        assert_eq!(layout.depth, [0, 0, 0, 0]);
    }

    #[test]
    fn a_callee_comes_before_its_return_site() {
        // 1000 call 1009; 1005 inc eax; 1007 syscall; 1009 inc ecx; 100b ret
        let code = [0xe8, 4, 0, 0, 0, 0xff, 0xc0, 0x0f, 0x05, 0xff, 0xc1, 0xc3];
        assert_eq!(layout_of(&code).0, [0x1000, 0x1009, 0x1005]);
    }

    #[test]
    fn only_loops_are_backward_and_deep() {
        // 1000 inc eax; 1002 dec ecx; 1004 jne 1002; 1006 inc eax; syscall
        let code = [0xff, 0xc0, 0xff, 0xc9, 0x75, 0xfc, 0xff, 0xc0, 0x0f, 0x05];
        let (order, layout) = layout_of(&code);
        assert_eq!(order, [0x1000, 0x1002, 0x1006]);
        assert_eq!(layout.depth, [0, 1, 0]);
        let [_, head, behind] = layout.order[..] else { panic!("three blocks") };
        assert!(layout.is_backward(head, head));
        assert!(!layout.is_backward(head, behind));
    }
}

//! Copies the bodies of small inner loops a few times, so that most turns
//! pass without a poll: only the last copy jumps backward.

use crate::graph::{Block, BlockId, Graph};

/// Loops of at most this many instructions are unrolled ...
const MAX_BODY: usize = 64;
/// ... to about this many, ...
const UNROLLED: usize = 128;
/// ... in at most this many copies.
const MAX_COPIES: usize = 8;

/// A natural loop.
#[derive(Debug, PartialEq, Eq)]
struct Loop {
    header: BlockId,
    /// All its blocks, the header first.
    blocks: Vec<BlockId>,
    instructions: usize,
}

/// Unrolls the small innermost loops of `graph`.
pub(crate) fn unroll(graph: &mut Graph) {
    for found in inner_loops(graph) {
        for &block in &found.blocks {
            let inside = |target: Option<BlockId>| {
                target.is_some_and(|target| found.blocks.contains(&target))
            };
            graph.blocks[block.index()].prefer(inside);
        }
        let copies = (UNROLLED / found.instructions.max(1)).clamp(1, MAX_COPIES);
        if copies > 1 {
            copy(graph, &found, copies);
        }
    }
}

/// The innermost loops with at most [`MAX_BODY`] instructions.
fn inner_loops(graph: &Graph) -> Vec<Loop> {
    let (edges, back) = edges(graph);
    if back.is_empty() {
        return Vec::new();
    }
    let predecessors = Predecessors::new(graph, &edges);
    let mut headers: Vec<BlockId> = back.iter().map(|&(_, header)| header).collect();
    headers.sort_unstable();
    headers.dedup();
    let mut loops = Vec::new();
    for &header in &headers {
        let latches = back.iter().filter(|edge| edge.1 == header).map(|edge| edge.0);
        let Some(found) = natural_loop(graph, &predecessors, header, latches) else { continue };
        let inner = !found.blocks[1..].iter().any(|block| headers.binary_search(block).is_ok());
        if inner {
            loops.push(found);
        }
    }
    loops
}

/// The blocks from which `latches` are reached without passing `header`;
/// none if they are too many or can be entered elsewhere.
fn natural_loop(
    graph: &Graph,
    predecessors: &Predecessors,
    header: BlockId,
    latches: impl Iterator<Item = BlockId>,
) -> Option<Loop> {
    let mut blocks = vec![header];
    let mut instructions = graph.block(header).len();
    let mut stack: Vec<BlockId> = latches.collect();
    while let Some(block) = stack.pop() {
        if blocks.contains(&block) {
            continue;
        }
        instructions += graph.block(block).len();
        if block == BlockId::ENTRY || instructions > MAX_BODY {
            return None;
        }
        blocks.push(block);
        stack.extend(predecessors.of(block));
    }
    (instructions <= MAX_BODY).then_some(Loop { header, blocks, instructions })
}

type Edge = (BlockId, BlockId);

/// The blocks that lead to each block.
struct Predecessors {
    /// Grouped by the block they lead to.
    list: Vec<BlockId>,
    /// Where the group of each block ends; it begins where the one before ends.
    ends: Vec<usize>,
}

impl Predecessors {
    fn new(graph: &Graph, edges: &[Edge]) -> Self {
        let mut ends = vec![0; graph.blocks.len()];
        for (_, to) in edges {
            ends[to.index()] += 1;
        }
        let mut total = 0;
        for end in &mut ends {
            // The beginning of the group for now.
            total += std::mem::replace(end, total);
        }
        let mut list = vec![BlockId::ENTRY; edges.len()];
        for (from, to) in edges {
            list[ends[to.index()]] = *from;
            ends[to.index()] += 1;
        }
        Self { list, ends }
    }

    fn of(&self, block: BlockId) -> &[BlockId] {
        let start = block.index().checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.list[start..self.ends[block.index()]]
    }
}

/// The edges that are reached, and those of them that close a cycle in a
/// depth-first walk.
fn edges(graph: &Graph) -> (Vec<Edge>, Vec<Edge>) {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let count = graph.blocks.len();
    let mut edges = Vec::with_capacity(2 * count);
    let mut back = Vec::new();
    let mut marks = vec![Mark::New; count];
    let mut stack = vec![(BlockId::ENTRY, false)];
    while let Some((block, done)) = stack.pop() {
        if done {
            marks[block.index()] = Mark::Done;
            continue;
        }
        if marks[block.index()] != Mark::New {
            continue;
        }
        marks[block.index()] = Mark::Open;
        stack.push((block, true));
        graph.block(block).for_successors(|to| {
            edges.push((block, to));
            match marks[to.index()] {
                Mark::New => stack.push((to, false)),
                Mark::Open => back.push((block, to)),
                Mark::Done => {}
            }
        });
    }
    (edges, back)
}

/// Appends copies to the graph, `copies` in all with the original.
fn copy(graph: &mut Graph, found: &Loop, copies: usize) {
    let first = graph.blocks.len();
    let size = found.blocks.len();
    let position = |block: BlockId| found.blocks.iter().position(|&known| known == block);
    for _ in 1..copies {
        for &block in &found.blocks {
            let block = graph.block(block).clone();
            graph.blocks.push(block);
        }
    }
    // Number of the block that is `position` in the copy `turn`.
    let number = |turn: usize, position: usize| match turn {
        0 => found.blocks[position],
        _ => BlockId((first + (turn - 1) * size + position) as u32),
    };
    for turn in 0..copies {
        for at in 0..size {
            let block: &mut Block = &mut graph.blocks[number(turn, at).index()];
            for target in block.targets_mut() {
                let Some(to) = target.block.and_then(position) else { continue };
                // The header, which is first, begins the next turn.
                let turn = if to == 0 { (turn + 1) % copies } else { turn };
                target.block = Some(number(turn, to));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{End, Target};

    fn block(length: usize, end: End) -> Block {
        Block { start: 0, body: 0..length, terminator: None, end, likely_taken: false }
    }

    fn to(block: u32) -> Target {
        Target { address: u64::from(block), block: Some(BlockId(block)) }
    }

    fn out() -> Target {
        Target { address: 99, block: None }
    }

    fn successors(graph: &Graph, block: u32) -> Vec<u32> {
        let mut list = Vec::new();
        graph.block(BlockId(block)).for_successors(|to| list.push(to.0));
        list
    }

    #[test]
    fn a_small_loop_jumps_back_once_in_a_few_turns() {
        let mut graph = Graph {
            blocks: vec![
                block(1, End::Next(to(1))),
                block(9, End::Branch { taken: to(1), next: out() }),
            ],
        };
        unroll(&mut graph);
        assert_eq!(graph.blocks.len(), 1 + MAX_COPIES);
        let last = MAX_COPIES as u32;
        for block in 0..last {
            assert_eq!(successors(&graph, block), [block + 1]);
        }
        assert_eq!(successors(&graph, last), [1]);
        assert!(graph.blocks[1..].iter().all(|block| block.likely_taken));
    }

    #[test]
    fn an_outer_loop_stays() {
        // 1 { 2 }: only 2 is innermost.
        let mut graph = Graph {
            blocks: vec![
                block(1, End::Next(to(1))),
                block(2, End::Next(to(2))),
                block(MAX_BODY, End::Branch { taken: to(2), next: to(3) }),
                block(1, End::Branch { taken: to(1), next: out() }),
            ],
        };
        let loops = inner_loops(&graph);
        assert_eq!(loops.len(), 1);
        assert_eq!(loops[0].header, BlockId(2));
        unroll(&mut graph);
        let copies = UNROLLED / MAX_BODY;
        assert_eq!(graph.blocks.len(), 4 + copies - 1);
    }

    #[test]
    fn a_loop_entered_in_the_middle_is_none() {
        // 0 -> 1 -> 2 -> 1 and 0 -> 2: neither dominates the other.
        let graph = Graph {
            blocks: vec![
                block(1, End::Branch { taken: to(2), next: to(1) }),
                block(1, End::Next(to(2))),
                block(1, End::Branch { taken: to(1), next: out() }),
            ],
        };
        assert_eq!(inner_loops(&graph), []);
    }

    #[test]
    fn both_arms_of_a_loop_are_copied() {
        // 1 { 2 or 3, 4 }
        let mut graph = Graph {
            blocks: vec![
                block(1, End::Next(to(1))),
                block(3, End::Branch { taken: to(3), next: to(2) }),
                block(3, End::Next(to(4))),
                block(3, End::Next(to(4))),
                block(3, End::Branch { taken: to(1), next: out() }),
            ],
        };
        unroll(&mut graph);
        let count = graph.blocks.len() as u32;
        assert_eq!(count, 5 + 4 * (MAX_COPIES as u32 - 1));
        let back = (0..count).filter(|&from| from != 0 && successors(&graph, from).contains(&1));
        assert_eq!(back.count(), 1);
    }
}

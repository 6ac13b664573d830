//! Copies the bodies of small loops a few times, so that most turns pass
//! without a poll: only the last copy jumps backward.
//!
//! The body of a loop is what leads from its header back to it without
//! passing the header of another loop: all of an inner loop, and the short
//! ways through an outer one. State machines mostly are loops of the latter
//! kind, and entered in several places.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::graph::{Block, BlockId, Graph};

/// Bodies of at most this many instructions are unrolled as a whole ...
const MAX_BODY: usize = 128;
/// ... to about this many, ...
const UNROLLED: usize = 128;
/// ... in at least this many copies, ...
const MIN_COPIES: usize = 2;
/// ... and at most this many; ...
const MAX_COPIES: usize = 16;
/// ... those that are only the short ways through an outer loop in fewer: it
/// may go the long way all the time.
const OUTER_COPIES: usize = 4;
/// Of a larger body only the shortest ways are unrolled, this many
/// instructions in all: a rare way that calls something is no reason to poll
/// in each turn of the usual one.
const MAX_WAYS: usize = UNROLLED / OUTER_COPIES;
/// Bodies are not looked at beyond this many instructions.
const MAX_SEARCH: usize = 1024;

/// A loop whose body is small, or the short ways through it.
#[derive(Debug, PartialEq, Eq)]
struct Loop {
    header: BlockId,
    /// The blocks of its body, the header first.
    blocks: Vec<BlockId>,
    instructions: usize,
    /// There is no other loop inside, and this is the whole body.
    innermost: bool,
}

/// Unrolls the small loops of `graph`.
pub(crate) fn unroll(graph: &mut Graph) {
    for found in loops(graph) {
        for &block in &found.blocks {
            let inside = |target: Option<BlockId>| {
                target.is_some_and(|target| found.blocks.contains(&target))
            };
            graph.blocks[block.index()].prefer(inside);
        }
        let most = if found.innermost { MAX_COPIES } else { OUTER_COPIES };
        let copies = (UNROLLED / found.instructions.max(1)).clamp(MIN_COPIES, most);
        copy(graph, &found, copies);
    }
}

/// The loops that are worth unrolling.
fn loops(graph: &Graph) -> Vec<Loop> {
    let walk = Walk::new(graph);
    if walk.back.is_empty() {
        return Vec::new();
    }
    let predecessors = Predecessors::new(graph, &walk.edges);
    let mut headers: Vec<BlockId> = walk.back.iter().map(|&(_, header)| header).collect();
    headers.sort_unstable();
    headers.dedup();
    let body = |&header: &BlockId| body(graph, &walk, &predecessors, &headers, header);
    headers.iter().filter_map(body).collect()
}

/// The blocks from which control comes back to `header` without passing any
/// of the `headers`, or the shortest ways among them; none if those are too
/// long, or there are only the header's own.
fn body(
    graph: &Graph,
    walk: &Walk,
    predecessors: &Predecessors,
    headers: &[BlockId],
    header: BlockId,
) -> Option<Loop> {
    let mut innermost = true;
    let mut blocks = vec![header];
    let mut instructions = graph.block(header).len();
    let latches = walk.back.iter().filter(|edge| edge.1 == header).map(|edge| edge.0);
    let mut stack: Vec<BlockId> = latches.collect();
    let mut comes_back = false;
    while let Some(block) = stack.pop() {
        if block == header {
            comes_back = true;
            continue;
        }
        // What the header does not lead to only enters the loop elsewhere.
        if blocks.contains(&block) || !walk.is_below(block, header) {
            continue;
        }
        if headers.binary_search(&block).is_ok() {
            innermost = false;
            continue;
        }
        instructions += graph.block(block).len();
        if instructions > MAX_SEARCH {
            return None;
        }
        blocks.push(block);
        stack.extend(predecessors.of(block));
    }
    if !comes_back {
        return None;
    }
    if instructions > MAX_BODY {
        let (blocks, instructions) = shortest_ways(graph, predecessors, blocks)?;
        return Some(Loop { header, blocks, instructions, innermost: false });
    }
    Some(Loop { header, blocks, instructions, innermost })
}

/// Those `blocks` of a loop, the header first, that lie on its shortest ways
/// from the header back to it, at most [`MAX_WAYS`] instructions; and how many
/// instructions they are.
fn shortest_ways(
    graph: &Graph,
    predecessors: &Predecessors,
    blocks: Vec<BlockId>,
) -> Option<(Vec<BlockId>, usize)> {
    let header = blocks[0];
    let mut sorted = blocks;
    sorted.sort_unstable();
    let there = distances(graph, &sorted, header, |block, visit| {
        graph.block(block).for_successors(visit);
    });
    let back = distances(graph, &sorted, header, |block, visit| {
        predecessors.of(block).iter().copied().for_each(visit);
    });
    // Both distances contain the block itself.
    let mut ways: Vec<(usize, BlockId)> = sorted
        .iter()
        .zip(there.iter().zip(&back))
        .filter(|&(&block, _)| block != header)
        .filter_map(|(&block, (&there, &back))| {
            Some((there?.checked_add(back?)? - graph.block(block).len(), block))
        })
        .collect();
    ways.sort_unstable();
    let mut chosen = vec![header];
    let mut instructions = graph.block(header).len();
    // All blocks of a way are at most as far as the farthest of them: whole
    // groups of the same length are whole ways.
    for way in ways.chunk_by(|one, other| one.0 == other.0) {
        let more: usize = way.iter().map(|&(_, block)| graph.block(block).len()).sum();
        if instructions + more > MAX_WAYS {
            break;
        }
        instructions += more;
        chosen.extend(way.iter().map(|&(_, block)| block));
    }
    (chosen.len() > 1).then_some((chosen, instructions))
}

/// The fewest instructions from `header` up to the end of each of the
/// `blocks`, which are sorted, without leaving them or passing the header.
fn distances(
    graph: &Graph,
    blocks: &[BlockId],
    header: BlockId,
    neighbours: impl Fn(BlockId, &mut dyn FnMut(BlockId)),
) -> Vec<Option<usize>> {
    let mut distances = vec![None; blocks.len()];
    let mut queue = BinaryHeap::from([(Reverse(0), header)]);
    while let Some((Reverse(distance), block)) = queue.pop() {
        neighbours(block, &mut |next| {
            let Ok(at) = blocks.binary_search(&next) else { return };
            let distance = distance + graph.block(next).len();
            if next != header && distances[at].is_none_or(|known| distance < known) {
                distances[at] = Some(distance);
                queue.push((Reverse(distance), next));
            }
        });
    }
    distances
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

/// A depth-first walk from the entry.
struct Walk {
    /// The edges that are reached.
    edges: Vec<Edge>,
    /// Those of them that close a cycle.
    back: Vec<Edge>,
    /// When each block was entered, and when it was left; in one count.
    times: Vec<(u32, u32)>,
}

impl Walk {
    fn new(graph: &Graph) -> Self {
        const NEVER: u32 = u32::MAX;
        let count = graph.blocks.len();
        let mut edges = Vec::with_capacity(2 * count);
        let mut back = Vec::new();
        let mut times = vec![(NEVER, NEVER); count];
        let mut time = 0;
        let mut stack = vec![(BlockId::ENTRY, false)];
        while let Some((block, done)) = stack.pop() {
            let (entered, left) = &mut times[block.index()];
            time += 1;
            if done {
                *left = time;
                continue;
            }
            if *entered != NEVER {
                continue;
            }
            *entered = time;
            stack.push((block, true));
            graph.block(block).for_successors(|to| {
                edges.push((block, to));
                match times[to.index()] {
                    (NEVER, _) => stack.push((to, false)),
                    (_, NEVER) => back.push((block, to)),
                    _ => {}
                }
            });
        }
        Self { edges, back, times }
    }

    /// Whether the walk entered `block` by way of `above`. So it does all
    /// blocks of a loop by way of the header it found.
    fn is_below(&self, block: BlockId, above: BlockId) -> bool {
        let ((entered, left), (first, last)) =
            (self.times[block.index()], self.times[above.index()]);
        first <= entered && left <= last
    }
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
        graph.blocks[1].body = 0..UNROLLED / MAX_COPIES;
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
    fn an_outer_loop_stays_if_it_always_passes_the_inner_one() {
        // 1 { 2 }: only 2 has a body of its own.
        let mut graph = Graph {
            blocks: vec![
                block(1, End::Next(to(1))),
                block(2, End::Next(to(2))),
                block(MAX_BODY, End::Branch { taken: to(2), next: to(3) }),
                block(1, End::Branch { taken: to(1), next: out() }),
            ],
        };
        let loops = loops(&graph);
        assert_eq!(loops.len(), 1);
        assert_eq!(loops[0].header, BlockId(2));
        unroll(&mut graph);
        assert_eq!(graph.blocks.len(), 4 + MIN_COPIES - 1);
    }

    #[test]
    fn the_way_past_an_inner_loop_is_copied() {
        // 1 { perhaps 2, 3 }
        let mut graph = Graph {
            blocks: vec![
                block(1, End::Next(to(1))),
                block(2, End::Branch { taken: to(2), next: to(3) }),
                block(MAX_BODY + 1, End::Branch { taken: to(2), next: to(3) }),
                block(1, End::Branch { taken: to(1), next: out() }),
            ],
        };
        unroll(&mut graph);
        assert_eq!(graph.blocks.len(), 4 + 2 * (OUTER_COPIES - 1));
        // Behind the inner loop the first copy goes on.
        assert_eq!(successors(&graph, 2), [2, 3]);
    }

    #[test]
    fn of_a_large_loop_the_short_way_is_copied() {
        // 1 { 2 or 3, 4 }
        let mut graph = Graph {
            blocks: vec![
                block(1, End::Next(to(1))),
                block(2, End::Branch { taken: to(2), next: to(3) }),
                block(MAX_BODY, End::Next(to(4))),
                block(3, End::Next(to(4))),
                block(3, End::Branch { taken: to(1), next: out() }),
            ],
        };
        unroll(&mut graph);
        assert_eq!(graph.blocks.len(), 5 + 3 * (OUTER_COPIES - 1));
        // The long way joins the first copy.
        assert_eq!(successors(&graph, 2), [4]);
        let leads_to = |to| {
            (0..graph.blocks.len() as u32)
                .filter(|&from| successors(&graph, from).contains(&to))
                .count()
        };
        assert_eq!(leads_to(2), OUTER_COPIES);
        // The entry and the last turn.
        assert_eq!(leads_to(1), 2);
    }

    #[test]
    fn a_loop_that_only_has_long_ways_stays() {
        let mut graph = Graph {
            blocks: vec![
                block(1, End::Next(to(1))),
                block(2, End::Next(to(2))),
                block(MAX_BODY, End::Branch { taken: to(1), next: out() }),
            ],
        };
        unroll(&mut graph);
        assert_eq!(graph.blocks.len(), 3);
    }

    #[test]
    fn a_loop_entered_in_the_middle_is_copied() {
        // 0 -> 1 -> 2 -> 1 and 0 -> 2: neither dominates the other.
        let mut graph = Graph {
            blocks: vec![
                block(1, End::Branch { taken: to(2), next: to(1) }),
                block(1, End::Next(to(2))),
                block(1, End::Branch { taken: to(1), next: out() }),
            ],
        };
        unroll(&mut graph);
        let count = graph.blocks.len() as u32;
        assert_eq!(count, 1 + 2 * MAX_COPIES as u32);
        let walk = Walk::new(&graph);
        assert_eq!(walk.back.len(), 1);
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
        let copies = UNROLLED as u32 / 12;
        assert_eq!(count, 5 + 4 * (copies - 1));
        let back = (0..count).filter(|&from| from != 0 && successors(&graph, from).contains(&1));
        assert_eq!(back.count(), 1);
    }
}

//! Which arithmetic flags are live where. Flags are the user's: a sequence
//! may clobber them only where this analysis proves them dead.

use crate::flags::{Effects, Flags};
use crate::graph::{Block, BlockId, End, Graph, Target};
use crate::layout::Layout;
use crate::steps::Steps;

/// Flags live at the start of each block.
#[derive(Debug)]
pub(crate) struct Liveness {
    at_start: Vec<Flags>,
}

/// Solves the backward problem. All flags are live wherever control may
/// leave the fragment by a branch or exit. Fault, guard and poll exits add
/// nothing: there a dead flag is one that the code at the exit replaces
/// before reading.
pub(crate) fn analyse(graph: &Graph, layout: &Layout, steps: &Steps) -> Liveness {
    let mut liveness = Liveness { at_start: vec![Flags::ALL; graph.blocks.len()] };
    let mut summaries = Vec::with_capacity(layout.order.len());
    for &id in &layout.order {
        let block = graph.block(id);
        let numbers = block.body.clone().chain(block.terminator);
        let effects = numbers.map(|number| steps.guest(number).effects);
        summaries.push((id, effects.fold(Effects::default(), Effects::then)));
        liveness.at_start[id.index()] = Flags::NONE;
    }
    let mut changed = true;
    while changed {
        changed = false;
        for (id, effects) in summaries.iter().rev() {
            let live = liveness.behind(&graph.block(*id).end).before(*effects);
            let known = &mut liveness.at_start[id.index()];
            changed |= *known != live;
            *known = live;
        }
    }
    liveness
}

impl Liveness {
    /// Flags live at `target`, all of them outside the fragment.
    pub(crate) fn at(&self, target: Target) -> Flags {
        target.block.map_or(Flags::ALL, |block| self.at_start[block.index()])
    }

    /// Flags live at the start of `block`.
    pub(crate) fn of(&self, block: BlockId) -> Flags {
        self.at_start[block.index()]
    }

    /// Flags live behind a block with this end.
    fn behind(&self, end: &End) -> Flags {
        match end {
            End::Next(target) | End::Jump(target) | End::Call { callee: target, .. } => {
                self.at(*target)
            }
            End::Branch { taken, next } => self.at(*taken).union(self.at(*next)),
            // A miss leaves the fragment.
            End::Exit { .. } | End::IndirectJump(_) | End::IndirectCall { .. } | End::Return(_) => {
                Flags::ALL
            }
        }
    }

    /// Puts the flags live before each body instruction into `live`, then
    /// before the terminator, then behind it.
    pub(crate) fn in_block(&self, block: &Block, steps: &Steps, live: &mut Vec<Flags>) {
        live.clear();
        live.push(self.behind(&block.end));
        for number in block.body.clone().chain(block.terminator).rev() {
            let after = live[live.len() - 1];
            live.push(after.before(steps.guest(number).effects));
        }
        live.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuFeatures;
    use crate::graph::build;
    use crate::layout::layout;
    use crate::region::discover;
    use crate::source::SliceSource;
    use crate::translate::Predictions;

    /// Flags live in the entry block, and at the start of each block in order.
    fn live_in(bytes: &[u8]) -> (Vec<Flags>, Vec<Flags>) {
        let mut source = SliceSource { address: 0x1000, bytes };
        let mut steps = Steps::new(&mut source, CpuFeatures::all());
        let region =
            discover(0x1000, &mut steps, &Predictions::default(), 100, false).expect("a region");
        let graph = build(&region, &steps, 0);
        let layout = layout(&graph);
        let liveness = analyse(&graph, &layout, &steps);
        let mut live = Vec::new();
        liveness.in_block(graph.block(BlockId::ENTRY), &steps, &mut live);
        (live, layout.order.iter().map(|block| liveness.at_start[block.index()]).collect())
    }

    #[test]
    fn everything_is_live_at_an_exit() {
        assert_eq!(live_in(&[0x89, 0xc8, 0x0f, 0x05]).1, [Flags::ALL]); // mov eax,ecx; syscall
    }

    #[test]
    fn an_overwrite_kills_and_a_branch_revives() {
        // mov eax,ecx; cmp eax,ecx; je +2; xor eax,eax; syscall
        let (live, starts) = live_in(&[0x89, 0xc8, 0x39, 0xc8, 0x74, 2, 0x31, 0xc0, 0x0f, 0x05]);
        assert_eq!(live[0], Flags::NONE); // before mov
        assert_eq!(live[1], Flags::NONE); // before cmp
        assert_eq!(live[2], Flags::ALL); // before je: the exit wants all
        assert_eq!(starts[1], Flags::NONE); // before xor
    }

    #[test]
    fn loops_reach_their_fixpoint() {
        // 1000 lea rcx,[rcx-1]; 1004 jrcxz 1008; 1006 jmp 1000; 1008 add eax,eax; syscall
        let code = [0x48, 0x8d, 0x49, 0xff, 0xe3, 2, 0xeb, 0xf8, 0x01, 0xc0, 0x0f, 0x05];
        assert_eq!(live_in(&code).1[0], Flags::NONE);
        // The same, but adc instead of add needs the carry from before.
        let code = [0x48, 0x8d, 0x49, 0xff, 0xe3, 2, 0xeb, 0xf8, 0x11, 0xc0, 0x0f, 0x05];
        let carry = live_in(&code).1[0];
        assert!(!carry.is_empty() && carry != Flags::ALL);
    }

    #[test]
    fn a_return_may_go_anywhere() {
        assert_eq!(live_in(&[0x89, 0xc8, 0xc3]).1, [Flags::ALL]);
    }
}

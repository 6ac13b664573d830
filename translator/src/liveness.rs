//! Which arithmetic flags are live where. Flags are the user's: a sequence
//! may clobber them only where this analysis proves them dead.

use crate::flags::{Effects, Flags};
use crate::region::{Block, End, Region};
use crate::steps::AddressMap;

/// Flags live at the start of each block.
#[derive(Debug, Clone)]
pub(crate) struct Liveness {
    at_start: AddressMap<Flags>,
}

/// Solves the backward problem over the region. All flags are live wherever
/// control may leave the fragment by a branch or exit. Fault, guard and poll
/// exits add nothing: there a dead flag is one that the code at the exit
/// replaces before reading.
pub(crate) fn analyse(region: &Region) -> Liveness {
    let mut liveness =
        Liveness { at_start: region.blocks.keys().map(|&start| (start, Flags::NONE)).collect() };
    let summaries: Vec<(u64, &End, Effects)> = region
        .blocks
        .iter()
        .map(|(&start, block)| {
            let guests = block.body.iter().chain(&block.terminator);
            (start, &block.end, guests.fold(Effects::default(), |all, one| all.then(one.effects)))
        })
        .collect();
    let mut changed = true;
    while changed {
        changed = false;
        for (start, end, effects) in summaries.iter().rev() {
            let live = liveness.behind(end).before(*effects);
            if liveness.at(*start) != live {
                liveness.at_start.insert(*start, live);
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

    /// Flags live behind a block with this end.
    fn behind(&self, end: &End) -> Flags {
        match end {
            End::Next(next) => self.at(*next),
            End::Branch { taken, next } => self.at(*taken).union(self.at(*next)),
            End::Jump { target } => self.at(*target),
            End::Call { callee, .. } => self.at(*callee),
            // A miss leaves the fragment.
            End::Exit { .. }
            | End::IndirectJump { .. }
            | End::IndirectCall { .. }
            | End::Return { .. } => Flags::ALL,
        }
    }

    /// Flags live before each body instruction, then before the terminator,
    /// then behind it.
    pub(crate) fn in_block(&self, block: &Block) -> Vec<Flags> {
        let mut live = Vec::with_capacity(block.body.len() + 2);
        live.push(self.behind(&block.end));
        for guest in block.body.iter().chain(&block.terminator).rev() {
            let after = live[live.len() - 1];
            live.push(after.before(guest.effects));
        }
        live.reverse();
        live
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CpuFeatures;
    use crate::region::discover;
    use crate::source::SliceSource;
    use crate::steps::Steps;

    fn region_of(bytes: &[u8]) -> Region {
        let mut source = SliceSource { address: 0x1000, bytes };
        let options = crate::Options::new(CpuFeatures::all());
        discover(0x1000, &mut Steps::new(&mut source, options.cpu), &options.predicted_targets, 100)
            .expect("it has a region")
    }

    #[test]
    fn everything_is_live_at_an_exit() {
        let region = region_of(&[0x89, 0xc8, 0x0f, 0x05]); // mov eax,ecx; syscall
        assert_eq!(analyse(&region).at(0x1000), Flags::ALL);
    }

    #[test]
    fn an_overwrite_kills_and_a_branch_revives() {
        // mov eax,ecx; cmp eax,ecx; je +2; xor eax,eax; syscall
        let region = region_of(&[0x89, 0xc8, 0x39, 0xc8, 0x74, 2, 0x31, 0xc0, 0x0f, 0x05]);
        let liveness = analyse(&region);
        let live = liveness.in_block(&region.blocks[&0x1000]);
        assert_eq!(live[0], Flags::NONE); // before mov
        assert_eq!(live[1], Flags::NONE); // before cmp
        assert_eq!(live[2], Flags::ALL); // before je: the exit wants all
        assert_eq!(liveness.at(0x1006), Flags::NONE); // before xor
    }

    #[test]
    fn loops_reach_their_fixpoint() {
        // 1000 lea rcx,[rcx-1]; 1004 jrcxz 1008; 1006 jmp 1000; 1008 add eax,eax; syscall
        let region =
            region_of(&[0x48, 0x8d, 0x49, 0xff, 0xe3, 2, 0xeb, 0xf8, 0x01, 0xc0, 0x0f, 0x05]);
        assert_eq!(analyse(&region).at(0x1000), Flags::NONE);
        // The same, but adc instead of add needs the carry from before.
        let region =
            region_of(&[0x48, 0x8d, 0x49, 0xff, 0xe3, 2, 0xeb, 0xf8, 0x11, 0xc0, 0x0f, 0x05]);
        let carry =
            Flags::NONE.before(crate::flags::effects(&region.blocks[&0x1008].body[0].instruction));
        assert!(!carry.is_empty());
        assert_eq!(analyse(&region).at(0x1000), carry);
    }

    #[test]
    fn a_return_may_go_anywhere() {
        let region = region_of(&[0x89, 0xc8, 0xc3]);
        assert_eq!(analyse(&region).at(0x1000), Flags::ALL);
    }
}

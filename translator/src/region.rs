//! Finds the code that belongs into one fragment and cuts it into blocks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use iced_x86::{Instruction, OpKind, Register};

use crate::forms::Class;
use crate::fragment::{ExitKind, Unsupported};
use crate::steps::{Guest, Step, Steps};
use crate::translate::Predictions;

/// Most targets compared at one indirect branch; each costs the ones behind
/// it a comparison.
pub(crate) const MAX_TARGETS: usize = 4;

/// What follows the body of a block. Addresses need not be in the region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Goes on at this address without a branch instruction.
    Next(u64),
    /// The fragment is left at this address.
    Exit { ip: u64, kind: ExitKind, reason: Unsupported },
    /// A conditional branch.
    Branch { taken: u64, next: u64 },
    /// A direct jump.
    Jump { target: u64 },
    /// A direct call.
    Call { callee: u64, site: u64 },
    /// An indirect jump with the targets worth comparing with.
    IndirectJump { targets: Vec<u64> },
    /// An indirect call, likewise; it returns to `site`.
    IndirectCall { targets: Vec<u64>, site: u64 },
    /// A return, likewise.
    Return { targets: Vec<u64> },
}

/// A basic block: entered only at its start.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub start: u64,
    /// All instructions but the control-flow one.
    pub body: Vec<Guest>,
    /// The control-flow instruction, if `end` comes from one.
    pub terminator: Option<Guest>,
    pub end: End,
}

impl Block {
    /// Whether the block does nothing but leave the fragment.
    pub(crate) fn is_bare_exit(&self) -> bool {
        self.body.is_empty() && matches!(self.end, End::Exit { .. })
    }

    /// Addresses control may go to inside a fragment, likeliest next last.
    pub(crate) fn successors(&self) -> Vec<u64> {
        match &self.end {
            End::Next(next) => vec![*next],
            End::Exit { .. } => vec![],
            End::Branch { taken, next } => vec![*taken, *next],
            End::Jump { target } => vec![*target],
            End::Call { callee, .. } => vec![*callee],
            End::IndirectJump { targets }
            | End::IndirectCall { targets, .. }
            | End::Return { targets } => targets.iter().rev().copied().collect(),
        }
    }
}

/// The code of one fragment.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    pub entry: u64,
    /// By start address.
    pub blocks: BTreeMap<u64, Block>,
    /// Bytes read as instructions, sorted and disjoint.
    pub sources: Vec<Range<u64>>,
    /// How many instructions the blocks hold.
    pub instructions: usize,
}

/// What discovery knows of one step.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    /// It is part of the region.
    taken: bool,
    /// A block begins here.
    leader: bool,
}

struct Discovery<'a, 'b> {
    steps: &'a mut Steps<'b>,
    predictions: &'a Predictions,
    /// By the number of the step; the rest is unmarked.
    marks: Vec<Mark>,
    queue: VecDeque<u64>,
    predicted: BTreeMap<u64, Vec<u64>>,
    allowed: usize,
    limit: usize,
}

/// Collects the region at `entry`, at most `limit` instructions. Err is the
/// reason why not even the first instruction can be run.
pub(crate) fn discover(
    entry: u64,
    steps: &mut Steps,
    predictions: &Predictions,
    limit: usize,
) -> Result<Region, Unsupported> {
    let mut discovery = Discovery {
        marks: vec![Mark::default(); steps.len()],
        steps,
        predictions,
        queue: VecDeque::from([entry]),
        predicted: BTreeMap::new(),
        allowed: 0,
        limit: limit.max(1),
    };
    discovery.run();
    match discovery.step(entry) {
        None => return Err(Unsupported::Unreadable),
        Some(Step::Stop { kind: ExitKind::Unsupported, reason, .. }) => return Err(*reason),
        Some(_) => {}
    }
    let mut region = discovery.into_region(entry);
    predict_returns(&mut region, predictions);
    Ok(region)
}

impl Discovery<'_, '_> {
    fn run(&mut self) {
        while let Some(start) = self.queue.pop_front() {
            self.walk(start);
        }
    }

    /// Takes the steps from `start` to the next control-flow instruction,
    /// stop, or known code.
    fn walk(&mut self, start: u64) {
        let mut at = start;
        loop {
            let known = self.steps.find(at);
            if let Some(number) = known
                && self.marks[number].taken
            {
                self.marks[number].leader = true;
                return;
            }
            if self.allowed >= self.limit {
                return;
            }
            let Some(number) = known.or_else(|| self.steps.decode(at)) else {
                return;
            };
            if number >= self.marks.len() {
                self.marks.resize(number + 1, Mark::default());
            }
            self.marks[number] = Mark { taken: true, leader: at == start };
            let Step::Allowed(guest) = *self.steps.get(number) else {
                return;
            };
            self.allowed += 1;
            if guest.class.ends_block() {
                self.follow(&guest);
                return;
            }
            at = guest.next_ip();
        }
    }

    /// The step at `address` if it is part of the region.
    fn step(&self, address: u64) -> Option<&Step> {
        let number = self.steps.find(address)?;
        self.marks[number].taken.then(|| self.steps.get(number))
    }

    /// Queues where control may go: the straight path first, so that the
    /// limit cuts off the rare branches.
    fn follow(&mut self, guest: &Guest) {
        let instruction = &guest.instruction;
        match guest.class {
            Class::Branch | Class::CounterBranch => {
                self.queue.push_back(instruction.near_branch_target());
                self.queue.push_front(guest.next_ip());
            }
            Class::Jump => self.queue.push_front(instruction.near_branch_target()),
            Class::Call => {
                self.queue.push_front(guest.next_ip());
                self.queue.push_front(instruction.near_branch_target());
            }
            Class::IndirectJump | Class::IndirectCall => {
                let targets = self.predict(instruction);
                if guest.class == Class::IndirectCall && !targets.is_empty() {
                    self.queue.push_front(guest.next_ip());
                }
                for &target in targets.iter().rev() {
                    self.queue.push_front(target);
                }
                self.predicted.insert(guest.ip(), targets);
            }
            Class::Return => {
                if let Some(targets) = self.predictions.get(&guest.ip()) {
                    self.queue.extend(targets.iter().take(MAX_TARGETS));
                }
            }
            _ => {}
        }
    }

    /// Targets worth comparing with: what was seen, else what a constant
    /// slot (GOT) holds now.
    fn predict(&mut self, instruction: &Instruction) -> Vec<u64> {
        let mut targets: Vec<u64> = Vec::new();
        if let Some(seen) = self.predictions.get(&instruction.ip()) {
            for &target in seen {
                if !targets.contains(&target) {
                    targets.push(target);
                }
            }
        }
        let constant = instruction.op0_kind() == OpKind::Memory
            && instruction.segment_prefix() != Register::FS
            && (instruction.is_ip_rel_memory_operand()
                || (instruction.memory_base() == Register::None
                    && instruction.memory_index() == Register::None));
        if targets.is_empty() && constant {
            targets.extend(self.steps.pointer_hint(instruction.memory_displacement64()));
        }
        targets.truncate(MAX_TARGETS);
        targets
    }

    fn into_region(self, entry: u64) -> Region {
        let taken = (0..self.marks.len()).filter(|&number| self.marks[number].taken);
        let mut taken: Vec<(u64, usize)> =
            taken.map(|number| (self.steps.address(number), number)).collect();
        taken.sort_unstable();
        let mut blocks = BTreeMap::new();
        for &(start, number) in &taken {
            if self.marks[number].leader {
                blocks.insert(start, self.block(number));
            }
        }
        let known: BTreeSet<u64> = blocks.keys().copied().collect();
        for block in blocks.values_mut() {
            if let End::IndirectJump { targets } | End::IndirectCall { targets, .. } =
                &mut block.end
            {
                targets.retain(|target| known.contains(target));
            }
        }
        Region { entry, blocks, sources: self.sources(&taken), instructions: self.allowed }
    }

    /// The block that begins with step `first`.
    fn block(&self, first: usize) -> Block {
        let start = self.steps.address(first);
        let mut body = Vec::with_capacity(8);
        let mut number = first;
        loop {
            let at = self.steps.address(number);
            let (terminator, end) = match self.steps.get(number) {
                Step::Stop { kind, reason, .. } => {
                    (None, End::Exit { ip: at, kind: *kind, reason: *reason })
                }
                Step::Allowed(guest) if guest.class.ends_block() => {
                    (Some(*guest), self.end_of(guest))
                }
                Step::Allowed(guest) => {
                    body.push(*guest);
                    let next = guest.next_ip();
                    match self.steps.find(next) {
                        Some(following)
                            if self.marks[following].taken && !self.marks[following].leader =>
                        {
                            number = following;
                            continue;
                        }
                        _ => (None, End::Next(next)),
                    }
                }
            };
            return Block { start, body, terminator, end };
        }
    }

    fn end_of(&self, guest: &Guest) -> End {
        let target = guest.instruction.near_branch_target();
        let next = guest.next_ip();
        let predicted = || self.predicted.get(&guest.ip()).cloned().unwrap_or_default();
        match guest.class {
            Class::Branch | Class::CounterBranch => End::Branch { taken: target, next },
            Class::Jump => End::Jump { target },
            Class::Call => End::Call { callee: target, site: next },
            Class::IndirectJump => End::IndirectJump { targets: predicted() },
            Class::IndirectCall => End::IndirectCall { targets: predicted(), site: next },
            _ => End::Return { targets: Vec::new() },
        }
    }

    /// The bytes of the steps `taken`, which are sorted by address.
    fn sources(&self, taken: &[(u64, usize)]) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for &(start, number) in taken {
            let end = start.saturating_add(self.steps.get(number).length() as u64);
            match ranges.last_mut() {
                Some(last) if start <= last.end => last.end = last.end.max(end),
                _ => ranges.push(start..end),
            }
        }
        ranges
    }
}

/// Gives every return the sites of the calls in the region that can reach
/// it, behind what was seen to happen.
fn predict_returns(region: &mut Region, predictions: &Predictions) {
    let mut sites: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for block in region.blocks.values() {
        let (callees, site): (&[u64], u64) = match &block.end {
            End::Call { callee, site } => (std::slice::from_ref(callee), *site),
            End::IndirectCall { targets, site } => (targets, *site),
            _ => continue,
        };
        if !region.blocks.contains_key(&site) {
            continue;
        }
        for &callee in callees {
            for returning in returns_of(region, callee) {
                let sites = sites.entry(returning).or_default();
                if !sites.contains(&site) {
                    sites.push(site);
                }
            }
        }
    }
    let known: BTreeSet<u64> = region.blocks.keys().copied().collect();
    for block in region.blocks.values_mut() {
        if let (End::Return { targets }, Some(terminator)) = (&mut block.end, &block.terminator) {
            let seen = predictions.get(&terminator.ip());
            for &target in
                seen.into_iter().flatten().chain(sites.get(&block.start).into_iter().flatten())
            {
                if known.contains(&target) && !targets.contains(&target) {
                    targets.push(target);
                }
            }
            targets.truncate(MAX_TARGETS);
        }
    }
}

/// Starts of the blocks that end the function at `callee` with a return.
fn returns_of(region: &Region, callee: u64) -> Vec<u64> {
    let mut seen = BTreeSet::new();
    let mut stack = vec![callee];
    let mut returns = Vec::new();
    while let Some(at) = stack.pop() {
        let Some(block) = region.blocks.get(&at) else {
            continue;
        };
        if !seen.insert(at) {
            continue;
        }
        match &block.end {
            End::Next(next) => stack.push(*next),
            End::Exit { .. } => {}
            End::Branch { taken, next } => stack.extend([*taken, *next]),
            End::Jump { target } => stack.push(*target),
            End::Call { site, .. } | End::IndirectCall { site, .. } => stack.push(*site),
            End::IndirectJump { targets } => stack.extend(targets),
            End::Return { .. } => returns.push(at),
        }
    }
    returns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;
    use crate::cpu::CpuFeatures;
    use crate::source::SliceSource;

    fn region_of(bytes: &[u8], limit: usize) -> Region {
        let mut source = SliceSource { address: 0x1000, bytes };
        let options = Options::new(CpuFeatures::all());
        discover(
            0x1000,
            &mut Steps::new(&mut source, options.cpu),
            &options.predicted_targets,
            limit,
        )
        .expect("it has a region")
    }

    #[test]
    fn blocks_are_cut_where_branches_lead() {
        // 1000 inc eax; 1002 dec ecx; 1004 jne 1002; 1006 syscall
        let region = region_of(&[0xff, 0xc0, 0xff, 0xc9, 0x75, 0xfc, 0x0f, 0x05], 100);
        assert_eq!(region.blocks.keys().copied().collect::<Vec<_>>(), [0x1000, 0x1002, 0x1006]);
        assert_eq!(region.blocks[&0x1000].end, End::Next(0x1002));
        assert_eq!(region.blocks[&0x1002].end, End::Branch { taken: 0x1002, next: 0x1006 });
        let exit = End::Exit { ip: 0x1006, kind: ExitKind::Syscall, reason: Unsupported::None };
        assert_eq!(region.blocks[&0x1006].end, exit);
        assert!(region.blocks[&0x1006].is_bare_exit());
        assert_eq!(region.sources, std::slice::from_ref(&(0x1000..0x1008)));
        assert_eq!(region.instructions, 3);
    }

    #[test]
    fn the_limit_cuts_between_instructions() {
        let region = region_of(&[0xff, 0xc0, 0xff, 0xc9, 0xff, 0xc0, 0x0f, 0x05], 2);
        assert_eq!(region.blocks[&0x1000].end, End::Next(0x1004));
        assert_eq!(region.sources, std::slice::from_ref(&(0x1000..0x1004)));
    }

    #[test]
    fn returns_know_the_sites_of_calls_that_reach_them() {
        // 1000 call 1007; 1005 syscall; 1007 jmp 1009; 1009 ret
        let region = region_of(&[0xe8, 2, 0, 0, 0, 0x0f, 0x05, 0xeb, 0, 0xc3], 100);
        assert_eq!(region.blocks[&0x1009].end, End::Return { targets: vec![0x1005] });
    }

    #[test]
    fn code_that_ends_is_unreadable_behind_its_end() {
        let region = region_of(&[0xff, 0xc0, 0x48], 100);
        let exit =
            End::Exit { ip: 0x1002, kind: ExitKind::Unsupported, reason: Unsupported::Unreadable };
        assert_eq!(region.blocks[&0x1000].end, exit);
    }

    #[test]
    fn nothing_to_run_has_a_reason() {
        let options = Options::new(CpuFeatures::baseline());
        let reason = |bytes: &[u8]| {
            let mut source = SliceSource { address: 0x1000, bytes };
            discover(
                0x1000,
                &mut Steps::new(&mut source, options.cpu),
                &options.predicted_targets,
                10,
            )
            .map(|_| ())
            .unwrap_err()
        };
        assert_eq!(reason(&[]), Unsupported::Unreadable);
        assert_eq!(reason(&[0x0f, 0xa2]), Unsupported::Trap); // cpuid
        assert_eq!(reason(&[0x9c]), Unsupported::WholeFlags); // pushfq
        assert_eq!(reason(&[0xd9, 0xe8]), Unsupported::Form); // fld1
        assert_eq!(reason(&[0x65, 0x8b, 0x00]), Unsupported::Segment); // mov eax,gs:[rax]
        // vzeroupper, andn: AVX and BMI1 are not baseline.
        assert_eq!(reason(&[0xc5, 0xf8, 0x77]), Unsupported::CpuFeature);
        assert_eq!(reason(&[0xc4, 0xe2, 0x78, 0xf2, 0xc1]), Unsupported::CpuFeature);
    }
}

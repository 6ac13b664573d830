//! The control-flow graph that a fragment is made from: basic blocks, with
//! small callees copied to each place that calls them.
//!
//! A copy for each call knows where its returns lead, so a return costs one
//! comparison and its target can follow directly. A callee that is called
//! from several places and is not copied returns backward to most of them,
//! which costs a poll.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::ops::Range;

use crate::forms::Class;
use crate::fragment::{ExitKind, Unsupported};
use crate::region::{MAX_TARGETS, Region};
use crate::steps::{AddressHasher, AddressMap, Guest, Step, Steps};

/// Number of a block in [`Graph::blocks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BlockId(pub u32);

impl BlockId {
    /// The block that a fragment begins with.
    pub(crate) const ENTRY: Self = Self(0);

    /// Its position in [`Graph::blocks`].
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where control goes: a user address, and the block there if the fragment
/// has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub address: u64,
    pub block: Option<BlockId>,
}

/// What follows the body of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Goes on there without a branch instruction.
    Next(Target),
    /// The fragment is left at this address.
    Exit { ip: u64, kind: ExitKind, reason: Unsupported },
    /// A conditional branch.
    Branch { taken: Target, next: Target },
    /// A direct jump.
    Jump(Target),
    /// A direct call.
    Call { callee: Target, site: u64 },
    /// An indirect jump with the targets worth comparing with.
    IndirectJump(Vec<Target>),
    /// An indirect call, likewise; it returns to `site`.
    IndirectCall { targets: Vec<Target>, site: u64 },
    /// A return, likewise.
    Return(Vec<Target>),
}

/// A basic block: entered only at its start.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub start: u64,
    /// Numbers of the steps of all instructions but the control-flow one.
    pub body: Range<usize>,
    /// The step of the control-flow instruction, if `end` comes from one.
    pub terminator: Option<usize>,
    pub end: End,
    /// The taken side of the branch at the end is the likely one.
    pub likely_taken: bool,
}

impl Block {
    /// Whether the block does nothing but leave the fragment.
    pub(crate) fn is_bare_exit(&self) -> bool {
        self.body.is_empty() && matches!(self.end, End::Exit { .. })
    }

    /// Makes that side of a branch likely that is `inside`, if one is.
    pub(crate) fn prefer(&mut self, inside: impl Fn(Option<BlockId>) -> bool) {
        if let End::Branch { taken, next } = &self.end {
            self.likely_taken = inside(taken.block) && !inside(next.block);
        }
    }

    /// How many instructions it has.
    pub(crate) fn len(&self) -> usize {
        self.body.len() + usize::from(self.terminator.is_some())
    }

    /// Calls `visit` for each block control may go to, the likeliest last.
    pub(crate) fn for_successors(&self, mut visit: impl FnMut(BlockId)) {
        let mut visit = |target: &Target| {
            if let Some(block) = target.block {
                visit(block);
            }
        };
        match &self.end {
            End::Exit { .. } => {}
            End::Branch { taken, next } if self.likely_taken => {
                visit(next);
                visit(taken);
            }
            End::Branch { taken, next } => {
                visit(taken);
                visit(next);
            }
            End::Next(target) | End::Jump(target) | End::Call { callee: target, .. } => {
                visit(target);
            }
            End::IndirectJump(targets)
            | End::IndirectCall { targets, .. }
            | End::Return(targets) => targets.iter().rev().for_each(visit),
        }
    }

    /// Every target, to be changed.
    pub(crate) fn targets_mut(&mut self) -> Vec<&mut Target> {
        match &mut self.end {
            End::Exit { .. } => vec![],
            End::Branch { taken, next } => vec![taken, next],
            End::Next(target) | End::Jump(target) | End::Call { callee: target, .. } => {
                vec![target]
            }
            End::IndirectJump(targets)
            | End::IndirectCall { targets, .. }
            | End::Return(targets) => targets.iter_mut().collect(),
        }
    }
}

/// The blocks of one fragment; the first is its entry.
#[derive(Debug)]
pub(crate) struct Graph {
    pub blocks: Vec<Block>,
}

impl Graph {
    /// The block `id`.
    pub(crate) fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id.index()]
    }
}

/// A callee of at most this many instructions is copied to each call of it.
const COPIED_CALLEE: usize = 40;
/// Deepest nesting of copied callees.
const MAX_NESTING: u32 = 12;

/// One activation of a function inside the region.
#[derive(Debug)]
struct Context {
    /// The calling context; none for the fragment's own and for shared ones.
    parent: Option<u32>,
    /// The function.
    callee: u64,
    depth: u32,
    /// No other context runs this function.
    sole: bool,
    /// Calls a function that is not copied, itself or further down. That returns
    /// to the first of the contexts that call it from the same place, so returns
    /// may come here that belong to other contexts of the same function.
    mixed: bool,
    /// Where it returns to: address and context, most likely first.
    sites: Vec<(u64, u32)>,
}

/// The context of the function that the fragment begins in.
const OWN: u32 = 0;

type Key = (u64, u32);

struct Builder<'a, 'b> {
    region: &'a Region,
    steps: &'a Steps<'b>,
    blocks: Vec<Block>,
    known: HashMap<Key, BlockId, BuildHasherDefault<AddressHasher>>,
    queue: Vec<(BlockId, Key)>,
    contexts: Vec<Context>,
    /// The context of each function that is not copied.
    shared: AddressMap<u32>,
    /// Instructions of callees, as far as it matters for copying.
    sizes: AddressMap<usize>,
    /// Instructions that may still be copied.
    budget: usize,
}

/// Arranges the region's steps in blocks; `budget` bounds by how many
/// instructions copies of callees may enlarge it.
pub(crate) fn build(region: &Region, steps: &Steps, budget: usize) -> Graph {
    let mut builder = Builder {
        region,
        steps,
        blocks: Vec::with_capacity(region.instructions / 3),
        known: HashMap::with_capacity_and_hasher(region.instructions / 3, Default::default()),
        queue: Vec::new(),
        contexts: vec![Context {
            parent: None,
            callee: region.entry,
            depth: 0,
            sole: true,
            mixed: false,
            sites: vec![],
        }],
        shared: AddressMap::default(),
        sizes: AddressMap::default(),
        budget,
    };
    builder.target(region.entry, OWN);
    while let Some((id, key)) = builder.queue.pop() {
        builder.fill(id, key);
    }
    builder.link_returns();
    Graph { blocks: builder.blocks }
}

impl Builder<'_, '_> {
    /// The block at `address` in `context`, to be filled later if it is new.
    fn target(&mut self, address: u64, context: u32) -> Target {
        let key = (address, context);
        if let Some(&block) = self.known.get(&key) {
            return Target { address, block: Some(block) };
        }
        if self.region.find(self.steps, address).is_none() {
            return Target { address, block: None };
        }
        let id = BlockId(self.blocks.len() as u32);
        self.blocks.push(Block {
            start: address,
            body: 0..0,
            terminator: None,
            end: End::Next(Target { address, block: None }),
            likely_taken: false,
        });
        self.known.insert(key, id);
        self.queue.push((id, key));
        Target { address, block: Some(id) }
    }

    fn fill(&mut self, id: BlockId, (start, context): Key) {
        let Some(first) = self.region.find(self.steps, start) else { return };
        let mut number = first;
        let (body, terminator, end) = loop {
            match self.steps.get(number) {
                Step::Stop { kind, reason, .. } => {
                    let ip = self.steps.address(number);
                    break (number, None, End::Exit { ip, kind: *kind, reason: *reason });
                }
                Step::Allowed(guest) if guest.class.ends_block() => {
                    let guest = *guest;
                    break (number, Some(number), self.end_of(&guest, context));
                }
                Step::Allowed(guest) if self.region.continues(number + 1) => {
                    debug_assert_eq!(guest.next_ip(), self.steps.address(number + 1));
                    number += 1;
                }
                Step::Allowed(guest) => {
                    let next = guest.next_ip();
                    break (number + 1, None, End::Next(self.target(next, context)));
                }
            }
        };
        let block = &mut self.blocks[id.index()];
        block.body = first..body;
        block.terminator = terminator;
        block.end = end;
    }

    fn end_of(&mut self, guest: &Guest, context: u32) -> End {
        let to = guest.instruction.near_branch_target();
        let next = guest.next_ip();
        match guest.class {
            Class::Branch | Class::CounterBranch => {
                End::Branch { taken: self.target(to, context), next: self.target(next, context) }
            }
            Class::Jump => End::Jump(self.target(to, context)),
            Class::Call => End::Call { callee: self.call(to, next, context), site: next },
            Class::IndirectJump => {
                let targets = self.region.predicted(guest.ip()).iter();
                let targets = targets.map(|&to| self.target(to, context));
                End::IndirectJump(targets.filter(|target| target.block.is_some()).collect())
            }
            Class::IndirectCall => {
                let targets = self.region.predicted(guest.ip()).iter();
                let targets = targets.map(|&to| self.call(to, next, context));
                let targets = targets.filter(|target| target.block.is_some()).collect();
                End::IndirectCall { targets, site: next }
            }
            _ => End::Return(self.returns(guest.ip(), context)),
        }
    }

    /// The callee at `to`, called in `context` and returning to `site`.
    fn call(&mut self, to: u64, site: u64, context: u32) -> Target {
        if self.region.find(self.steps, to).is_none() {
            return Target { address: to, block: None };
        }
        let Context { depth, sole, .. } = self.contexts[context as usize];
        let sites = vec![(site, context)];
        let mut new = Context {
            parent: None,
            callee: to,
            depth: depth + 1,
            sole: false,
            mixed: false,
            sites,
        };
        let recursive = depth == MAX_NESTING || self.is_active(to, context);
        new.sole = sole && !recursive && self.region.calls_of(to) == 1;
        let callee = if new.sole || (!recursive && self.is_worth(to)) {
            new.parent = Some(context);
            self.contexts.push(new);
            self.contexts.len() as u32 - 1
        } else if let Some(&shared) = self.shared.get(&to) {
            self.mix(context);
            let sites = &mut self.contexts[shared as usize].sites;
            if !sites.contains(&(site, context)) {
                sites.push((site, context));
            }
            shared
        } else {
            self.mix(context);
            self.contexts.push(new);
            let shared = self.contexts.len() as u32 - 1;
            self.shared.insert(to, shared);
            shared
        };
        self.target(to, callee)
    }

    /// A function that is not copied is called in `context`.
    fn mix(&mut self, context: u32) {
        let mut at = Some(context);
        while let Some(context) = at {
            let context = &mut self.contexts[context as usize];
            if std::mem::replace(&mut context.mixed, true) {
                return;
            }
            at = context.parent;
        }
    }

    /// Whether `callee` is running already in `context` or around it.
    fn is_active(&self, callee: u64, context: u32) -> bool {
        let mut at = Some(context);
        while let Some(context) = at {
            let context = &self.contexts[context as usize];
            if context.callee == callee {
                return true;
            }
            at = context.parent;
        }
        false
    }

    /// Whether a callee with other callers is copied to its call; charges
    /// the budget.
    fn is_worth(&mut self, callee: u64) -> bool {
        let size = match self.sizes.get(&callee) {
            Some(&size) => size,
            None => {
                let size = self.size_of(callee);
                self.sizes.insert(callee, size);
                size
            }
        };
        if size > COPIED_CALLEE || size > self.budget {
            return false;
        }
        self.budget -= size;
        true
    }

    /// Instructions of the function at `callee` without its callees; counts
    /// no further than needed.
    fn size_of(&self, callee: u64) -> usize {
        let mut seen: Vec<u64> = Vec::new();
        let mut stack = vec![callee];
        let mut size = 0;
        while let Some(start) = stack.pop() {
            if seen.contains(&start) || size > COPIED_CALLEE {
                continue;
            }
            seen.push(start);
            let Some(mut number) = self.region.find(self.steps, start) else { continue };
            while let Step::Allowed(guest) = self.steps.get(number) {
                size += 1;
                let to = guest.instruction.near_branch_target();
                match guest.class {
                    Class::Branch | Class::CounterBranch => stack.extend([to, guest.next_ip()]),
                    Class::Jump => stack.push(to),
                    Class::Call | Class::IndirectCall => stack.push(guest.next_ip()),
                    Class::IndirectJump => stack.extend(self.region.predicted(guest.ip())),
                    class if class.ends_block() => {}
                    _ if self.region.continues(number + 1) => {
                        number += 1;
                        continue;
                    }
                    _ => stack.push(guest.next_ip()),
                }
                break;
            }
        }
        size
    }

    /// Where the return at `ip` leads in `context`, as far as that is known
    /// now: what was seen there, then the sites of the calls.
    fn returns(&mut self, ip: u64, context: u32) -> Vec<Target> {
        let known = &self.contexts[context as usize];
        let copied = known.parent.is_some();
        let sites = known.sites.clone();
        let mut targets: Vec<Target> = Vec::new();
        if copied {
            targets.extend(sites.iter().map(|&(site, caller)| self.target(site, caller)));
        } else if context == OWN {
            let seen = self.region.predicted(ip).iter();
            targets.extend(seen.map(|&site| self.target(site, OWN)));
        }
        targets.retain(|target| target.block.is_some());
        targets
    }

    /// Gives the returns of functions that are not copied, or call such ones,
    /// the sites of all their calls. Sites are new blocks themselves, with calls
    /// that add more.
    fn link_returns(&mut self) {
        loop {
            let (blocks, calls) = (self.blocks.len(), self.calls());
            let sites = self.sites_by_callee();
            for (id, context) in self.open_returns() {
                let targets = self.all_returns(id, context, &sites);
                self.blocks[id.index()].end = End::Return(targets);
            }
            while let Some((id, key)) = self.queue.pop() {
                self.fill(id, key);
            }
            if (self.blocks.len(), self.calls()) == (blocks, calls) {
                return;
            }
        }
    }

    /// How many calls are known.
    fn calls(&self) -> usize {
        self.contexts.iter().map(|context| context.sites.len()).sum()
    }

    /// Where calls of each function return to, each address once.
    fn sites_by_callee(&self) -> AddressMap<Vec<Key>> {
        let mut sites: AddressMap<Vec<Key>> = AddressMap::default();
        for context in &self.contexts {
            let known = sites.entry(context.callee).or_default();
            for &site in &context.sites {
                if !known.iter().any(|other| other.0 == site.0) {
                    known.push(site);
                }
            }
        }
        sites
    }

    /// The blocks that end in a return and may be reached from several calls,
    /// with their contexts.
    fn open_returns(&self) -> Vec<(BlockId, u32)> {
        let is_open = |&(&(_, context), id): &(&Key, &BlockId)| {
            let known = &self.contexts[context as usize];
            (known.parent.is_none() || known.mixed)
                && !known.sites.is_empty()
                && matches!(self.blocks[id.index()].end, End::Return(_))
        };
        let mut open: Vec<(BlockId, u32)> =
            self.known.iter().filter(is_open).map(|(&(_, context), &id)| (id, context)).collect();
        open.sort_unstable();
        open
    }

    /// Where the return of block `id` leads in `context`: of a copy its own call
    /// first, then what was seen there, then the other calls.
    fn all_returns(
        &mut self,
        id: BlockId,
        context: u32,
        sites: &AddressMap<Vec<Key>>,
    ) -> Vec<Target> {
        let known = &self.contexts[context as usize];
        let all = sites.get(&known.callee).map_or(&[][..], Vec::as_slice);
        let own = if known.parent.is_some() { known.sites.clone() } else { Vec::new() };
        let ip = self.blocks[id.index()].terminator.map(|number| self.steps.address(number));
        let seen = ip.map_or(&[][..], |ip| self.region.predicted(ip));
        let seen = seen.iter().filter_map(|&to| all.iter().find(|site| site.0 == to));
        let mut chosen: Vec<Key> = Vec::with_capacity(MAX_TARGETS);
        for &site in own.iter().chain(seen).chain(all) {
            if chosen.len() < MAX_TARGETS && !chosen.iter().any(|other| other.0 == site.0) {
                chosen.push(site);
            }
        }
        let targets = chosen.into_iter().map(|(site, caller)| self.target(site, caller));
        targets.filter(|target| target.block.is_some()).collect()
    }
}

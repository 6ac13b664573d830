//! What is known of the registers where each block begins, and the guards
//! before loops that make it more.
//!
//! A register that every turn of a loop confines for its accesses is confined
//! once before the loop instead: then no turn has to.

use iced_x86::{OpKind, Register};

use crate::displace::Displaced;
use crate::flags::Flags;
use crate::forms::{self, Class};
use crate::graph::{Block, Graph};
use crate::layout::Layout;
use crate::liveness::Liveness;
use crate::operand::Address;
use crate::ranges::Ranges;
use crate::recipe::{FlagsState, Maker};
use crate::regs::GprSet;
use crate::steps::{Guest, Steps};

/// What is known at the start of one block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    /// What has to be proven where control comes from before.
    pub guards: Guards,
    /// What holds then, on every way.
    pub ranges: Ranges,
    /// What has to be proven on the way back to this block, if it does not
    /// hold there.
    wanted: Guards,
    /// What holds at its end.
    behind: Ranges,
}

/// What is to be proven of registers before a loop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Guards {
    /// That they are confined.
    pub bases: GprSet,
    /// That they are below 2 to the power of 32.
    pub indexes: GprSet,
}

impl Guards {
    /// Whether there is nothing to prove.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Those that do not hold by `ranges`.
    fn lacking(&self, ranges: &Ranges) -> Self {
        let mut lacking = Self::default();
        for register in self.bases.registers().filter(|&r| !ranges.is_confined(r)) {
            lacking.bases.insert(register);
        }
        for register in self.indexes.registers().filter(|&r| !ranges.is_index(r, 8)) {
            lacking.indexes.insert(register);
        }
        lacking
    }

    /// Makes `ranges` what holds behind them.
    fn apply(&self, ranges: &mut Ranges) {
        for register in self.bases.registers() {
            ranges.confine(register);
        }
        for register in self.indexes.registers() {
            ranges.narrow(register);
        }
    }
}

impl Facts {
    /// What has to be proven on an edge from the block of these facts back to
    /// the one of `to`.
    pub(crate) fn guards_back_to(&self, to: &Self) -> Guards {
        to.wanted.lacking(&self.behind)
    }
}

/// Which registers are narrowed where they advance.
///
/// An index that moves by a constant in each turn of a loop cannot be known to
/// stay small. Narrowing it where it moves and the flags are dead anyway is
/// cheaper than at its use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Advances {
    indexes: GprSet,
}

impl Advances {
    /// Those of the blocks of `layout`.
    pub(crate) fn of(graph: &Graph, layout: &Layout, steps: &Steps, displaced: &Displaced) -> Self {
        let mut indexes = GprSet::default();
        for &block in &layout.order {
            let block = graph.block(block);
            for number in block.body.clone() {
                let guest = steps.guest(number);
                let index = guest.instruction.memory_index();
                if accesses(guest)
                    && index.is_gpr64()
                    && !guest.wide
                    && displaced.slot(index).is_none()
                {
                    indexes.insert(index);
                }
            }
        }
        Self { indexes }
    }

    /// The register to be narrowed behind `guest`, which stands in a block
    /// with an edge backward if `latch`; flags are `live` behind it.
    pub(crate) fn behind(
        &self,
        guest: &Guest,
        latch: bool,
        live: Flags,
        before: &Ranges,
        steps: &Steps,
    ) -> Option<Register> {
        if !latch || self.indexes == GprSet::default() || !live.is_empty() {
            return None;
        }
        let instruction = &guest.instruction;
        if instruction.op_count() == 0 || instruction.op0_kind() != OpKind::Register {
            return None;
        }
        let register = instruction.op0_register();
        let advances = register.is_gpr64()
            && self.indexes.contains(register)
            && moves_by_constant(guest)
            && before.is_index(register, 8)
            && !steps.is_wide(guest.next_ip());
        advances.then_some(register)
    }
}

struct Solver<'a, 'b> {
    graph: &'a Graph,
    layout: &'a Layout,
    liveness: &'a Liveness,
    steps: &'a Steps<'b>,
    displaced: &'a Displaced,
    advances: Advances,
    /// By position in the layout, like all below.
    guards: Vec<Guards>,
    /// Those of them that are proven on every way from before.
    from_before_guards: Vec<Guards>,
    /// What holds where control comes from before, without the guards.
    from_before: Vec<Option<Ranges>>,
    at_start: Vec<Option<Ranges>>,
    /// What held at the start when `behind` was found.
    tried: Vec<Ranges>,
    behind: Vec<Option<Ranges>>,
}

/// Solves the forward problem: at a block's start, what holds at the end of
/// all blocks that lead there. Nothing but the stack holds at the entry. By
/// position in the layout.
pub(crate) fn solve(
    graph: &Graph,
    layout: &Layout,
    liveness: &Liveness,
    steps: &Steps,
    displaced: &Displaced,
) -> Vec<Facts> {
    let count = layout.order.len();
    let mut solver = Solver {
        graph,
        layout,
        liveness,
        steps,
        displaced,
        advances: Advances::of(graph, layout, steps, displaced),
        guards: vec![Guards::default(); count],
        from_before_guards: vec![Guards::default(); count],
        from_before: vec![None; count],
        at_start: vec![None; count],
        tried: vec![Ranges::entry(); count],
        behind: vec![None; count],
    };
    solver.run();
    if solver.hoist() {
        solver.run();
    }
    let start = |ranges: Option<Ranges>| ranges.unwrap_or_else(Ranges::entry);
    (0..count)
        .map(|i| {
            let wanted = solver.guards[i];
            Facts {
                guards: solver.from_before_guards[i],
                ranges: start(solver.at_start[i]),
                wanted,
                behind: start(solver.behind[i]),
            }
        })
        .collect()
}

impl Solver<'_, '_> {
    /// Finds what holds, with the guards as they are.
    fn run(&mut self) {
        let count = self.layout.order.len();
        self.from_before.fill(None);
        self.at_start.fill(None);
        self.from_before[0] = Some(Ranges::entry());
        self.at_start[0] = Some(Ranges::entry());
        let mut pending = vec![false; count];
        pending[0] = true;
        let mut live = Vec::new();
        let mut again = true;
        while std::mem::take(&mut again) {
            let mut edges = self.layout.edges.as_slice();
            for from in 0..count {
                let own = edges.iter().take_while(|edge| edge.0 == from).count();
                let (mine, others) = edges.split_at(own);
                edges = others;
                if !std::mem::take(&mut pending[from]) {
                    continue;
                }
                let Some(start) = self.at_start[from] else { continue };
                let behind = match self.behind[from] {
                    Some(known) if self.tried[from] == start => known,
                    _ => self.through(start, from, &mut live),
                };
                self.tried[from] = start;
                self.behind[from] = Some(behind);
                for &(_, to) in mine {
                    let changed = self.arrive(from, to, behind);
                    pending[to] |= changed;
                    again |= changed && to <= from;
                }
            }
        }
    }

    /// From the start of a block to its end.
    fn through(&self, mut ranges: Ranges, position: usize, live: &mut Vec<Flags>) -> Ranges {
        let block = self.graph.block(self.layout.order[position]);
        self.liveness.in_block(block, self.steps, live);
        let id = self.layout.order[position];
        let mut maker = Maker::at_start(id, live, self.graph, self.layout, self.steps);
        let latch = self.layout.is_latch(position);
        for (i, number) in block.body.clone().enumerate() {
            let guest = self.steps.guest(number);
            if maker.must_unpark(guest) {
                maker.unpark();
                ranges.lose(Register::RAX);
            }
            if ranges.must_settle(guest, live[i + 1]) {
                ranges.settle();
            }
            let (steps, displaced) = (self.steps, self.displaced);
            let flags = FlagsState::before(guest, &block.end, live[i], &maker, steps, displaced);
            let narrowed = self.advances.behind(guest, latch, live[i + 1], &ranges, steps);
            let parks = ranges.step(guest, &flags, live[i + 1], displaced);
            if let Some(register) = narrowed {
                ranges.narrow(register);
            }
            maker.advance(number, guest);
            if parks {
                maker.park();
            }
        }
        let guest = block.terminator.map(|number| self.steps.guest(number));
        if ranges.must_settle_before_end(&block.end, guest) {
            ranges.settle();
        }
        if let Some(guest) = guest {
            let live = live[block.body.len()];
            let (steps, displaced) = (self.steps, self.displaced);
            let flags = FlagsState::before(guest, &block.end, live, &maker, steps, displaced);
            maker.end(&block.end, guest);
            let by_rcx = maker.recipe(steps).is_none();
            ranges.end(block, guest, &flags, displaced, by_rcx);
        }
        ranges
    }

    /// Takes the edge `from`, `to` into account. Whether that changes what
    /// holds at `to`.
    fn arrive(&mut self, from: usize, to: usize, mut arriving: Ranges) -> bool {
        let flags_live = !self.liveness.of(self.layout.order[to]).is_empty();
        let backward = to <= from;
        if !backward {
            let before = self.from_before[to].map_or(arriving, |known| known.join(&arriving));
            self.from_before[to] = Some(before);
            arriving = before;
        }
        let lacking =
            if backward { self.guards[to].lacking(&arriving) } else { self.from_before_guards[to] };
        lacking.apply(&mut arriving);
        if flags_live && (backward || !lacking.is_empty()) {
            // The poll or guard on this edge reloads rax from its slot.
            arriving.lose(Register::RAX);
        }
        let joined = match self.at_start[to] {
            None => arriving,
            Some(known) if backward => known.widen(&arriving),
            Some(known) => known.join(&arriving),
        };
        let changed = self.at_start[to] != Some(joined);
        self.at_start[to] = Some(joined);
        changed
    }

    /// Puts guards before loops. Whether there are any.
    fn hoist(&mut self) -> bool {
        let mut found = false;
        let mut back: Vec<(usize, usize)> =
            self.layout.edges.iter().copied().filter(|(from, to)| to <= from).collect();
        back.sort_unstable_by_key(|&(_, to)| to);
        for latches in back.chunk_by(|one, other| one.1 == other.1) {
            let header = latches[0].1;
            // The entry of the fragment has no place before it.
            let (Some(before), 1..) = (self.from_before[header], header) else { continue };
            if self.steps.is_wide(self.graph.block(self.layout.order[header]).start) {
                // Guards before this loop have failed.
                continue;
            }
            let mut returning: Option<Ranges> = None;
            for &(from, _) in latches {
                let Some(behind) = self.behind[from] else { continue };
                returning = Some(returning.map_or(behind, |known| known.join(&behind)));
            }
            let Some(returning) = returning else { continue };
            let last = latches.iter().map(|latch| latch.0).max().unwrap_or(header);
            let flags_live = !self.liveness.of(self.layout.order[header]).is_empty();
            let (certain, possible) = self.bases(header, last);
            let guards = &mut self.guards[header];
            if !flags_live {
                // Worth it wherever it is lacking: the first block needs it.
                *guards = certain;
            }
            for register in possible.union(certain.bases).registers() {
                if returning.is_confined(register)
                    && !before.is_confined(register)
                    && !(flags_live && register == Register::RAX)
                {
                    guards.bases.insert(register);
                }
            }
            self.from_before_guards[header] = guards.lacking(&before);
            found |= !guards.is_empty();
        }
        found
    }

    /// Registers that the loop from `header` to `last` uses as bases with the
    /// value they have before it, maybe moved by constants. First those that
    /// its first block uses, with its indexes.
    fn bases(&self, header: usize, last: usize) -> (Guards, GprSet) {
        let mut certain = Guards::default();
        let mut bases = GprSet::default();
        let mut replaced = GprSet::default();
        let mut written = GprSet::default();
        for position in header..=last {
            let block: &Block = self.graph.block(self.layout.order[position]);
            for number in block.body.clone().chain(block.terminator) {
                let guest = self.steps.guest(number);
                if let Some((base, index)) = self.parts(guest) {
                    if position == header && !written.contains(base) {
                        certain.bases.insert(base);
                    }
                    if position == header
                        && let Some(index) = index
                        && !written.contains(index)
                    {
                        certain.indexes.insert(index);
                    }
                    bases.insert(base);
                }
                written = written.union(guest.writes);
                if !moves_by_constant(guest) {
                    replaced = replaced.union(guest.writes);
                }
            }
        }
        certain.indexes = certain.indexes.without(certain.bases);
        (certain, bases.without(replaced))
    }

    /// The base of the instruction's operand, and its index, if they live in
    /// their registers.
    fn parts(&self, guest: &Guest) -> Option<(Register, Option<Register>)> {
        if !accesses(guest) || guest.wide {
            return None;
        }
        let own =
            |register: Register| register.is_gpr64() && self.displaced.slot(register).is_none();
        let address = Address::of(&guest.instruction);
        let plain = address.index == Register::None || own(address.index);
        (own(address.base) && address.base != Register::RSP && plain && !address.fs)
            .then(|| (address.base, Some(address.index).filter(|&index| index != Register::None)))
    }
}

/// Whether the instruction accesses the memory that its operand names.
fn accesses(guest: &Guest) -> bool {
    let class = matches!(
        guest.class,
        Class::Plain | Class::Push | Class::IndirectJump | Class::IndirectCall
    );
    class && forms::memory_operand(&guest.instruction).is_some()
}

/// Whether the instruction writes registers only by moving one by a constant.
fn moves_by_constant(guest: &Guest) -> bool {
    use iced_x86::Mnemonic as M;
    let instruction = &guest.instruction;
    let constant =
        || instruction.op1_kind() != OpKind::Register && instruction.op1_kind() != OpKind::Memory;
    match instruction.mnemonic() {
        M::Inc | M::Dec => true,
        M::Add | M::Sub => constant(),
        M::Lea => {
            instruction.memory_base() == instruction.op0_register()
                && instruction.memory_index() == Register::None
        }
        _ => false,
    }
}

//! What is known of the registers where each block begins, and the guards
//! before loops that make it more.
//!
//! A register that every turn of a loop confines for its accesses is confined
//! once before the loop instead: then no turn has to.

use iced_x86::{OpKind, Register};

use crate::displace::Displaced;
use crate::flags::Flags;
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
    /// Registers to be confined where control comes from before.
    pub guards: GprSet,
    /// What holds then, on every way.
    pub ranges: Ranges,
}

struct Solver<'a, 'b> {
    graph: &'a Graph,
    layout: &'a Layout,
    liveness: &'a Liveness,
    steps: &'a Steps<'b>,
    displaced: &'a Displaced,
    /// By position in the layout, like all below.
    guards: Vec<GprSet>,
    /// What holds where control comes from before, without the guards.
    from_before: Vec<Option<Ranges>>,
    at_start: Vec<Option<Ranges>>,
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
        guards: vec![GprSet::default(); count],
        from_before: vec![None; count],
        at_start: vec![None; count],
        behind: vec![None; count],
    };
    solver.run();
    if solver.hoist() {
        solver.run();
    }
    let start = |ranges: Option<Ranges>| ranges.unwrap_or_else(Ranges::entry);
    (0..count)
        .map(|i| {
            let before = start(solver.from_before[i]);
            let mut guards = GprSet::default();
            for register in solver.guards[i].registers() {
                if !before.is_confined(register) {
                    guards.insert(register);
                }
            }
            Facts { guards, ranges: start(solver.at_start[i]) }
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
                let behind = self.through(start, from, &mut live);
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
        for (number, live) in block.body.clone().zip(live.iter()) {
            let guest = self.steps.guest(number);
            let flags = FlagsState::of(*live, &maker, self.steps, self.displaced);
            ranges.step(guest, &flags, self.displaced);
            maker.advance(number, guest);
        }
        if let Some(terminator) = block.terminator {
            let live = live[block.body.len()];
            let flags = FlagsState::of(live, &maker, self.steps, self.displaced);
            ranges.end(block, self.steps.guest(terminator), &flags, self.displaced);
        }
        ranges
    }

    /// Takes the edge `from`, `to` into account. Whether that changes what
    /// holds at `to`.
    fn arrive(&mut self, from: usize, to: usize, mut arriving: Ranges) -> bool {
        let flags_live = !self.liveness.of(self.layout.order[to]).is_empty();
        let backward = to <= from;
        if backward {
            if flags_live {
                // The poll on this edge reloads rax from its slot.
                arriving.lose(Register::RAX);
            }
        } else {
            let before = self.from_before[to].map_or(arriving, |known| known.join(&arriving));
            self.from_before[to] = Some(before);
            arriving = before;
            for register in self.guards[to].registers() {
                if !arriving.is_confined(register) {
                    arriving.confine(register);
                }
                if flags_live {
                    arriving.lose(Register::RAX);
                }
            }
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
            let mut returning: Option<Ranges> = None;
            for &(from, _) in latches {
                let Some(behind) = self.behind[from] else { continue };
                returning = Some(returning.map_or(behind, |known| known.join(&behind)));
            }
            let Some(returning) = returning else { continue };
            let last = latches.iter().map(|latch| latch.0).max().unwrap_or(header);
            let wanted = self.bases(header, last);
            let flags_live = !self.liveness.of(self.layout.order[header]).is_empty();
            for register in wanted.registers() {
                if returning.is_confined(register)
                    && !before.is_confined(register)
                    && !(flags_live && register == Register::RAX)
                {
                    self.guards[header].insert(register);
                    found = true;
                }
            }
        }
        found
    }

    /// Registers that the loop from `header` to `last` uses as bases with the
    /// value they have before it, maybe moved by constants.
    fn bases(&self, header: usize, last: usize) -> GprSet {
        let mut certain = GprSet::default();
        let mut bases = GprSet::default();
        let mut replaced = GprSet::default();
        for position in header..=last {
            let block: &Block = self.graph.block(self.layout.order[position]);
            for number in block.body.clone().chain(block.terminator) {
                let guest = self.steps.guest(number);
                if let Some(base) = self.base(guest) {
                    if position == header && !replaced.contains(base) {
                        certain.insert(base);
                    }
                    bases.insert(base);
                }
                if !moves_by_constant(guest) {
                    replaced = replaced.union(guest.writes);
                }
            }
        }
        certain.union(bases.without(replaced))
    }

    /// The base of the instruction's operand, if it lives in its register.
    fn base(&self, guest: &Guest) -> Option<Register> {
        let instruction = &guest.instruction;
        if !(0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory) {
            return None;
        }
        let base = Address::of(instruction).base;
        let own = base.is_gpr64() && base != Register::RSP && self.displaced.slot(base).is_none();
        own.then_some(base)
    }
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

//! User blocks to sanitised code. One kind of instruction a file; all of it
//! emits exactly the shapes of `docs/fragment.md`.

mod bits;
mod control;
mod dispatch;
mod locked;
mod memory;
mod plain;
mod remake;
mod stack;
mod string;

use std::collections::BTreeMap;

use iced_x86::{Code, Instruction, InstructionInfoFactory, Register};

use crate::displace::{Displaced, SPILL_FLAGS};
use crate::emit::{Emitter, Label, Section, frame as frame_field};
use crate::exits::{Exits, Saved, Undo};
use crate::facts::{self, Advances, Facts, Guards};
use crate::flags::Flags;
use crate::forms::Class;
use crate::fragment::{Exit, ExitKind, Unsupported};
use crate::frame;
use crate::graph::{Block, BlockId, End, Graph, Target};
use crate::layout::Layout;
use crate::liveness::Liveness;
use crate::ranges::Ranges;
use crate::recipe::{FlagsState, Maker, Recipe};
use crate::regs;
use crate::steps::{Guest, Steps};

/// Instructions that could not be lowered, with the reason.
pub(crate) type Refused = BTreeMap<u64, Unsupported>;

/// What lowering a region yields.
#[derive(Debug)]
pub(crate) struct Lowered {
    pub emitter: Emitter,
    pub exits: Vec<Exit>,
}

/// Arithmetic flags live around one instruction.
#[derive(Debug, Clone, Copy)]
struct Live {
    before: Flags,
    after: Flags,
}

/// How a guard may treat the flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protect {
    /// They are dead.
    Dead,
    /// They are live: save and restore them around the guard, or make them
    /// again behind it.
    Live,
    /// They are in their slot already.
    InSlot,
}

impl Protect {
    fn of(before: Flags) -> Self {
        if before.is_empty() { Self::Dead } else { Self::Live }
    }
}

struct Lowerer<'a, 'b> {
    graph: &'a Graph,
    layout: &'a Layout,
    liveness: &'a Liveness,
    steps: &'a Steps<'b>,
    displaced: Displaced,
    emit: Emitter,
    exits: Exits,
    /// In the order of the layout.
    labels: Vec<Labels>,
    /// What is known of the user's registers before the current instruction.
    ranges: Ranges,
    /// Of the blocks, in the order of the layout.
    facts: Vec<Facts>,
    advances: Advances,
    /// What made the flags before the current instruction.
    maker: Maker,
    /// How it stands with them.
    flags: FlagsState,
    /// How to make the flags again behind the current block.
    edge_recipe: Option<Recipe>,
    /// Polls that lead to each block, by position.
    polls: Vec<Option<Label>>,
    info: InstructionInfoFactory,
}

/// Where a block begins.
#[derive(Debug, Clone, Copy)]
struct Labels {
    /// For those who come from before: with the guards of a loop.
    entry: Label,
    /// For those who come back.
    inner: Label,
}

/// Lowers every block of the layout. Err names the instructions that this
/// choice of displaced registers cannot express; the region has to be
/// discovered again without them. `nops` is as in [`Options`](crate::Options).
pub(crate) fn lower(
    graph: &Graph,
    layout: &Layout,
    liveness: &Liveness,
    steps: &Steps,
    displaced: Displaced,
    nops: u32,
) -> Result<Lowered, Refused> {
    let blocks = || layout.order.iter().map(|&block| graph.block(block));
    let instructions: usize = blocks().map(Block::len).sum();
    let mut emit = Emitter::new(5 * instructions);
    let labels = blocks().map(|_| Labels { entry: emit.label(), inner: emit.label() }).collect();
    let exits = Exits::new(&mut emit, displaced);
    let mut lowerer = Lowerer {
        graph,
        layout,
        liveness,
        steps,
        displaced,
        emit,
        exits,
        labels,
        ranges: Ranges::entry(),
        facts: facts::solve(graph, layout, liveness, steps, &displaced),
        advances: Advances::of(graph, layout, steps, &displaced),
        maker: Maker::UNKNOWN,
        flags: FlagsState::Dead,
        edge_recipe: None,
        polls: vec![None; layout.order.len()],
        info: InstructionInfoFactory::new(),
    };
    lowerer.prologue();
    for _ in 0..nops {
        lowerer.emit.push(Instruction::with(Code::Nopd));
    }
    let mut refused = Refused::new();
    let mut live = Vec::new();
    for (position, &block) in layout.order.iter().enumerate() {
        lowerer.entry(block);
        let next = layout.order.get(position + 1).copied();
        liveness.in_block(graph.block(block), steps, &mut live);
        lowerer.block(block, next, &live, &mut refused);
    }
    if !refused.is_empty() {
        return Err(refused);
    }
    let Lowerer { mut emit, exits, .. } = lowerer;
    let exits = exits.finish(&mut emit);
    Ok(Lowered { emitter: emit, exits })
}

impl Lowerer<'_, '_> {
    /// Saves the displaced registers and fetches the user's `rsp` and `r11`.
    fn prologue(&mut self) {
        self.emit.push(Instruction::with(Code::Endbr64));
        let displaced = self.displaced;
        if displaced.slot(Register::R11).is_none() {
            self.emit.load(Register::R11, frame_field(frame::USER_R11));
        }
        for (register, slot) in displaced.slots() {
            if register == Register::R11 {
                self.emit.load(register, frame_field(frame::USER_R11));
            }
            self.emit.store(frame_field(slot), register);
        }
        self.emit.load(displaced.s, frame_field(frame::USER_RSP));
    }

    /// Binds the labels of the block `id` and emits the guards before a loop.
    fn entry(&mut self, id: BlockId) {
        let position = self.layout.position(id);
        let (labels, facts) = (self.labels[position], self.facts[position]);
        self.emit.bind(labels.entry);
        self.flags = FlagsState::Saved;
        self.prove(facts.guards, id);
        self.emit.bind(labels.inner);
        self.ranges = facts.ranges;
    }

    fn block(&mut self, id: BlockId, next: Option<BlockId>, live: &[Flags], refused: &mut Refused) {
        let (graph, steps) = (self.graph, self.steps);
        let block = graph.block(id);
        let around = |i: usize| Live {
            before: live[i],
            after: live.get(i + 1).copied().unwrap_or(Flags::ALL),
        };
        let latch = self.layout.is_latch(self.layout.position(id));
        self.maker = Maker::at_start(id, live, graph, self.layout, steps);
        for (i, number) in block.body.clone().enumerate() {
            let guest = steps.guest(number);
            self.emit.mark(guest.ip());
            if self.maker.must_unpark(guest) {
                self.unpark();
            }
            if self.ranges.must_settle(guest, live[i + 1]) {
                self.settle();
            }
            self.flags = self.flags_before(guest, &block.end, live[i]);
            self.exits.set_ahead(self.ranges.ahead());
            if let Err(reason) = self.instruction(guest, around(i)) {
                refused.insert(guest.ip(), reason);
            }
            let parked = self.maker.is_parked();
            let (live, ranges) = (live[i + 1], &self.ranges);
            let narrowed = self.advances.behind(guest, latch, live, ranges, steps);
            let parks = self.ranges.step(guest, &self.flags, live, &self.displaced);
            debug_assert_eq!(self.maker.is_parked(), parked || parks);
            self.maker.advance(number, guest);
            if parks {
                self.maker.park();
            }
            if let Some(register) = narrowed {
                self.narrow_between(register, guest.next_ip(), Saved::No);
                self.ranges.narrow(register);
            }
        }
        let terminator = block.terminator.map(|number| steps.guest(number));
        if self.ranges.must_settle_before_end(&block.end, terminator) {
            self.settle();
        }
        self.exits.set_ahead(self.ranges.ahead());
        let ip = terminator.map_or(block.start, Guest::ip);
        let mut maker = self.maker;
        if let Some(guest) = terminator {
            maker.end(&block.end, guest);
            self.emit.mark(ip);
            self.flags = self.flags_before(guest, &block.end, live[block.body.len()]);
        }
        let simple = |recipe: &Recipe| recipe.is_simple(&self.displaced);
        self.edge_recipe = maker.recipe(steps).filter(simple);
        if let Err(reason) = self.end(id, terminator, next, around(block.body.len())) {
            refused.insert(ip, reason);
        }
    }

    /// Proves what holds from now on at the block `to`, or leaves there.
    fn prove(&mut self, guards: Guards, to: BlockId) {
        if guards.is_empty() {
            return;
        }
        let ip = self.graph.block(to).start;
        let protect = Protect::of(self.liveness.of(to));
        let flags = self.protect(protect);
        for register in guards.bases.registers() {
            self.confine_between(register, true, ip, flags);
        }
        for register in guards.indexes.registers() {
            self.narrow_between(register, ip, flags);
        }
        self.unprotect(protect);
    }

    fn flags_before(&self, guest: &Guest, end: &End, live: Flags) -> FlagsState {
        FlagsState::before(guest, end, live, &self.maker, self.steps, &self.displaced)
    }

    /// Takes the flags back out of their slot.
    fn unpark(&mut self) {
        self.emit.flags_from_slot();
        self.ranges.lose(Register::RAX);
        self.maker.unpark();
    }

    fn instruction(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        match guest.class {
            Class::Plain => self.plain(guest, live),
            Class::Locked => self.locked(guest, live),
            Class::BitString => self.bit_string(guest, live),
            Class::Hint => Ok(()),
            Class::Lea => self.lea(guest),
            Class::WritesRsp => self.writes_rsp(guest, live),
            Class::Push => self.push(guest, live),
            Class::Pop => self.pop(guest, live),
            Class::Leave => {
                self.leave(guest, live);
                Ok(())
            }
            Class::String => {
                self.string(guest, live);
                Ok(())
            }
            // Block ends are not in bodies.
            _ => Err(Unsupported::Form),
        }
    }

    /// Where a fault of the instruction at `ip` lands while the flags are
    /// where `flags` says.
    fn fault(&mut self, ip: u64, flags: Saved) -> Label {
        let flags = match flags {
            Saved::No if self.maker.is_parked() => Saved::InSlot,
            flags => flags,
        };
        let undo = Undo { set_bit: None, flags };
        self.exits.undo(&mut self.emit, ip, ExitKind::Fault, undo)
    }

    /// Confines `register` with `btr` and a guard exit at `ip`. If
    /// `in_place`, it is a user register and the exit gives the bit back.
    /// It must not be `rax` if that has to hold the flags meanwhile.
    fn confine(&mut self, register: Register, in_place: bool, ip: u64, protect: Protect) {
        let flags = self.protect(protect);
        self.confine_between(register, in_place, ip, flags);
        self.unprotect(protect);
    }

    /// Saves the flags before guards, if that is needed; returns where they are.
    fn protect(&mut self, protect: Protect) -> Saved {
        match protect {
            Protect::Dead => Saved::No,
            Protect::InSlot => Saved::InSlot,
            Protect::Live => match self.flags {
                FlagsState::Dead => Saved::No,
                FlagsState::Remade(_) => Saved::Remade,
                FlagsState::Parked => Saved::InSlot,
                FlagsState::ToPark => {
                    self.emit.flags_to_slot();
                    self.maker.park();
                    Saved::InSlot
                }
                FlagsState::Saved => {
                    self.emit.flags_to_rax();
                    Saved::InRax
                }
            },
        }
    }

    /// Undoes [`Lowerer::protect`].
    fn unprotect(&mut self, protect: Protect) {
        if protect == Protect::Live {
            match self.flags {
                FlagsState::Remade(recipe) => {
                    self.remake_flags(&recipe, self.displaced.u, self.displaced.u);
                }
                FlagsState::Saved => self.emit.flags_from_rax(),
                FlagsState::Dead | FlagsState::Parked | FlagsState::ToPark => {}
            }
        }
    }

    /// The exit of a guard at `ip`.
    fn guard(&mut self, ip: u64, undo: Undo) -> Label {
        let (Saved::Remade, Some(recipe)) = (undo.flags, self.flags.recipe()) else {
            return self.exits.undo(&mut self.emit, ip, ExitKind::Guard, undo);
        };
        let exit = self.exits.exit(&mut self.emit, ip, ExitKind::Guard, Unsupported::None);
        let former = self.emit.select(Section::Undo);
        let label = self.emit.here();
        if let Some(register) = undo.set_bit {
            self.emit.bit_set63(register);
        }
        self.remake_flags(&recipe, self.displaced.u, self.displaced.u);
        self.emit.jmp(exit);
        self.emit.select(former);
        label
    }

    /// The guard of [`Lowerer::confine`], with the flags out of the way.
    fn confine_between(&mut self, register: Register, in_place: bool, ip: u64, flags: Saved) {
        let undo = Undo { set_bit: in_place.then_some(register), flags };
        let guard = self.guard(ip, undo);
        self.emit.bit_reset63(register);
        self.emit.branch(Code::Jb_rel32_64, guard);
    }

    /// Proves that the user register is below 2 to the power of 32, or leaves
    /// at `ip`. The last move changes nothing and is the proof: unlike the
    /// branch it also holds while the CPU runs ahead. Uses T.
    fn narrow_between(&mut self, register: Register, ip: u64, flags: Saved) {
        let undo = Undo { set_bit: None, flags };
        let guard = self.guard(ip, undo);
        let (t, t32) = (self.displaced.t, regs::low32(self.displaced.t));
        let low = regs::low32(register);
        let mov = |to, from| Instruction::with2(Code::Mov_r32_rm32, to, from).expect("mov r,r");
        self.emit.push(mov(t32, low));
        self.emit.push(Instruction::with2(Code::Cmp_r64_rm64, t, register).expect("cmp r,r"));
        self.emit.branch(Code::Jne_rel32_64, guard);
        self.emit.push(mov(low, low));
    }

    /// Copies the user's 64-bit register to a scratch register.
    fn fetch(&mut self, to: Register, user: Register) {
        let user = user.full_register();
        if user == Register::RSP {
            self.emit.mov(to, self.displaced.s);
        } else if let Some(slot) = self.displaced.slot(user) {
            self.emit.load(to, frame_field(slot));
        } else {
            self.emit.mov(to, user);
        }
    }

    /// The place to branch to for the edge from the block `from` to `to`: a
    /// block, a poll before it, or an exit.
    fn edge(&mut self, from: BlockId, to: Target) -> Label {
        match self.block_at(to) {
            Ok(block) if self.layout.is_backward(from, block) => self.poll_aside(from, to, block),
            Ok(block) => self.labels[self.layout.position(block)].entry,
            Err(exit) => exit,
        }
    }

    /// The block that `to` is, unless it only leaves: then its exit.
    fn block_at(&mut self, to: Target) -> Result<BlockId, Label> {
        let Some(id) = to.block else {
            let (kind, reason) = (ExitKind::Branch, Unsupported::None);
            return Err(self.exits.exit(&mut self.emit, to.address, kind, reason));
        };
        let block = self.graph.block(id);
        match block.end {
            End::Exit { ip, kind, reason } if block.is_bare_exit() => {
                Err(self.exits.exit(&mut self.emit, ip, kind, reason))
            }
            _ => Ok(id),
        }
    }

    /// An out-of-line [`Lowerer::poll`]; one serves all edges to a block that
    /// differ in nothing.
    fn poll_aside(&mut self, from: BlockId, to: Target, block: BlockId) -> Label {
        let position = self.layout.position(block);
        let guards = self.facts[self.layout.position(from)].guards_back_to(&self.facts[position]);
        let alike = self.liveness.of(block).is_empty() && guards.is_empty();
        if alike && let Some(known) = self.polls[position] {
            return known;
        }
        let former = self.emit.select(Section::Polls);
        let poll = self.emit.here();
        self.poll(from, to, block);
        self.emit.select(former);
        if alike {
            self.polls[position] = Some(poll);
        }
        poll
    }

    /// A poll here that goes on backward at `to`, which is `block`, keeping the
    /// flags if they are live there.
    fn poll(&mut self, from: BlockId, to: Target, block: BlockId) {
        let facts = |block| &self.facts[self.layout.position(block)];
        let guards = facts(from).guards_back_to(facts(block));
        self.flags = FlagsState::Saved;
        self.prove(guards, block);
        let exit = self.exits.exit(&mut self.emit, to.address, ExitKind::Poll, Unsupported::None);
        let inner = self.labels[self.layout.position(block)].inner;
        if self.liveness.of(block).is_empty() {
            self.exits.poll(&mut self.emit, exit);
            self.emit.jmp(inner);
            return;
        }
        let recipe = self.edge_recipe;
        if recipe.is_none() {
            self.emit.flags_to_rax();
            self.emit.store(frame_field(SPILL_FLAGS), Register::RAX);
        }
        let former = self.emit.select(Section::Undo);
        let pending = self.emit.here();
        self.flags_behind_poll(recipe);
        self.emit.jmp(exit);
        self.emit.select(former);
        self.exits.poll(&mut self.emit, pending);
        self.flags_behind_poll(recipe);
        self.emit.jmp(inner);
    }

    fn flags_behind_poll(&mut self, recipe: Option<Recipe>) {
        match recipe {
            Some(recipe) => self.remake_flags(&recipe, self.displaced.u, self.displaced.u),
            None => self.emit.flags_from_slot_over_rax(),
        }
    }

    /// Goes on at `to`, without a jump if that block is emitted `next`.
    fn go(&mut self, from: BlockId, to: Target, next: Option<BlockId>) {
        if next.is_some() && next == to.block {
            return;
        }
        match self.block_at(to) {
            Ok(block) => {
                let labels = self.labels[self.layout.position(block)];
                if self.layout.is_backward(from, block) {
                    self.poll(from, to, block);
                } else {
                    self.emit.jmp(labels.entry);
                }
            }
            Err(exit) => self.emit.jmp(exit),
        }
    }
}

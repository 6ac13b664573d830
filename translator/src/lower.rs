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

use crate::displace::Displaced;
use crate::emit::{Emitter, Label, Section, frame as frame_field};
use crate::exits::{Exits, Saved, Undo};
use crate::facts::{self, Facts};
use crate::flags::Flags;
use crate::forms::Class;
use crate::fragment::{Exit, ExitKind, Unsupported};
use crate::frame;
use crate::graph::{Block, BlockId, End, Graph, Target};
use crate::layout::Layout;
use crate::liveness::Liveness;
use crate::ranges::Ranges;
use crate::recipe::{FlagsState, Maker, Recipe};
use crate::regs::{self, GprSet};
use crate::steps::{Guest, Steps};

/// Instructions that could not be lowered, with the reason.
pub(crate) type Refused = BTreeMap<u64, Unsupported>;

/// What lowering a region yields.
#[derive(Debug)]
pub(crate) struct Lowered {
    pub emitter: Emitter,
    pub exits: Vec<Exit>,
    pub instructions: usize,
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
    /// What made the flags before the current instruction.
    maker: Maker,
    /// How a guard makes them again, if they are live and it can.
    recipe: Option<Recipe>,
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
/// discovered again without them.
pub(crate) fn lower(
    graph: &Graph,
    layout: &Layout,
    liveness: &Liveness,
    steps: &Steps,
    displaced: Displaced,
) -> Result<Lowered, Refused> {
    let facts = facts::solve(graph, layout, liveness, steps, &displaced);
    let blocks = || layout.order.iter().map(|&block| graph.block(block));
    let instructions = blocks().map(Block::len).sum();
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
        maker: Maker::UNKNOWN,
        recipe: None,
        info: InstructionInfoFactory::new(),
    };
    lowerer.prologue();
    let mut refused = Refused::new();
    let mut live = Vec::new();
    for (position, &block) in layout.order.iter().enumerate() {
        lowerer.entry(block, &facts[position]);
        let next = layout.order.get(position + 1).copied();
        liveness.in_block(graph.block(block), steps, &mut live);
        lowerer.block(block, next, &live, &mut refused);
    }
    if !refused.is_empty() {
        return Err(refused);
    }
    let Lowerer { mut emit, exits, .. } = lowerer;
    let exits = exits.finish(&mut emit);
    Ok(Lowered { emitter: emit, exits, instructions })
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
    fn entry(&mut self, id: BlockId, facts: &Facts) {
        let labels = self.labels[self.layout.position(id)];
        self.emit.bind(labels.entry);
        if facts.guards != GprSet::default() {
            let ip = self.graph.block(id).start;
            let protect = Protect::of(self.liveness.of(id));
            self.recipe = None;
            let flags = self.protect(protect);
            for register in facts.guards.registers() {
                self.confine_between(register, true, ip, flags);
            }
            self.unprotect(protect);
        }
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
        self.maker = Maker::at_start(id, live, graph, self.layout, steps);
        for (i, number) in block.body.clone().enumerate() {
            let guest = steps.guest(number);
            self.emit.mark(guest.ip());
            let flags = FlagsState::of(live[i], &self.maker, steps, &self.displaced);
            self.recipe = flags.recipe();
            if let Err(reason) = self.instruction(guest, around(i)) {
                refused.insert(guest.ip(), reason);
            }
            self.ranges.step(guest, &flags, &self.displaced);
            self.maker.advance(number, guest);
        }
        let terminator = block.terminator.map(|number| steps.guest(number));
        let ip = terminator.map_or(block.start, Guest::ip);
        if terminator.is_some() {
            self.emit.mark(ip);
        }
        let behind = block.body.len();
        self.recipe = FlagsState::of(live[behind], &self.maker, steps, &self.displaced).recipe();
        if let Err(reason) = self.end(id, terminator, next, around(behind)) {
            refused.insert(ip, reason);
        }
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
            Protect::Live if self.recipe.is_some() => Saved::Remade,
            Protect::Live => {
                self.emit.flags_to_rax();
                Saved::InRax
            }
            Protect::InSlot => Saved::InSlot,
        }
    }

    /// Undoes [`Lowerer::protect`].
    fn unprotect(&mut self, protect: Protect) {
        match &self.recipe {
            _ if protect != Protect::Live => {}
            Some(recipe) => {
                let u = self.displaced.u;
                self.remake_flags(&recipe.clone(), u, u);
            }
            None => self.emit.flags_from_rax(),
        }
    }

    /// The exit of a guard at `ip`.
    fn guard(&mut self, ip: u64, undo: Undo) -> Label {
        let recipe = match undo.flags {
            Saved::Remade => self.recipe,
            _ => None,
        };
        let Some(recipe) = recipe else {
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
            Ok(block) if self.layout.is_backward(from, block) => {
                let label = self.labels[self.layout.position(block)].inner;
                let flags_live = !self.liveness.of(block).is_empty();
                self.exits.poll_aside(&mut self.emit, block, to, label, flags_live)
            }
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

    /// Goes on at `to`, without a jump if that block is emitted `next`.
    fn go(&mut self, from: BlockId, to: Target, next: Option<BlockId>) {
        if next.is_some() && next == to.block {
            return;
        }
        match self.block_at(to) {
            Ok(block) => {
                let labels = self.labels[self.layout.position(block)];
                if self.layout.is_backward(from, block) {
                    let flags_live = !self.liveness.of(block).is_empty();
                    self.exits.poll(&mut self.emit, to, labels.inner, flags_live);
                } else {
                    self.emit.jmp(labels.entry);
                }
            }
            Err(exit) => self.emit.jmp(exit),
        }
    }
}

//! User blocks to sanitised code. One kind of instruction a file; all of it
//! emits exactly the shapes of `docs/fragment.md`.

mod control;
mod locked;
mod memory;
mod plain;
mod stack;
mod string;

use std::collections::BTreeMap;

use iced_x86::{Code, Instruction, InstructionInfoFactory, OpKind, Register};

use crate::confinement::{self, BlockEffect};
use crate::displace::Displaced;
use crate::emit::{Emitter, Label, frame as frame_field};
use crate::exits::{Exits, Saved, Undo};
use crate::flags::Flags;
use crate::forms::Class;
use crate::fragment::{Exit, ExitKind, Unsupported};
use crate::frame;
use crate::layout::Layout;
use crate::liveness::Liveness;
use crate::region::{Block, End, Region};
use crate::regs::GprSet;
use crate::steps::Guest;

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
    /// They are live: save and restore them around the guard.
    Live,
    /// They are in their slot already.
    InSlot,
}

impl Protect {
    fn of(before: Flags) -> Self {
        if before.is_empty() { Self::Dead } else { Self::Live }
    }
}

struct Lowerer<'a> {
    region: &'a Region,
    layout: &'a Layout,
    liveness: &'a Liveness,
    displaced: Displaced,
    emit: Emitter,
    exits: Exits,
    /// Labels of the blocks, in the order of the layout.
    labels: Vec<Label>,
    /// User registers whose bit 63 is known to be clear here.
    confined: GprSet,
    /// Those that lost this in the current block.
    lost: GprSet,
    /// What each block did to `confined`.
    effects: Vec<BlockEffect>,
    info: InstructionInfoFactory,
}

/// Lowers every block of the layout. Err names the instructions that this
/// choice of displaced registers cannot express; the region has to be
/// discovered again without them.
pub(crate) fn lower(
    region: &Region,
    layout: &Layout,
    liveness: &Liveness,
    displaced: Displaced,
) -> Result<Lowered, Refused> {
    // The first round shows what each block confines by itself; the second
    // leaves out the guards that earlier blocks make needless.
    let first = round(region, layout, liveness, displaced, Vec::new(), true)?;
    let confined = confinement::solve(region, layout, liveness, &first.effects);
    let Lowerer { mut emit, exits, .. } =
        round(region, layout, liveness, displaced, confined, false)?;
    let exits = exits.finish(&mut emit);
    let blocks = layout.order.iter().map(|start| &region.blocks[start]);
    let instructions =
        blocks.map(|block| block.body.len() + usize::from(block.terminator.is_some())).sum();
    Ok(Lowered { emitter: emit, exits, instructions })
}

/// Lowers all blocks, given what is `confined` at their starts. If `dry`, only
/// for their effects.
fn round<'a>(
    region: &'a Region,
    layout: &'a Layout,
    liveness: &'a Liveness,
    displaced: Displaced,
    confined: Vec<GprSet>,
    dry: bool,
) -> Result<Lowerer<'a>, Refused> {
    let mut emit = Emitter::new(6 * region.instructions, dry);
    let labels = layout.order.iter().map(|_| emit.label()).collect();
    let exits = Exits::new(&mut emit, displaced);
    let mut lowerer = Lowerer {
        region,
        layout,
        liveness,
        displaced,
        emit,
        exits,
        labels,
        confined: GprSet::default(),
        lost: GprSet::default(),
        effects: Vec::with_capacity(layout.order.len()),
        info: InstructionInfoFactory::new(),
    };
    lowerer.prologue();
    let mut refused = Refused::new();
    for (position, start) in layout.order.iter().enumerate() {
        lowerer.confined = confined.get(position).copied().unwrap_or_default();
        lowerer.lost = GprSet::default();
        let next = layout.order.get(position + 1).copied();
        lowerer.block(&region.blocks[start], next, &mut refused);
        let effect = BlockEffect { gains: lowerer.confined, loses: lowerer.lost };
        lowerer.effects.push(effect);
    }
    if refused.is_empty() { Ok(lowerer) } else { Err(refused) }
}

impl Lowerer<'_> {
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

    fn block(&mut self, block: &Block, next: Option<u64>, refused: &mut Refused) {
        self.emit.bind(self.labels[self.layout.position[&block.start]]);
        let live = self.liveness.in_block(block);
        let around = |i: usize| Live {
            before: live[i],
            after: live.get(i + 1).copied().unwrap_or(Flags::ALL),
        };
        for (i, guest) in block.body.iter().enumerate() {
            self.emit.mark(guest.ip());
            if let Err(reason) = self.instruction(guest, around(i)) {
                refused.insert(guest.ip(), reason);
            }
            let copied = self.is_copy_of_confined(&guest.instruction);
            self.forget_written(guest);
            if copied {
                self.confined.insert(guest.instruction.op0_register());
            }
        }
        if let Some(terminator) = &block.terminator {
            self.emit.mark(terminator.ip());
        }
        if let Err(reason) = self.end(block, next, around(block.body.len())) {
            let ip = block.terminator.map_or(block.start, |guest| guest.ip());
            refused.insert(ip, reason);
        }
    }

    fn instruction(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        match guest.class {
            Class::Plain => self.plain(guest, live),
            Class::Locked => self.locked(guest, live),
            Class::Hint => Ok(()),
            Class::Lea => self.lea(guest),
            Class::WritesRsp => self.writes_rsp(guest, live),
            Class::Push => self.push(guest, live),
            Class::Pop => self.pop(guest),
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

    /// Whether the instruction copies a confined register to another one that
    /// is not displaced. S, which stands for `rsp`, always is confined.
    fn is_copy_of_confined(&self, instruction: &Instruction) -> bool {
        matches!(instruction.code(), Code::Mov_r64_rm64 | Code::Mov_rm64_r64)
            && instruction.op0_kind() == OpKind::Register
            && instruction.op1_kind() == OpKind::Register
            && instruction.op0_register() != Register::RSP
            && self.displaced.slot(instruction.op0_register()).is_none()
            && (instruction.op1_register() == Register::RSP
                || self.confined.contains(instruction.op1_register()))
    }

    /// Registers the instruction writes are no longer confined.
    fn forget_written(&mut self, guest: &Guest) {
        self.confined = self.confined.without(guest.writes);
        self.lost = self.lost.union(guest.writes);
    }

    /// The register is no longer known to be confined.
    fn lose(&mut self, register: Register) {
        self.confined.remove(register);
        self.lost.insert(register);
    }

    /// Where a fault of the instruction at `ip` lands while the flags are
    /// where `flags` says.
    fn fault(&mut self, ip: u64, flags: Saved) -> Label {
        let undo = Undo { set_bit: None, flags };
        self.exits.undo(&mut self.emit, ip, ExitKind::Fault, undo)
    }

    /// Confines `register` with `btr` and a guard exit at `ip`. If
    /// `in_place`, it is a user register and the exit gives the bit back.
    /// With [`Protect::Live`] it must not be `rax`.
    fn confine(&mut self, register: Register, in_place: bool, ip: u64, protect: Protect) {
        debug_assert!(protect != Protect::Live || register != Register::RAX);
        let flags = match protect {
            Protect::Dead => Saved::No,
            Protect::Live => Saved::InRax,
            Protect::InSlot => Saved::InSlot,
        };
        if protect == Protect::Live {
            self.emit.flags_to_rax();
        }
        let undo = Undo { set_bit: in_place.then_some(register), flags };
        let guard = self.exits.undo(&mut self.emit, ip, ExitKind::Guard, undo);
        self.emit.bit_reset63(register);
        self.emit.branch(Code::Jb_rel32_64, guard);
        if protect == Protect::Live {
            self.emit.flags_from_rax();
            self.lose(Register::RAX);
        }
        if in_place {
            self.confined.insert(register);
        }
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

    /// The place to branch to for the edge from the block at `from` to the
    /// user address `to`: a block, a poll before it, or an exit.
    fn edge(&mut self, from: u64, to: u64) -> Label {
        let Some(block) = self.region.blocks.get(&to) else {
            return self.exits.exit(&mut self.emit, to, ExitKind::Branch, Unsupported::None);
        };
        if block.body.is_empty()
            && let End::Exit { ip, kind, reason } = block.end
        {
            return self.exits.exit(&mut self.emit, ip, kind, reason);
        }
        let label = self.labels[self.layout.position[&to]];
        if self.layout.is_backward(from, to) {
            let flags_live = !self.liveness.at(to).is_empty();
            self.exits.poll(&mut self.emit, to, label, flags_live)
        } else {
            label
        }
    }

    /// Goes on at `to`, without a jump if that block is emitted `next`.
    fn go(&mut self, from: u64, to: u64, next: Option<u64>) {
        if next != Some(to) {
            let label = self.edge(from, to);
            self.emit.jmp(label);
        }
    }
}

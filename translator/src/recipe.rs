//! Making the user's flags again from registers that still hold what they
//! were computed from.
//!
//! A guard or a comparison of the fragment's own may then clobber them: that
//! is cheaper than saving them.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::displace::Displaced;
use crate::flags::Flags;
use crate::forms::{self, Class};
use crate::graph::{BlockId, End, Graph};
use crate::layout::Layout;
use crate::ranges::popped;
use crate::regs::{self, GprSet};
use crate::steps::{Guest, Steps};

/// How to make the flags that the user's code has left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipe {
    pub how: Remake,
    /// The instruction that made them.
    pub maker: Instruction,
    /// By how much the user's `rsp` has moved since.
    pub moved: i64,
}

/// What to do with the maker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remake {
    /// Do it again: it only compares.
    Again,
    /// It was logic: its flags tell about the result alone.
    Result,
    /// Its result was zero by its form.
    Zero,
    /// Undo it on a copy of its result and do it again there.
    Backward,
}

impl Recipe {
    /// Whether one scratch register is enough for it.
    pub(crate) fn is_simple(&self, displaced: &Displaced) -> bool {
        let own = |operand| {
            self.maker.op_kind(operand) != OpKind::Register
                || displaced.slot(self.maker.op_register(operand)).is_none()
        };
        match self.how {
            Remake::Zero | Remake::Result => true,
            Remake::Again => own(0) && own(1),
            Remake::Backward => own(1),
        }
    }
}

/// How far back the maker is looked for, in blocks.
const MAX_BLOCKS: usize = 4;

/// Follows a block's instructions and knows what made the flags.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Maker {
    /// The step that made all flags last, if nothing since is in the way.
    number: Option<usize>,
    /// Registers written since.
    written: GprSet,
    /// See [`Recipe::moved`].
    moved: i64,
    /// They are in their slot.
    parked: bool,
}

/// How it stands with the flags before an instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FlagsState {
    /// Nobody needs them.
    Dead,
    /// A guard can make them again.
    Remade(Recipe),
    /// A guard has to save them, by way of `rax`, and to restore them.
    Saved,
    /// A guard puts them into their slot, by way of `rax`, and leaves them.
    ToPark,
    /// They are in their slot until somebody needs them.
    Parked,
}

impl FlagsState {
    /// With `live` flags before `guest`, which stands in a block with this end.
    pub(crate) fn before(
        guest: &Guest,
        end: &End,
        live: Flags,
        maker: &Maker,
        steps: &Steps,
        displaced: &Displaced,
    ) -> Self {
        if live.is_empty() {
            return Self::Dead;
        }
        if maker.parked {
            return Self::Parked;
        }
        let recipe = maker.recipe(steps).filter(|recipe| recipe.is_simple(displaced));
        if let Some(recipe) = recipe {
            return Self::Remade(recipe);
        }
        // Behind an indirect branch hardly ever anybody needs them.
        let indirect =
            matches!(end, End::IndirectJump(_) | End::IndirectCall { .. } | End::Return(_));
        let class = matches!(guest.class, Class::Plain | Class::IndirectJump | Class::IndirectCall);
        let keeps = guest.effects.reads.is_empty() && guest.effects.touches.is_empty();
        if indirect && class && keeps { Self::ToPark } else { Self::Saved }
    }

    /// Whether a guard needs `rax` because of them.
    pub(crate) fn need_rax(&self) -> bool {
        matches!(self, Self::Saved | Self::ToPark)
    }

    /// How a guard makes them again.
    pub(crate) fn recipe(&self) -> Option<Recipe> {
        match self {
            Self::Remade(recipe) => Some(*recipe),
            _ => None,
        }
    }
}

impl Maker {
    /// Nothing is known.
    pub(crate) const UNKNOWN: Self =
        Self { number: None, written: GprSet::EMPTY, moved: 0, parked: false };

    /// At the start of `block`, in which flags are `live`.
    pub(crate) fn at_start(
        block: BlockId,
        live: &[Flags],
        graph: &Graph,
        layout: &Layout,
        steps: &Steps,
    ) -> Self {
        if live[0].is_empty() {
            return Self::UNKNOWN;
        }
        let mut path = [block; MAX_BLOCKS];
        let mut length = 0;
        let mut at = block;
        while length < MAX_BLOCKS
            && let Some(before) = layout.sole_predecessor(at)
        {
            path[length] = before;
            length += 1;
            at = before;
            if graph.block(at).body.clone().any(|n| steps.guest(n).effects.touches != Flags::NONE) {
                break;
            }
        }
        let mut maker = Self::UNKNOWN;
        for &block in path[..length].iter().rev() {
            let block = graph.block(block);
            for number in block.body.clone() {
                maker.advance(number, steps.guest(number));
            }
            if let Some(number) = block.terminator {
                maker.end(&block.end, steps.guest(number));
            }
        }
        maker
    }

    /// A guard has put the flags into their slot.
    pub(crate) fn park(&mut self) {
        self.parked = true;
    }

    /// The flags are back in the flags register.
    pub(crate) fn unpark(&mut self) {
        self.parked = false;
    }

    /// Whether the flags are in their slot.
    pub(crate) fn is_parked(&self) -> bool {
        self.parked
    }

    /// Whether the flags have to leave their slot before `guest`, because it
    /// depends on them, keeps some, or needs the slot.
    pub(crate) fn must_unpark(&self, guest: &Guest) -> bool {
        let (effects, instruction) = (guest.effects, &guest.instruction);
        let part = !effects.touches.is_empty() && effects.replaces != Flags::ALL;
        let plain = match guest.class {
            Class::Plain | Class::Push | Class::Lea | Class::Hint => true,
            Class::Pop => {
                instruction.op0_kind() == OpKind::Register
                    && instruction.op0_register().full_register() != Register::RSP
            }
            _ => false,
        };
        self.parked && (part || !effects.reads.is_empty() || !plain)
    }

    /// Behind step `number` of a block's body.
    pub(crate) fn advance(&mut self, number: usize, guest: &Guest) {
        if guest.effects.touches != Flags::NONE {
            let whole = guest.effects.replaces == Flags::ALL;
            *self = Self { number: whole.then_some(number), ..Self::UNKNOWN };
            return;
        }
        let instruction = &guest.instruction;
        let pops_rsp = instruction.op_count() > 0
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().full_register() == Register::RSP
            && guest.class == Class::Pop;
        match guest.class {
            Class::Push | Class::Pop if !pops_rsp => {
                self.moved += i64::from(instruction.stack_pointer_increment());
            }
            _ if guest.writes.contains(Register::RSP) => self.number = None,
            _ => {}
        }
        self.written = self.written.union(guest.writes);
    }

    /// Behind the control-flow instruction of a block.
    pub(crate) fn end(&mut self, end: &End, guest: &Guest) {
        if guest.effects.touches != Flags::NONE {
            *self = Self::UNKNOWN;
        }
        self.written = self.written.union(guest.writes);
        self.moved += match end {
            End::Call { .. } | End::IndirectCall { .. } => -8,
            End::Return(_) => 8 + i64::from(popped(guest)),
            _ => 0,
        };
    }

    /// The recipe for the flags here.
    pub(crate) fn recipe(&self, steps: &Steps) -> Option<Recipe> {
        let guest = steps.guest(self.number?);
        let how = remake(guest, self.written)?;
        Some(Recipe { how, maker: guest.instruction, moved: self.moved })
    }
}

/// How the flags of `maker` are made again when the registers `written` have
/// changed since.
fn remake(maker: &Guest, written: GprSet) -> Option<Remake> {
    use Mnemonic as M;
    let instruction = &maker.instruction;
    if maker.class == Class::WritesRsp {
        let by_constant = instruction.op1_kind() != OpKind::Register
            && instruction.op1_kind() != OpKind::Memory
            && instruction.op0_register() == Register::RSP
            && matches!(instruction.mnemonic(), M::Add | M::Sub);
        return by_constant.then_some(Remake::Backward);
    }
    if maker.class != Class::Plain
        || instruction.op_count() != 2
        || instruction.op0_kind() != OpKind::Register
        || !instruction.op0_register().is_gpr()
    {
        return None;
    }
    // rsp moves by known amounts only where it is the result.
    let gone = |register: Register| {
        !register.is_gpr()
            || register.full_register() == Register::RSP
            || regs::is_high_byte(register)
            || written.contains(register)
    };
    let result = instruction.op0_register();
    let source = match instruction.op1_kind() {
        OpKind::Register => Some(instruction.op1_register()),
        _ => None,
    };
    let mnemonic = instruction.mnemonic();
    if source == Some(result) && matches!(mnemonic, M::Xor | M::Sub) {
        return Some(Remake::Zero);
    }
    if gone(result) {
        return None;
    }
    if matches!(mnemonic, M::And | M::Or | M::Xor) {
        return Some(Remake::Result);
    }
    if forms::memory_operand(instruction).is_some() || source.is_some_and(gone) {
        return None;
    }
    match mnemonic {
        M::Cmp | M::Test => Some(Remake::Again),
        M::Add | M::Sub if result.size() >= 4 => {
            let other = |source: Register| source.full_register() != result.full_register();
            source.is_none_or(other).then_some(Remake::Backward)
        }
        _ => None,
    }
}

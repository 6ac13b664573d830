//! What is known about the user's general registers: which are surely
//! addresses outside the kernel's half, and which are small enough to be
//! an index.
//!
//! Only saves guards: the verifier finds the same facts on its own, by the
//! rules of `docs/fragment.md`, or refuses the fragment. So it is harmless to
//! know too little here, and useless to know too much.

mod stack;

use iced_x86::{ConditionCode, Mnemonic, OpKind, Register};

use crate::displace::Displaced;
use crate::flags::Flags;
use crate::forms::{self, Class};
use crate::frame::WINDOW_HIGH;
use crate::graph::{Block, End};
use crate::operand::{Access, CONSTANT_LIMIT, How};
use crate::recipe::FlagsState;
use crate::regs;
use crate::steps::Guest;

use stack::is_put_off;
pub(crate) use stack::{popped, stack_move};

/// A value in `low .. 2^high`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    low: i16,
    high: u8,
}

/// Furthest below zero that a confined register may point.
const LOWEST: i64 = -2048;
/// User addresses are below 2 to this power, with 5-level paging too.
const USER_BITS: u8 = 57;
/// Below 2 to this power a register is confined: no address there, nor one
/// within the window around it, is in the kernel's half.
const CONFINED_BITS: u8 = 63;
/// Below 2 to this power, scale included, a value may be an index. What is
/// known from accesses alone never is so little.
const INDEX_BITS: u32 = 55;
/// Displacements up to this narrow the range from below.
const NEAR: i64 = 1024;

impl Range {
    const ANY: Self = Self { low: 0, high: 64 };
    const CONFINED: Self = Self { low: 0, high: CONFINED_BITS };

    fn below(bits: u8) -> Self {
        Self { low: 0, high: bits }
    }

    fn is_confined(self) -> bool {
        self.high <= CONFINED_BITS
    }

    /// Whether `scale` times it may be added to an address.
    fn is_index(self, scale: u32) -> bool {
        self.low == 0 && u32::from(self.high) + scale.trailing_zeros() <= INDEX_BITS
    }

    fn join(self, other: Self) -> Self {
        Self { low: self.low.min(other.low), high: self.high.max(other.high) }
    }

    /// Behind a move by a constant.
    fn moved(self, by: i64) -> Self {
        let low = i64::from(self.low) + by;
        if self.high >= 64 || low < LOWEST || by >= WINDOW_HIGH {
            return Self::ANY;
        }
        let high =
            if by > 0 { (64 - by.leading_zeros() as u8).max(self.high) + 1 } else { self.high };
        Self { low: low.min(0) as i16, high }
    }

    /// Behind an access through it that did not fault. What may be an index
    /// stays as it is: a fact from an access would spoil it.
    fn accessed(self, displacement: i64) -> Self {
        if u32::from(self.high) <= INDEX_BITS {
            return self;
        }
        let low = if displacement <= NEAR { -displacement.max(0) } else { LOWEST };
        let low = low.max(i64::from(self.low)) as i16;
        Self { low, high: self.high.min(USER_BITS) }
    }
}

/// The ranges of all registers, by number, and where the user's `rsp` is.
///
/// Moves of `rsp` by constants are put off within a block: the operands over
/// it take them along, and S follows at the end. That of `rsp` is the range of
/// S, which is confined always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ranges {
    of: [Range; 16],
    /// By how much `rsp` is above S; 0 between blocks.
    ahead: i64,
}

const RSP: usize = 4;
impl Ranges {
    /// At the entry of a fragment.
    pub(crate) fn entry() -> Self {
        let mut ranges = [Range::ANY; 16];
        ranges[RSP] = Range::CONFINED;
        Self { of: ranges, ahead: 0 }
    }

    fn get(&self, register: Register) -> Range {
        self.of[regs::index(register)]
    }

    pub(crate) fn is_confined(&self, register: Register) -> bool {
        self.get(register).is_confined()
    }

    /// Whether `scale` times the register may be added to an address.
    pub(crate) fn is_index(&self, register: Register, scale: u32) -> bool {
        self.get(register).is_index(scale)
    }

    /// A guard confined `register`.
    pub(crate) fn confine(&mut self, register: Register) {
        self.of[regs::index(register)] = Range::CONFINED;
    }

    /// A guard proved `register` to be below 2 to the power of 32.
    pub(crate) fn narrow(&mut self, register: Register) {
        self.of[regs::index(register)] = Range::below(32);
    }

    /// An access through `[base+displacement]` did not fault.
    fn accessed(&mut self, base: Register, displacement: i64) {
        let range = &mut self.of[regs::index(base)];
        *range = range.accessed(displacement);
    }

    /// Nothing is known of `register` any more.
    pub(crate) fn lose(&mut self, register: Register) {
        self.of[regs::index(register)] = Range::ANY;
    }

    /// What holds if either may be the case.
    pub(crate) fn join(&self, other: &Self) -> Self {
        let mut joined = *self;
        debug_assert_eq!(self.ahead, other.ahead);
        for (mine, theirs) in joined.of.iter_mut().zip(other.of) {
            *mine = mine.join(theirs);
        }
        joined
    }

    /// A join where control goes backward. What arrives is taken for the
    /// coarsest that the verifier may make of it: that starts from other facts
    /// and may see something grow around the loop that stays as it is here.
    pub(crate) fn widen(&self, other: &Self) -> Self {
        let mut arriving = *other;
        for range in &mut arriving.of {
            if range.low < 0 {
                range.low = LOWEST as i16;
            }
            range.high = match range.high {
                0..=32 => 32,
                33..=USER_BITS => USER_BITS,
                58..=CONFINED_BITS => CONFINED_BITS,
                _ => 64,
            };
        }
        self.join(&arriving)
    }

    /// Behind `guest`, which stands inside a block with the flags `after` live
    /// behind it. Returns whether a guard parked the flags.
    pub(crate) fn step(
        &mut self,
        guest: &Guest,
        flags: &FlagsState,
        after: Flags,
        displaced: &Displaced,
    ) -> bool {
        let mut parks = false;
        let flags_live = !matches!(flags, FlagsState::Dead);
        let instruction = &guest.instruction;
        match guest.class {
            Class::Plain if forms::memory_operand(instruction).is_some() => {
                parks = self.access(guest, flags, displaced);
            }
            Class::Locked | Class::BitString | Class::String if flags_live => {
                self.lose(Register::RAX);
            }
            Class::Push => {
                if forms::memory_operand(instruction).is_some() {
                    self.access(guest, flags, displaced);
                }
                let by = i64::from(instruction.stack_pointer_increment());
                self.stacked(by, by);
                if !is_put_off(guest) {
                    self.settle();
                }
            }
            Class::Pop => {
                if forms::memory_operand(instruction).is_some()
                    || instruction.op0_register() == Register::RSP
                {
                    // By way of a guard.
                    self.lose(Register::RAX);
                    self.of[RSP] = Range::CONFINED;
                } else {
                    self.stacked(0, i64::from(instruction.stack_pointer_increment()));
                    if !is_put_off(guest) {
                        self.settle();
                    }
                }
            }
            Class::Leave => {
                if flags_live {
                    self.lose(Register::RAX);
                }
                self.of[RSP] = Range::CONFINED;
            }
            Class::WritesRsp if self.puts_off(guest, after) => {
                self.ahead += stack_move(guest).unwrap_or_default();
            }
            Class::WritesRsp => match stack_move(guest).filter(|&by| self.rsp_may_move(by)) {
                Some(by) => {
                    self.ahead += by;
                    self.settle();
                }
                None => {
                    // With a register or memory as the source the flags
                    // behind it may have to pass the guard.
                    if flags_live || instruction.try_immediate(1).is_err() {
                        self.lose(Register::RAX);
                    }
                    self.of[RSP] = Range::CONFINED;
                }
            },
            _ => {}
        }
        self.written(guest, displaced);
        parks
    }

    /// Behind the control-flow instruction of `block`; `by_rcx` if it may
    /// compare its targets by way of `rcx`.
    pub(crate) fn end(
        &mut self,
        block: &Block,
        guest: &Guest,
        flags: &FlagsState,
        displaced: &Displaced,
        by_rcx: bool,
    ) {
        let memory = forms::memory_operand(&guest.instruction).is_some();
        match &block.end {
            End::Call { .. } => {
                self.stacked(-8, -8);
                self.settle();
            }
            End::IndirectJump(_) | End::IndirectCall { .. } => {
                if memory {
                    self.access(guest, flags, displaced);
                }
                self.lose(Register::RAX);
                if matches!(block.end, End::IndirectCall { .. }) {
                    self.stacked(-8, -8);
                    self.settle();
                }
                if by_rcx {
                    self.lose(Register::RCX);
                }
            }
            End::Return(_) => {
                self.stacked(0, 8 + i64::from(popped(guest)));
                self.settle();
                if by_rcx {
                    self.lose(Register::RCX);
                }
                // Where parked flags are needed they come back by rax.
                self.lose(Register::RAX);
            }
            // Its upper half is away for a while.
            End::Branch { .. } if guest.instruction.mnemonic() == Mnemonic::Jecxz => {
                self.lose(Register::RCX);
            }
            // `jecxz` cuts rcx for a while.
            End::Branch { .. } if guest.class == Class::CounterBranch => self.lose(Register::RCX),
            _ => {}
        }
        self.written(guest, displaced);
    }

    /// The access to the explicit memory operand.
    /// Returns whether its guard parks the flags.
    fn access(&mut self, guest: &Guest, flags: &FlagsState, displaced: &Displaced) -> bool {
        let flags_live = flags.need_rax();
        let address = self.address(&guest.instruction);
        let how = How { flags_live, exact: false, wide: guest.wide };
        let Ok(access) = Access::choose(&address, self, displaced, how) else {
            return false;
        };
        if let Access::Direct { base, index, guard, narrow } = access {
            if guard {
                self.confine(base);
            }
            if narrow {
                self.narrow(index);
            }
        }
        if flags_live && access.is_guarded() {
            self.lose(Register::RAX);
        }
        // A masked access may touch nothing; nor is a conditional one counted.
        let certain = !guest.instruction.has_op_mask()
            && guest.instruction.condition_code() == ConditionCode::None;
        if let Access::Direct { base, index: Register::None, .. } = access
            && certain
        {
            self.accessed(base, address.displacement);
        }
        matches!(flags, FlagsState::ToPark) && access.is_guarded()
    }

    /// What the instruction writes apart from `rsp`.
    fn written(&mut self, guest: &Guest, displaced: &Displaced) {
        let result = self.result(guest, displaced);
        for number in guest.writes.numbers() {
            if number != RSP {
                self.of[number] = Range::ANY;
            }
        }
        if let Some((register, range)) = result {
            self.of[regs::index(register)] = range;
        }
        // A high byte may have changed places with the low one for a while.
        let instruction = &guest.instruction;
        for i in 0..instruction.op_count() {
            if instruction.op_kind(i) == OpKind::Register
                && regs::is_high_byte(instruction.op_register(i))
            {
                self.lose(instruction.op_register(i));
            }
        }
    }

    /// The range of the register that the instruction computes, if more than
    /// nothing is known.
    fn result(&self, guest: &Guest, displaced: &Displaced) -> Option<(Register, Range)> {
        use Mnemonic as M;
        let instruction = &guest.instruction;
        if !matches!(guest.class, Class::Plain | Class::Lea)
            || instruction.op_count() < 1
            || instruction.op0_kind() != OpKind::Register
        {
            return None;
        }
        let register = instruction.op0_register();
        let full = register.full_register();
        if !register.is_gpr() || full == Register::RSP || displaced.slot(full).is_some() {
            return None;
        }
        let mnemonic = instruction.mnemonic();
        let computes = mnemonic != M::Imul || instruction.op_count() > 1;
        if register.is_gpr32() && extends_zero(mnemonic) && computes {
            return Some((full, Range::below(32)));
        }
        if !register.is_gpr64() {
            return None;
        }
        let known = |from: Register| {
            let own = from == Register::RSP || (from.is_gpr() && displaced.slot(from).is_none());
            own.then(|| self.get(from))
        };
        let from_register =
            || (instruction.op1_kind() == OpKind::Register).then(|| instruction.op1_register());
        let constant = || match instruction.op_count() {
            2 => instruction.try_immediate(1).ok().map(|value| value as i64),
            _ => None,
        };
        let range = match mnemonic {
            M::Mov => match constant() {
                Some(value) if (0..1 << 32).contains(&value) => {
                    Range::below(64 - value.leading_zeros() as u8)
                }
                Some(_) => return None,
                None => known(from_register()?)?,
            },
            M::Movzx => Range::below(16),
            M::Add => self.get(full).moved(constant()?),
            M::Sub => self.get(full).moved(constant()?.checked_neg()?),
            M::Inc => self.get(full).moved(1),
            M::Dec => self.get(full).moved(-1),
            M::And => match constant()? {
                value if value >= 0 => Range::below(64 - value.leading_zeros() as u8),
                _ => return None,
            },
            M::Lea => {
                let address = self.address(instruction);
                let constant = address.displacement as u64;
                if address.is_narrow() || address.index != Register::None {
                    return None;
                } else if address.is_constant() && constant < CONSTANT_LIMIT {
                    Range::below(64 - constant.leading_zeros() as u8)
                } else {
                    known(address.base)?.moved(address.displacement)
                }
            }
            _ => return None,
        };
        Some((full, range))
    }
}

/// Whether a write of the instruction to a 32-bit register always clears the
/// upper half.
fn extends_zero(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Add
            | M::Sub
            | M::And
            | M::Or
            | M::Xor
            | M::Lea
            | M::Shl
            | M::Shr
            | M::Sar
            | M::Imul
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
    )
}

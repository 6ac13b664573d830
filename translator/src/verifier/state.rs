//! What is known about the machine before an instruction.

use super::value::Value;
use crate::fragment::ExitKind;

/// The kinds of exit that the frame's `exit_id` may stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exits(u16);

impl Exits {
    /// Not written in this fragment.
    pub const UNSET: Self = Self(1);

    /// Written with the id of an exit of this kind.
    pub const fn of(kind: ExitKind) -> Self {
        Self(1 << kind as u16)
    }

    pub fn may_be(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub fn join(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Bit of [`State::written`] for the frame's `target`; lower bits are the
/// spill slots.
pub(super) const TARGET_BIT: usize = 7;
pub(super) const RSP: usize = 4;
const R11: usize = 11;

/// Knowledge at one point of the code, true on every path that leads there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    /// The [`Value`] of each register by number, field by field; that of
    /// `rsp` has no meaning.
    low: [i16; 16],
    high: [u8; 16],
    soft: u16,
    /// Which frame slots were written.
    pub written: u8,
    /// `user_rsp` is still what the runner checked. Nothing else loaded from
    /// the frame is confined: a load may speculatively bypass the store.
    pub rsp_checked: bool,
    pub exits: Exits,
}

impl State {
    /// At the entry of a fragment.
    pub fn entry() -> Self {
        let mut state = Self {
            low: [0; 16],
            high: [Value::ANY.high; 16],
            soft: 0,
            written: 0,
            rsp_checked: true,
            exits: Exits::UNSET,
        };
        state.set(R11, Value::KERNEL);
        state
    }

    /// What the register of that number may hold.
    pub fn get(&self, register: usize) -> Value {
        let soft = self.soft >> register & 1 == 1;
        Value { low: self.low[register], high: self.high[register], soft }
    }

    pub fn set(&mut self, register: usize, value: Value) {
        self.low[register] = value.low;
        self.high[register] = value.high;
        self.soft = self.soft & !(1 << register) | u16::from(value.soft) << register;
    }

    /// Whether a register may hold kernel data.
    pub fn leaks(&self) -> bool {
        (0..16).any(|register| self.get(register).is_kernel())
    }

    /// What holds if either state may be the case.
    pub fn join(&self, other: &Self) -> Self {
        Self {
            low: std::array::from_fn(|i| self.low[i].min(other.low[i])),
            high: std::array::from_fn(|i| self.high[i].max(other.high[i])),
            soft: self.soft | other.soft,
            written: self.written & other.written,
            rsp_checked: self.rsp_checked && other.rsp_checked,
            exits: self.exits.join(other.exits),
        }
    }

    /// Above both, such that a loop gets to its end in few rounds.
    pub fn widen(&self, grown: &Self) -> Self {
        let mut wide = *grown;
        for register in 0..16 {
            wide.set(register, self.get(register).widen(grown.get(register)));
        }
        wide
    }
}

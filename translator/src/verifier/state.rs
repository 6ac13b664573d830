//! What is known about the machine before an instruction.

use crate::fragment::ExitKind;

/// What a general register may hold, from the most to the least trusted;
/// joining two values takes the less trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    /// Bit 63 is clear, by `btr`, an immediate or the runner's check: never
    /// by a branch, which speculation would ignore.
    Confined,
    /// Anything the user could have computed.
    User,
    /// Maybe kernel data: the entry address, or what a poll loaded.
    Kernel,
}

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
    /// By register number; that of `rsp` has no meaning.
    pub registers: [Value; 16],
    /// Which frame slots were written.
    pub written: u8,
    /// `user_rsp` is still what the runner checked. Nothing else loaded from
    /// the frame is confined: a load may speculatively bypass the store.
    pub rsp_checked: bool,
    pub exits: Exits,
    /// The instruction before accessed `[register + displacement]` without a
    /// fault, so that sum is a user address.
    pub accessed: Option<(usize, i64)>,
}

impl State {
    /// At the entry of a fragment.
    pub fn entry() -> Self {
        let mut registers = [Value::User; 16];
        registers[R11] = Value::Kernel;
        registers[RSP] = Value::Kernel;
        Self { registers, written: 0, rsp_checked: true, exits: Exits::UNSET, accessed: None }
    }

    /// What holds if either state may be the case.
    pub fn join(&self, other: &Self) -> Self {
        let mut registers = self.registers;
        for (mine, theirs) in registers.iter_mut().zip(other.registers) {
            *mine = (*mine).max(theirs);
        }
        Self {
            registers,
            written: self.written & other.written,
            rsp_checked: self.rsp_checked && other.rsp_checked,
            exits: self.exits.join(other.exits),
            accessed: if self.accessed == other.accessed { self.accessed } else { None },
        }
    }
}

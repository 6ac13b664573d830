//! What is known about the machine before an instruction.

use super::value::Value;
use crate::fragment::ExitKind;

/// On which paths a point is reached: where they come from, and for exits of
/// which kinds they have written the frame's `exit_id` since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Paths(u32);

/// Where a path comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The entry of the fragment.
    Entry,
    /// A fault.
    Fault,
    /// A conditional jump of a poll.
    Poll,
}

impl Paths {
    const ORIGINS: [Origin; 3] = [Origin::Entry, Origin::Fault, Origin::Poll];

    /// One path, on which no id was written.
    pub const fn from(origin: Origin) -> Self {
        Self(1 << (8 * origin as u32))
    }

    /// One path, on which an id of this kind was written.
    pub const fn with(origin: Origin, kind: ExitKind) -> Self {
        Self(Self::from(origin).0 << kind as u32)
    }

    /// The same paths, behind writing an id of this kind.
    pub fn exit(self, kind: ExitKind) -> Self {
        let with = |origin| if self.come_from(origin) { Self::with(origin, kind).0 } else { 0 };
        Self(Self::ORIGINS.into_iter().map(with).fold(0, |paths, path| paths | path))
    }

    /// Whether some come from `origin`.
    pub fn come_from(self, origin: Origin) -> bool {
        self.0 & 0xff << (8 * origin as u32) != 0
    }

    /// Whether those from `origin` have written ids of this kind only.
    pub fn exit_only(self, origin: Origin, kind: ExitKind) -> bool {
        self.0 & 0xff << (8 * origin as u32) & !Self::with(origin, kind).0 == 0
    }

    /// Whether on some an id of this kind was written last; no id if none.
    pub fn may_exit(self, kind: Option<ExitKind>) -> bool {
        self.0 & 0x01_0101 << kind.map_or(0, |kind| kind as u32) != 0
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
    /// Registers that may hold kernel data: the entry address, or what a poll
    /// loaded.
    pub kernel: u16,
    /// Which frame slots were written.
    pub written: u8,
    /// `user_rsp` is still what the runner checked. Nothing else loaded from
    /// the frame is confined: a load may speculatively bypass the store.
    pub rsp_checked: bool,
    pub paths: Paths,
}

impl State {
    /// At the entry of a fragment.
    pub fn entry() -> Self {
        Self {
            low: [0; 16],
            high: [Value::ANY.high; 16],
            soft: 0,
            kernel: 1 << R11,
            written: 0,
            rsp_checked: true,
            paths: Paths::from(Origin::Entry),
        }
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

    /// What holds if either state may be the case.
    pub fn join(&self, other: &Self) -> Self {
        Self {
            low: std::array::from_fn(|i| self.low[i].min(other.low[i])),
            high: std::array::from_fn(|i| self.high[i].max(other.high[i])),
            soft: self.soft | other.soft,
            kernel: self.kernel | other.kernel,
            written: self.written & other.written,
            rsp_checked: self.rsp_checked && other.rsp_checked,
            paths: self.paths.join(other.paths),
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

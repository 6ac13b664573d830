//! What is known of a general register: a range of numbers.
//!
//! A register holds, modulo 2^64, an integer of `[low, 2^high)`. `low` is
//! never above 0 and never below [`LOWEST`]. What a range may rest on decides
//! what it is good for, because code runs ahead of faults and of branches:
//!
//! * A *hard* range follows from data: a `btr`, a constant, the width of a
//!   result. It holds whatever the CPU speculates.
//! * A *soft* range also rests on an access through the register that did not
//!   fault. Behind an access that is still to fault it may be wrong. Each such
//!   access in flight raises `low` by at most 2048 too much, and only moves by
//!   constants are let through, so a base is wrong by less than 1 MiB
//!   downwards: it stays in the hole at the top of the address space. Upwards
//!   a few steps of 2^32 beyond 2^63 stay non-canonical. Anything that could
//!   multiply the error (scaling, sums of registers, masks) wants hard ranges.
//!
//! A branch proves nothing: it can be mispredicted.

/// The lowest lower bound of a range; what may be lower is unknown.
pub(super) const LOWEST: i64 = -2048;
/// A base is below 2^63: with a window and an index it does not come round to
/// the kernel half.
const BASE_BITS: u8 = 63;
/// A scaled index is below 2^55. The sum with a base and a window then has bit
/// 63 clear, or bits 62 and 56 clear: non-canonical even on a CPU that ignores
/// some of the upper bits (LAM, UAI).
const INDEX_BITS: u32 = 55;
/// A user address and its distance from a base are below 2^57.
const ADDRESS_BITS: u8 = 57;
/// `high` of a value without an upper bound.
const UNBOUNDED: u8 = 64;
/// Where upper bounds go that grow around a loop.
const WIDENED: [u8; 3] = [32, ADDRESS_BITS, BASE_BITS];
/// Where lower bounds go that fall around a loop, before [`LOWEST`].
const WIDENED_LOW: i16 = -256;

/// What a general register may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Value {
    /// Lower bound. Without meaning if there is no upper one.
    pub low: i16,
    /// Binary logarithm of the upper bound, or [`UNBOUNDED`].
    pub high: u8,
    /// The range rests on an access that did not fault.
    pub soft: bool,
}

impl Value {
    /// Anything.
    pub const ANY: Self = Self { low: 0, high: UNBOUNDED, soft: false };
    /// Bit 63 is clear.
    pub const CONFINED: Self = Self::bits(BASE_BITS as u32);

    /// A number of that many bits.
    pub const fn bits(bits: u32) -> Self {
        assert!(bits <= UNBOUNDED as u32);
        Self { low: 0, high: bits as u8, soft: false }
    }

    /// The constant `value`, if it fits into 63 bits.
    pub const fn constant(value: u64) -> Self {
        Self::bits(u64::BITS - value.leading_zeros())
    }

    /// The range `[low, 2^high)`, or [`Self::ANY`] where that says too little.
    fn range(low: i64, high: u32, soft: bool) -> Self {
        if low < LOWEST || high >= u32::from(UNBOUNDED) {
            return Self::ANY;
        }
        Self { low: low.min(0) as i16, high: high as u8, soft }
    }

    /// Whether `[self + window]` reaches no kernel memory.
    pub fn is_base(self) -> bool {
        self.high <= BASE_BITS
    }

    /// Whether `[base + self * scale + window]` reaches none, given a base.
    pub fn is_index(self, scale: u32) -> bool {
        self.is_natural() && u32::from(self.high) + scale.ilog2() <= INDEX_BITS
    }

    /// Whether this is, on any path, a number below `2^self.high`.
    pub fn is_natural(self) -> bool {
        self.high < UNBOUNDED && self.low == 0 && !self.soft
    }

    /// What holds if either may be the case.
    pub fn join(self, other: Self) -> Self {
        Self {
            low: self.low.min(other.low),
            high: self.high.max(other.high),
            soft: self.soft | other.soft,
        }
    }

    /// A range around both that loops reach after few rounds.
    pub fn widen(self, grown: Self) -> Self {
        let mut wide = grown;
        if grown.low < self.low {
            wide.low = if grown.low >= WIDENED_LOW { WIDENED_LOW } else { LOWEST as i16 };
        }
        if grown.high > self.high && grown.high < UNBOUNDED {
            let next = WIDENED.iter().find(|bound| grown.high <= **bound);
            wide.high = *next.expect("63 is the highest bound");
        }
        wide
    }

    /// Behind an access to `[self + displacement]` that did not fault. The sum
    /// was a user address, not modulo anything: base and window are too small
    /// to come round.
    pub fn accessed(self, displacement: i64) -> Self {
        let low = i64::from(self.low).max(-displacement.max(0)) as i16;
        let high = self.high.min(ADDRESS_BITS);
        let soft = self.soft || low > self.low || high < self.high;
        Self { low, high, soft }
    }

    /// `self + constant`. Soft ranges stay: this adds no error to theirs.
    pub fn moved(self, constant: i64) -> Self {
        if self.high >= UNBOUNDED || i32::try_from(constant).is_err() {
            return Self::ANY;
        }
        let low = i64::from(self.low) + constant;
        let high = u32::from(self.high);
        let high = if constant > 0 { high.max(bits(constant)) + 1 } else { high };
        Self::range(low, high, self.soft)
    }

    /// `self + other`. Two soft ranges could add their errors up, and a
    /// register added to itself doubles its own.
    pub fn plus(self, other: Self) -> Self {
        if self.soft || other.soft {
            return Self::ANY;
        }
        let high = u32::from(self.high.max(other.high)) + 1;
        Self::range(i64::from(self.low) + i64::from(other.low), high, false)
    }

    /// `self << count`.
    pub fn shifted_left(self, count: u32) -> Self {
        if self.soft || self.high >= UNBOUNDED {
            return Self::ANY;
        }
        Self::range(i64::from(self.low) << count, u32::from(self.high) + count, false)
    }

    /// `self >> count`, unsigned, of a 64-bit number.
    pub fn shifted_right(self, count: u32) -> Self {
        if count == 0 {
            return self;
        }
        let high = if self.is_natural() { self.high } else { UNBOUNDED };
        Self::bits(u32::from(high).saturating_sub(count))
    }

    /// `self * constant`.
    pub fn times(self, constant: i64) -> Self {
        if !self.is_natural() || constant < 0 {
            return Self::ANY;
        }
        Self::range(0, u32::from(self.high) + bits(constant), false)
    }

    /// `self & other`: no more than either, if it is a natural number.
    pub fn masked(self, other: Self) -> Self {
        match (self.is_natural(), other.is_natural()) {
            (true, true) => Self::bits(u32::from(self.high.min(other.high))),
            (true, false) => self,
            (false, true) => other,
            (false, false) => Self::ANY,
        }
    }

    /// `self & constant`, the constant sign-extended. Aligning (a constant of
    /// -2048 or more) rounds down to a multiple of 2048 at most, to which the
    /// errors of soft ranges are aligned, too.
    pub fn masked_by(self, constant: i64) -> Self {
        if let Ok(constant) = u64::try_from(constant) {
            return self.masked(Self::constant(constant));
        }
        if self.is_natural() || self.high >= UNBOUNDED || constant < LOWEST {
            return self.masked(Self::ANY);
        }
        let low = if self.low == 0 { 0 } else { LOWEST };
        Self::range(low, u32::from(self.high), self.soft)
    }

    /// With the lower 8 or 16 bits replaced by anything.
    pub fn patched(self) -> Self {
        if self.is_natural() { Self::bits(u32::from(self.high.max(16))) } else { Self::ANY }
    }

    /// The lower 32 bits, zero-extended.
    pub fn truncated(self) -> Self {
        if self.is_natural() && self.high <= 32 { self } else { Self::bits(32) }
    }
}

/// How many bits a positive number takes.
fn bits(number: i64) -> u32 {
    u64::BITS - number.leading_zeros()
}

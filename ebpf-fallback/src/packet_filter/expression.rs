//! What a register or a word of memory holds after a packet was received: a
//! function of the packet alone, everything else being constant.
//!
//! All values are 64 bits wide; what an instruction computes with fewer bits
//! is extended by zeros.

use std::rc::Rc;

/// An arithmetic operation on 64 bits that wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Add,
    Subtract,
    Multiply,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
    ShiftRightSigned,
}

impl Operation {
    /// Its result. Shifts are by less than 64.
    pub(super) fn apply(self, left: u64, right: u64) -> u64 {
        let count = right as u32 & 63;
        match self {
            Self::Add => left.wrapping_add(right),
            Self::Subtract => left.wrapping_sub(right),
            Self::Multiply => left.wrapping_mul(right),
            Self::And => left & right,
            Self::Or => left | right,
            Self::Xor => left ^ right,
            Self::ShiftLeft => left << count,
            Self::ShiftRight => left >> count,
            Self::ShiftRightSigned => (left.cast_signed() >> count).cast_unsigned(),
        }
    }
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    Constant(u64),
    /// Bytes received, of which there are at most `limit`.
    Length {
        limit: u64,
    },
    /// So many bytes of the packet, the first one lowest, extended by zeros.
    Packet {
        offset: Rc<Expression>,
        bytes: u8,
    },
    Binary {
        operation: Operation,
        left: Rc<Expression>,
        right: Rc<Expression>,
    },
    /// The lowest 2, 4 or 8 bytes in reverse order, extended by zeros.
    Swapped {
        bytes: u8,
        value: Rc<Expression>,
    },
}

/// All ones in the lowest `bits`.
pub(super) fn mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

impl Expression {
    pub(super) const ZERO: Self = Self::Constant(0);

    /// Its value if it does not depend on the packet.
    pub(super) fn constant(&self) -> Option<u64> {
        match self {
            Self::Constant(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn packet(offset: Self, bytes: u8) -> Self {
        Self::Packet { offset: Rc::new(offset), bytes }
    }

    pub(super) fn binary(operation: Operation, left: Self, right: Self) -> Self {
        use Operation::{Add, And, Or, ShiftLeft, ShiftRight, ShiftRightSigned, Subtract, Xor};

        match (operation, &left, &right) {
            (_, Self::Constant(a), Self::Constant(b)) => {
                return Self::Constant(operation.apply(*a, *b));
            }
            (
                Add | Subtract | Or | Xor | ShiftLeft | ShiftRight | ShiftRightSigned,
                _,
                Self::Constant(0),
            ) => return left,
            (Add | Or | Xor, Self::Constant(0), _) => return right,
            (And, _, Self::Constant(bits)) if mask(left.width()) & !bits == 0 => return left,
            (And, Self::Constant(bits), _) if mask(right.width()) & !bits == 0 => return right,
            (And, _, Self::Constant(bits)) if mask(left.width()) & bits == 0 => return Self::ZERO,
            (Xor | Subtract, a, b) if a == b => return Self::ZERO,
            (And | Or, a, b) if a == b => return left,
            // Addresses: the constant part comes to the outside.
            (Subtract, _, Self::Constant(b)) => {
                return Self::binary(Add, left, Self::Constant(b.wrapping_neg()));
            }
            (Operation::Multiply, _, Self::Constant(1)) => return left,
            (Add, ..) => return Self::sum(left, right),
            _ => {}
        }
        Self::Binary { operation, left: Rc::new(left), right: Rc::new(right) }
    }

    /// The constant part of a sum is always its last operand.
    fn sum(left: Self, right: Self) -> Self {
        let join = |left, right| Self::Binary {
            operation: Operation::Add,
            left: Rc::new(left),
            right: Rc::new(right),
        };
        let ((left, a), (right, b)) = (left.split_constant(), right.split_constant());
        let varying = match (left, right) {
            (Self::ZERO, varying) | (varying, Self::ZERO) => varying,
            (left, right) => join(left, right),
        };
        match (varying, a.wrapping_add(b)) {
            (Self::ZERO, constant) => Self::Constant(constant),
            (varying, 0) => varying,
            (varying, constant) => join(varying, Self::Constant(constant)),
        }
    }

    /// The parts of a sum that do and do not depend on the packet.
    pub(super) fn split_constant(self) -> (Self, u64) {
        match self {
            Self::Constant(value) => (Self::ZERO, value),
            Self::Binary { operation: Operation::Add, left, right }
                if right.constant().is_some() =>
            {
                (left.as_ref().clone(), right.constant().unwrap_or(0))
            }
            other => (other, 0),
        }
    }

    /// The lowest `bits`, extended by zeros.
    pub(super) fn truncated(self, bits: u32) -> Self {
        Self::binary(Operation::And, self, Self::Constant(mask(bits)))
    }

    /// The lowest `bits`, extended by the highest of them.
    pub(super) fn sign_extended(self, bits: u32) -> Self {
        if bits >= 64 || self.width() < bits {
            return self;
        }
        let shift = Self::Constant(u64::from(64 - bits));
        let up = Self::binary(Operation::ShiftLeft, self, shift.clone());
        Self::binary(Operation::ShiftRightSigned, up, shift)
    }

    pub(super) fn swapped(self, bytes: u8) -> Self {
        match self {
            Self::Constant(value) => {
                Self::Constant(value.swap_bytes() >> (64 - 8 * u32::from(bytes)))
            }
            value => Self::Swapped { bytes, value: Rc::new(value) },
        }
    }

    /// How many bits it has at most.
    pub(super) fn width(&self) -> u32 {
        match self {
            Self::Constant(value) => 64 - value.leading_zeros(),
            Self::Length { limit } => 64 - limit.leading_zeros(),
            Self::Packet { bytes, .. } | Self::Swapped { bytes, .. } => 8 * u32::from(*bytes),
            Self::Binary { operation, left, right } => {
                let (a, b) = (left.width(), right.width());
                let count = right.constant().map_or(64, |count| count as u32 & 63);
                match operation {
                    Operation::And => a.min(b),
                    Operation::Or | Operation::Xor => a.max(b),
                    Operation::Add => (a.max(b) + 1).min(64),
                    Operation::Multiply => (a + b).min(64),
                    Operation::ShiftLeft => (a + count).min(64),
                    Operation::ShiftRight if right.constant().is_some() => a.saturating_sub(count),
                    Operation::ShiftRight => a,
                    Operation::Subtract | Operation::ShiftRightSigned => 64,
                }
            }
        }
    }

    /// How many operations it is made of.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Constant(_) | Self::Length { .. } => 1,
            Self::Packet { offset, .. } => 1 + offset.size(),
            Self::Swapped { value, .. } => 1 + value.size(),
            Self::Binary { left, right, .. } => 1 + left.size() + right.size(),
        }
    }

    /// Its value for `packet`, of which so much was received; `None` if it
    /// depends on bytes that were not.
    pub(super) fn evaluate(&self, packet: &[u8]) -> Option<u64> {
        Some(match self {
            Self::Constant(value) => *value,
            Self::Length { .. } => packet.len() as u64,
            Self::Packet { offset, bytes } => {
                let start = usize::try_from(offset.evaluate(packet)?).ok()?;
                let end = start.checked_add(usize::from(*bytes))?;
                let mut value = [0; 8];
                value[..usize::from(*bytes)].copy_from_slice(packet.get(start..end)?);
                u64::from_le_bytes(value)
            }
            Self::Swapped { bytes, value } => {
                value.evaluate(packet)?.swap_bytes() >> (64 - 8 * u32::from(*bytes))
            }
            Self::Binary { operation, left, right } => {
                operation.apply(left.evaluate(packet)?, right.evaluate(packet)?)
            }
        })
    }
}

/// How two values compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    Equal,
    Below,
    BelowSigned,
}

/// A question about the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) relation: Relation,
    pub(super) left: Expression,
    pub(super) right: Expression,
    /// It is the opposite that is asked.
    pub(super) negated: bool,
}

impl Condition {
    pub(super) fn new(relation: Relation, left: Expression, right: Expression) -> Self {
        // Below 2^63 both orders are the same.
        let relation = match relation {
            Relation::BelowSigned if left.width() < 64 && right.width() < 64 => Relation::Below,
            other => other,
        };
        Self { relation, left, right, negated: false }
    }

    pub(super) fn negate(mut self) -> Self {
        self.negated = !self.negated;
        self
    }

    /// The answer if it is the same for all packets.
    pub(super) fn known(&self) -> Option<bool> {
        let (a, b) = (&self.left, &self.right);
        let answer = match (self.relation, a.constant(), b.constant()) {
            (relation, Some(a), Some(b)) => Some(relation.holds(a, b)),
            (Relation::Equal, Some(a), None) if a > mask(b.width()) => Some(false),
            (Relation::Equal, None, Some(b)) if b > mask(a.width()) => Some(false),
            (Relation::Equal, ..) if a == b => Some(true),
            (Relation::Below, Some(a), None) if a >= mask(b.width()) => Some(false),
            (Relation::Below, None, Some(b)) if b > mask(a.width()) => Some(true),
            (Relation::Below, None, Some(0)) => Some(false),
            _ => None,
        };
        answer.map(|answer| answer != self.negated)
    }

    pub(super) fn evaluate(&self, packet: &[u8]) -> Option<bool> {
        let answer = self.relation.holds(self.left.evaluate(packet)?, self.right.evaluate(packet)?);
        Some(answer != self.negated)
    }
}

impl Relation {
    fn holds(self, left: u64, right: u64) -> bool {
        match self {
            Self::Equal => left == right,
            Self::Below => left < right,
            Self::BelowSigned => left.cast_signed() < right.cast_signed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte(offset: u64) -> Expression {
        Expression::packet(Expression::Constant(offset), 1)
    }

    fn add(a: Expression, b: Expression) -> Expression {
        Expression::binary(Operation::Add, a, b)
    }

    #[test]
    fn the_constant_part_of_a_sum_is_found() {
        let sum = add(
            add(Expression::Constant(0x1000), byte(3)),
            add(byte(4), Expression::Constant(0x20)),
        );
        let (rest, constant) = sum.split_constant();
        assert_eq!(constant, 0x1020);
        assert_eq!(rest.evaluate(&[0, 0, 0, 7, 8]), Some(15));
        let back =
            add(add(byte(0), Expression::Constant(5)), Expression::Constant(5u64.wrapping_neg()));
        assert_eq!(back, byte(0));
    }

    #[test]
    fn bytes_that_were_not_received_have_no_value() {
        let word = Expression::packet(Expression::Constant(1), 2);
        assert_eq!(word.evaluate(&[9, 1, 2]), Some(0x201));
        assert_eq!(word.clone().swapped(2).evaluate(&[9, 1, 2]), Some(0x102));
        assert_eq!(word.evaluate(&[9, 1]), None);
        let far = Expression::packet(Expression::Constant(u64::MAX), 2);
        assert_eq!(far.evaluate(&[9, 1]), None);
    }

    #[test]
    fn errors_are_told_from_lengths() {
        let length = Expression::Length { limit: 2048 };
        let errors = Expression::Constant(-4096i64 as u64);
        assert_eq!(Condition::new(Relation::Below, errors, length.clone()).known(), Some(false));
        let negative = Condition::new(
            Relation::BelowSigned,
            length.clone().truncated(32).sign_extended(32),
            Expression::ZERO,
        );
        assert_eq!(negative.known(), Some(false));
        let short = Condition::new(Relation::Below, length, Expression::Constant(42));
        assert_eq!(short.known(), None);
        assert_eq!(short.evaluate(&[0; 41]), Some(true));
        assert_eq!(short.negate().evaluate(&[0; 41]), Some(false));
    }

    #[test]
    fn signs_are_extended_from_the_width_that_they_have() {
        assert_eq!(byte(0).sign_extended(8).evaluate(&[0x80]), Some(-128i64 as u64));
        assert_eq!(byte(0).sign_extended(16), byte(0));
    }
}

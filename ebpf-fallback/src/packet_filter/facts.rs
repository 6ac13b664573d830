//! What is known of the packet on one way, from the questions asked before.

use super::expression::{Condition, Expression, Relation, mask};

/// The answers so far, as conditions that hold.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts(Vec<Condition>);

impl Facts {
    pub(super) fn add(&mut self, condition: Condition) {
        self.0.push(condition);
    }

    /// Whether `bytes` at `offset` were certainly received, so that nobody
    /// sees what an earlier packet left in the buffer.
    pub(super) fn are_received(&self, offset: &Expression, bytes: u8) -> bool {
        let (varying, constant) = offset.clone().split_constant();
        // A sum that wraps is not bounded by its parts.
        if varying.width() > 32 || constant > mask(32) {
            return false;
        }
        let needed = i128::from(constant) + i128::from(bytes);
        let most = i128::from(mask(varying.width()));
        self.bounds().any(|bound| bound.varying == varying && bound.constant >= needed)
            || self.least_length() >= most + needed
    }

    /// The answer to a question about the length, if it follows from those
    /// before.
    pub(super) fn decide(&self, condition: &Condition) -> Option<bool> {
        let Condition { relation, left, right, negated } = condition;
        let (own, other, relation) = match (length_and(left), length_and(right)) {
            (Some(own), None) => (own, right, *relation),
            (None, Some(own)) if *relation == Relation::Equal => (own, left, *relation),
            _ => return None,
        };
        let other = i128::from(other.constant()?) - i128::from(own);
        let least = self.least_length();
        let impossible = match relation {
            Relation::Equal => other < least,
            Relation::Below => other <= least,
            Relation::BelowSigned => false,
        };
        impossible.then_some(*negated)
    }

    fn bounds(&self) -> impl Iterator<Item = Bound> {
        self.0.iter().filter_map(Bound::of)
    }

    /// How many bytes were received at least.
    fn least_length(&self) -> i128 {
        let mut least = self.bounds().map(|bound| bound.constant).fold(0, i128::max);
        // It may have been compared with one number after the other.
        while self.0.iter().any(|condition| excludes(condition, least)) {
            least += 1;
        }
        least
    }
}

/// `bytes received >= varying + constant`, where `varying` is not negative.
struct Bound {
    varying: Expression,
    constant: i128,
}

impl Bound {
    fn of(condition: &Condition) -> Option<Self> {
        let Condition { relation, left, right, negated } = condition;
        let (more, less, by) = match (relation, negated) {
            (Relation::Below, false) => (right, left, 1),
            (Relation::Below, true) => (left, right, 0),
            (Relation::Equal, false) if length_and(left).is_some() => (left, right, 0),
            (Relation::Equal, false) => (right, left, 0),
            _ => return None,
        };
        let own = length_and(more)?;
        let (varying, other) = less.clone().split_constant();
        // Addresses and lengths, whose sums do not wrap.
        if varying.width() > 32 || other >= 1 << 62 {
            return None;
        }
        Some(Self { varying, constant: i128::from(other) + by - i128::from(own) })
    }
}

/// The constant added to the number of bytes received, if `value` is such a
/// sum, and one that does not wrap.
fn length_and(value: &Expression) -> Option<u64> {
    let (varying, constant) = value.clone().split_constant();
    (matches!(varying, Expression::Length { .. }) && constant < 1 << 62).then_some(constant)
}

/// Whether the number of bytes received is not `length` by this condition.
fn excludes(condition: &Condition, length: i128) -> bool {
    let Condition { relation: Relation::Equal, left, right, negated: true } = condition else {
        return false;
    };
    let is = |a: &Expression, b: &Expression| {
        let constants = length_and(a).zip(b.constant());
        constants.is_some_and(|(own, b)| i128::from(b) - i128::from(own) == length)
    };
    is(left, right) || is(right, left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet_filter::expression::Operation;

    const LENGTH: Expression = Expression::Length { limit: 2048 };

    fn plus(value: Expression, constant: u64) -> Expression {
        Expression::binary(Operation::Add, value, Expression::Constant(constant))
    }

    #[test]
    fn constant_offsets_need_a_length() {
        let mut facts = Facts::default();
        let received =
            |facts: &Facts, end: u64| facts.are_received(&Expression::Constant(end - 2), 2);
        assert!(!received(&facts, 2));
        facts.add(Condition::new(Relation::Below, LENGTH, Expression::Constant(42)).negate());
        assert!(received(&facts, 42));
        assert!(!received(&facts, 43));
        facts.add(Condition::new(Relation::Below, Expression::Constant(60), LENGTH));
        assert!(received(&facts, 61));
        assert!(!received(&facts, 62));
        let end = plus(LENGTH, 0x5000);
        let is_short = Condition::new(Relation::Below, LENGTH, Expression::Constant(61));
        assert_eq!(facts.decide(&is_short), Some(false));
        assert_eq!(facts.decide(&is_short.negate()), Some(true));
        let shorter = Condition::new(Relation::Below, LENGTH, Expression::Constant(62));
        assert_eq!(facts.decide(&shorter), None);
        for length in [61, 62, 64] {
            let at = Expression::Constant(0x5000 + length);
            facts.add(Condition::new(Relation::Equal, at, end.clone()).negate());
        }
        assert!(received(&facts, 63));
        assert!(!received(&facts, 64));
    }

    #[test]
    fn computed_offsets_need_theirs() {
        let header = Expression::packet(Expression::Constant(14), 1).truncated(4);
        let header = Expression::binary(Operation::ShiftLeft, header, Expression::Constant(2));
        let mut facts = Facts::default();
        facts.add(Condition::new(Relation::Below, LENGTH, Expression::Constant(42)).negate());
        let port = plus(header.clone(), 16);
        assert!(!facts.are_received(&port, 2));
        let (end, packet) = (plus(LENGTH, 0x5000), plus(header, 0x5000 + 14 + 8));
        let mut exact = facts.clone();
        exact.add(Condition::new(Relation::Below, end.clone(), packet.clone()).negate());
        assert!(exact.are_received(&port, 2));
        assert!(!exact.are_received(&plus(port.clone(), 5), 2));
        // The other answer proves nothing.
        facts.add(Condition::new(Relation::Below, end, packet));
        assert!(!facts.are_received(&port, 2));
    }

    #[test]
    fn differences_that_wrap_prove_nothing() {
        let mut facts = Facts::default();
        let rest = plus(LENGTH, 14u64.wrapping_neg());
        facts.add(Condition::new(Relation::Below, Expression::Constant(27), rest));
        assert!(!facts.are_received(&Expression::Constant(0), 1));
    }
}

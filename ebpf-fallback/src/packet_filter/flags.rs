//! The arithmetic flags, as what they were computed from.

use iced_x86::ConditionCode;

use super::expression::{Condition, Expression, Operation, Relation, mask};

/// What the flags are the result of. Operands are extended by zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Flags {
    /// Those that the call left alone, or which are not followed.
    Unknown,
    /// `left - right` with so many bits.
    Difference { left: Expression, right: Expression, bits: u32 },
    /// `left + right` with so many bits.
    Sum { left: Expression, right: Expression, bits: u32 },
    /// A result that neither carries nor overflows.
    Logical { result: Expression, bits: u32 },
    /// A result of which only zero and sign are known.
    Result { result: Expression, bits: u32 },
    /// Only the carry is known: whether this is 1.
    Carry(Expression),
}

const CARRY: u64 = 1 << 0;
const PARITY: u64 = 1 << 2;
const ADJUST: u64 = 1 << 4;
const ZERO: u64 = 1 << 6;
const SIGN: u64 = 1 << 7;
const OVERFLOW: u64 = 1 << 11;
/// All arithmetic flags of the flags register.
pub(super) const ARITHMETIC: u64 = CARRY | PARITY | ADJUST | ZERO | SIGN | OVERFLOW;

impl Flags {
    /// The question that a conditional instruction asks; `None` if it asks
    /// what is not known.
    pub(super) fn condition(&self, code: ConditionCode) -> Option<Condition> {
        use ConditionCode::{a, ae, b, be, e, g, ge, l, le, ne, ns, s};

        let negated = |code: ConditionCode| self.condition(code).map(Condition::negate);
        match code {
            ne => return negated(e),
            ae => return negated(b),
            a => return negated(be),
            ge => return negated(l),
            g => return negated(le),
            ns => return negated(s),
            _ => {}
        }
        let new = Condition::new;
        Some(match (self, code) {
            (Self::Difference { left, right, .. }, e) => {
                new(Relation::Equal, left.clone(), right.clone())
            }
            (Self::Difference { left, right, .. }, b) => {
                new(Relation::Below, left.clone(), right.clone())
            }
            (Self::Difference { left, right, .. }, be) => {
                new(Relation::Below, right.clone(), left.clone()).negate()
            }
            (Self::Difference { left, right, bits }, l) => {
                let [left, right] = [left, right].map(|v| v.clone().sign_extended(*bits));
                new(Relation::BelowSigned, left, right)
            }
            (Self::Difference { left, right, bits }, le) => {
                let [left, right] = [left, right].map(|v| v.clone().sign_extended(*bits));
                new(Relation::BelowSigned, right, left).negate()
            }
            (Self::Logical { .. }, b) => new(Relation::Below, Expression::ZERO, Expression::ZERO),
            (Self::Logical { result, bits }, l) => Self::negative(result.clone(), *bits),
            (Self::Logical { result, bits }, le) => {
                let result = result.clone().sign_extended(*bits);
                new(Relation::BelowSigned, Expression::ZERO, result).negate()
            }
            (Self::Logical { result, .. }, e | be) | (Self::Result { result, .. }, e) => {
                new(Relation::Equal, result.clone(), Expression::ZERO)
            }
            (Self::Sum { left, .. }, b) => new(Relation::Below, self.result()?, left.clone()),
            (Self::Sum { .. }, e) => new(Relation::Equal, self.result()?, Expression::ZERO),
            (
                Self::Sum { bits, .. }
                | Self::Difference { bits, .. }
                | Self::Logical { bits, .. }
                | Self::Result { bits, .. },
                s,
            ) => Self::negative(self.result()?, *bits),
            (Self::Carry(bit), b) => new(Relation::Equal, bit.clone(), Expression::Constant(1)),
            _ => return None,
        })
    }

    fn negative(result: Expression, bits: u32) -> Condition {
        Condition::new(Relation::BelowSigned, result.sign_extended(bits), Expression::ZERO)
    }

    fn result(&self) -> Option<Expression> {
        let compute = |operation, left: &Expression, right: &Expression, bits| {
            Expression::binary(operation, left.clone(), right.clone()).truncated(bits)
        };
        match self {
            Self::Difference { left, right, bits } => {
                Some(compute(Operation::Subtract, left, right, *bits))
            }
            Self::Sum { left, right, bits } => Some(compute(Operation::Add, left, right, *bits)),
            Self::Logical { result, .. } | Self::Result { result, .. } => Some(result.clone()),
            Self::Unknown | Self::Carry(_) => None,
        }
    }

    /// The arithmetic flags as bits of the flags register, if they do not
    /// depend on the packet.
    pub(super) fn constant(&self) -> Option<u64> {
        let bit = |flag, is: bool| if is { flag } else { 0 };
        let (left, right, bits, adds) = match self {
            Self::Difference { left, right, bits } => {
                (left.constant()?, right.constant()?, *bits, false)
            }
            Self::Sum { left, right, bits } => (left.constant()?, right.constant()?, *bits, true),
            // Processors clear the adjust flag here, which is not promised:
            // one that did not would only differ from what is compared.
            Self::Logical { result, bits } => (result.constant()?, 0, *bits, false),
            Self::Unknown | Self::Result { .. } | Self::Carry(_) => return None,
        };
        let result = if adds { left.wrapping_add(right) } else { left.wrapping_sub(right) };
        let result = result & mask(bits);
        let top = 1 << (bits - 1);
        let carry = if adds { result < left } else { left < right };
        let other = if adds { right } else { !right };
        let overflow = (left ^ result) & (other ^ result) & top != 0;
        Some(
            bit(CARRY, carry)
                | bit(PARITY, (result as u8).count_ones().is_multiple_of(2))
                | bit(ADJUST, (left ^ right ^ result) & 0x10 != 0)
                | bit(ZERO, result == 0)
                | bit(SIGN, result & top != 0)
                | bit(OVERFLOW, overflow),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::arch::asm;

    use super::*;

    /// Operands at the edges of 8-bit and 32-bit numbers.
    const EDGES: [u32; 9] = [0, 1, 0x0f, 0x10, 0x7f, 0x80, 0xff, 0x7fff_ffff, 0x8000_0000];

    fn on_the_processor(operation: &str, left: u32, right: u32) -> u64 {
        let flags: u64;
        // SAFETY: these instructions change only the registers and flags named;
        // the stack is used as any code does.
        unsafe {
            match operation {
                "cmp" => {
                    asm!("cmp {a:e}, {b:e}", "pushfq", "pop {f}", a = in(reg) left, b = in(reg) right, f = out(reg) flags)
                }
                "add" => {
                    asm!("add {a:e}, {b:e}", "pushfq", "pop {f}", a = inout(reg) left => _, b = in(reg) right, f = out(reg) flags)
                }
                _ => {
                    asm!("test {a:e}, {b:e}", "pushfq", "pop {f}", a = in(reg) left, b = in(reg) right, f = out(reg) flags)
                }
            }
        }
        flags & ARITHMETIC
    }

    #[test]
    fn flags_are_those_of_the_processor() {
        let constant = |value: u32| Expression::Constant(u64::from(value));
        for (left, right) in EDGES.iter().flat_map(|a| EDGES.map(|b| (*a, b))) {
            let (a, b) = (constant(left), constant(right));
            let flags = [
                ("cmp", Flags::Difference { left: a.clone(), right: b.clone(), bits: 32 }),
                ("add", Flags::Sum { left: a, right: b, bits: 32 }),
                ("test", Flags::Logical { result: constant(left & right), bits: 32 }),
            ];
            for (operation, flags) in flags {
                let expected = on_the_processor(operation, left, right);
                assert_eq!(flags.constant(), Some(expected), "{operation} {left:#x} {right:#x}");
                let holds = |code| flags.condition(code).and_then(|condition| condition.known());
                for (code, expected) in [
                    (ConditionCode::e, expected & ZERO != 0),
                    (ConditionCode::ne, expected & ZERO == 0),
                    (ConditionCode::b, expected & CARRY != 0),
                    (ConditionCode::s, expected & SIGN != 0),
                    (ConditionCode::ns, expected & SIGN == 0),
                ] {
                    assert_eq!(
                        holds(code),
                        Some(expected),
                        "{operation} {code:?} {left:#x} {right:#x}"
                    );
                }
                if operation != "add" {
                    let less = (expected & SIGN != 0) != (expected & OVERFLOW != 0);
                    let equal = expected & ZERO != 0;
                    let below = expected & CARRY != 0;
                    for (code, expected) in [
                        (ConditionCode::l, less),
                        (ConditionCode::ge, !less),
                        (ConditionCode::le, less || equal),
                        (ConditionCode::g, !less && !equal),
                        (ConditionCode::a, !below && !equal),
                        (ConditionCode::be, below || equal),
                    ] {
                        assert_eq!(
                            holds(code),
                            Some(expected),
                            "{operation} {code:?} {left:#x} {right:#x}"
                        );
                    }
                }
            }
        }
    }
}

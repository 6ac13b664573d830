//! Names and widths of the general registers.

use iced_x86::Register;

use Register as R;

const R64: [Register; 16] = [
    R::RAX,
    R::RCX,
    R::RDX,
    R::RBX,
    R::RSP,
    R::RBP,
    R::RSI,
    R::RDI,
    R::R8,
    R::R9,
    R::R10,
    R::R11,
    R::R12,
    R::R13,
    R::R14,
    R::R15,
];
const R32: [Register; 16] = [
    R::EAX,
    R::ECX,
    R::EDX,
    R::EBX,
    R::ESP,
    R::EBP,
    R::ESI,
    R::EDI,
    R::R8D,
    R::R9D,
    R::R10D,
    R::R11D,
    R::R12D,
    R::R13D,
    R::R14D,
    R::R15D,
];
const R16: [Register; 16] = [
    R::AX,
    R::CX,
    R::DX,
    R::BX,
    R::SP,
    R::BP,
    R::SI,
    R::DI,
    R::R8W,
    R::R9W,
    R::R10W,
    R::R11W,
    R::R12W,
    R::R13W,
    R::R14W,
    R::R15W,
];
const R8: [Register; 16] = [
    R::AL,
    R::CL,
    R::DL,
    R::BL,
    R::SPL,
    R::BPL,
    R::SIL,
    R::DIL,
    R::R8L,
    R::R9L,
    R::R10L,
    R::R11L,
    R::R12L,
    R::R13L,
    R::R14L,
    R::R15L,
];

/// Position of a general register in the architecture's order, 0 for `rax`
/// to 15 for `r15`, whatever part of it is named.
pub(crate) fn index(register: Register) -> usize {
    debug_assert!(register.is_gpr());
    register.full_register().number()
}

/// `ah`, `ch`, `dh` or `bh`.
pub(crate) fn is_high_byte(register: Register) -> bool {
    matches!(register, R::AH | R::CH | R::DH | R::BH)
}

/// The part of `full` that `part` is of its own register. `part` is not a
/// high byte.
pub(crate) fn same_part(full: Register, part: Register) -> Register {
    debug_assert!(!is_high_byte(part));
    let i = index(full);
    match part.size() {
        1 => R8[i],
        2 => R16[i],
        4 => R32[i],
        _ => R64[i],
    }
}

/// The low 32 bits of a general register.
pub(crate) fn low32(full: Register) -> Register {
    R32[index(full)]
}

/// The low 16 bits of a general register.
pub(crate) fn low16(full: Register) -> Register {
    R16[index(full)]
}

/// The low 8 bits of a general register.
pub(crate) fn low8(full: Register) -> Register {
    R8[index(full)]
}

/// Whether naming `register` takes a REX prefix, which rules out high bytes
/// in the same instruction.
pub(crate) fn needs_rex(register: Register) -> bool {
    register.is_gpr64()
        || (register.is_gpr() && index(register) >= 8)
        || matches!(register, R::SPL | R::BPL | R::SIL | R::DIL)
}

/// A set of general registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct GprSet(u16);

impl GprSet {
    pub(crate) const EMPTY: Self = Self(0);

    pub(crate) fn insert(&mut self, register: Register) {
        self.0 |= 1 << index(register);
    }

    pub(crate) fn contains(self, register: Register) -> bool {
        self.0 >> index(register) & 1 == 1
    }

    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Its registers, by their full names.
    pub(crate) fn registers(self) -> impl Iterator<Item = Register> {
        self.numbers().map(|number| R64[number])
    }

    /// The numbers of its registers, see [`index`].
    pub(crate) fn numbers(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let number = rest.trailing_zeros() as usize;
            rest &= rest.wrapping_sub(1);
            (number < 16).then_some(number)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_their_width() {
        assert_eq!(same_part(R::R9, R::AL), R::R9L);
        assert_eq!(same_part(R::R9, R::BX), R::R9W);
        assert_eq!(same_part(R::RBP, R::R8D), R::EBP);
        assert_eq!(same_part(R::RSI, R::RAX), R::RSI);
        assert_eq!(low32(R::R15), R::R15D);
        assert_eq!(low8(R::RSP), R::SPL);
    }

    #[test]
    fn rex_rules() {
        assert!(needs_rex(R::SIL) && needs_rex(R::R8L) && needs_rex(R::RAX));
        assert!(!needs_rex(R::AL) && !needs_rex(R::EBX) && !needs_rex(R::AH));
    }
}

//! Which arithmetic flags an instruction needs and which it surely replaces.

use iced_x86::{Instruction, Mnemonic, OpKind, RflagsBits};

/// A set of the six arithmetic flags, in iced's `RflagsBits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Flags(u32);

impl Flags {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const ALL: Self = Self(
        RflagsBits::OF
            | RflagsBits::SF
            | RflagsBits::ZF
            | RflagsBits::AF
            | RflagsBits::CF
            | RflagsBits::PF,
    );

    fn of_bits(bits: u32) -> Self {
        Self(bits & Self::ALL.0)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The bits of `ax` that hold these flags behind `lahf; seto al`.
    pub(crate) fn in_ax(self) -> u32 {
        // iced numbers the flags as it likes.
        let bits = [
            (RflagsBits::SF, 15),
            (RflagsBits::ZF, 14),
            (RflagsBits::AF, 12),
            (RflagsBits::PF, 10),
            (RflagsBits::CF, 8),
            (RflagsBits::OF, 0),
        ];
        bits.into_iter()
            .filter(|(flag, _)| self.0 & flag != 0)
            .fold(0, |bits, (_, bit)| bits | 1 << bit)
    }

    /// The flags live before an instruction with these effects, from those
    /// live behind it.
    pub(crate) fn before(self, effects: Effects) -> Self {
        self.without(effects.replaces).union(effects.reads)
    }
}

/// What one instruction does to the arithmetic flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Effects {
    /// Flags whose value it depends on.
    pub reads: Flags,
    /// Flags that never survive it. A flag the manuals call undefined counts
    /// only where all CPUs are known to replace it: elsewhere the old value
    /// may shine through.
    pub replaces: Flags,
    /// Flags it may change at all.
    pub touches: Flags,
}

impl Effects {
    /// The effects of these and then those of `next`.
    pub(crate) fn then(self, next: Self) -> Self {
        Self {
            reads: self.reads.union(next.reads.without(self.replaces)),
            replaces: self.replaces.union(next.replaces),
            touches: self.touches.union(next.touches),
        }
    }
}

/// The effects of `instruction`.
pub(crate) fn effects(instruction: &Instruction) -> Effects {
    use Mnemonic as M;
    let written =
        instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set();
    let undefined = instruction.rflags_undefined();
    let replaces = match instruction.mnemonic() {
        M::And | M::Or | M::Xor | M::Test => written | undefined,
        M::Shl | M::Sal | M::Shr | M::Sar if shifts_by_constant(instruction) => written | undefined,
        M::Shld | M::Shrd | M::Rol | M::Ror if shifts_by_constant(instruction) => written,
        mnemonic if counts(mnemonic) => 0,
        _ if instruction.has_rep_prefix() || instruction.has_repne_prefix() => 0,
        _ => written,
    };
    Effects {
        reads: Flags::of_bits(instruction.rflags_read()),
        replaces: Flags::of_bits(replaces),
        touches: Flags::of_bits(written | undefined),
    }
}

/// Whether the instruction shifts by a count, which its effects depend on.
pub(crate) fn counts(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd | M::Rol | M::Ror | M::Rcl | M::Rcr
    )
}

/// Shifts with a count of zero keep every flag.
fn shifts_by_constant(instruction: &Instruction) -> bool {
    let last = instruction.op_count() - 1;
    if instruction.op_kind(last) != OpKind::Immediate8 {
        return false;
    }
    let mask = if instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().is_gpr64()
        || instruction.op0_kind() == OpKind::Memory && instruction.memory_size().size() == 8
    {
        0x3f
    } else {
        0x1f
    };
    instruction.immediate8() & mask != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn of(bytes: &[u8]) -> Effects {
        effects(&Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode())
    }

    #[test]
    fn arithmetic_replaces_everything() {
        assert_eq!(of(&[0x48, 0x01, 0xd8]).replaces, Flags::ALL); // add rax,rbx
        assert_eq!(of(&[0x85, 0xc0]).replaces, Flags::ALL); // test eax,eax
    }

    #[test]
    fn inc_keeps_carry() {
        let carry = Flags::of_bits(RflagsBits::CF);
        assert_eq!(of(&[0xff, 0xc0]).replaces, Flags::ALL.without(carry));
    }

    #[test]
    fn shifts_replace_only_when_the_count_is_known() {
        assert_eq!(of(&[0xd3, 0xe0]).replaces, Flags::NONE); // shl eax,cl
        assert_eq!(of(&[0xc1, 0xe0, 0x20]).replaces, Flags::NONE); // shl eax,32
        assert_eq!(of(&[0x48, 0xc1, 0xe0, 0x20]).replaces, Flags::ALL); // shl rax,32
        assert_eq!(of(&[0xd1, 0xe0]).replaces, Flags::ALL); // shl eax,1
    }

    #[test]
    fn undefined_flags_may_shine_through() {
        let bsf = of(&[0x0f, 0xbc, 0xc1]);
        assert_eq!(bsf.replaces, Flags::of_bits(RflagsBits::ZF));
        assert_eq!(bsf.touches, Flags::ALL);
    }

    #[test]
    fn adc_reads_carry() {
        assert_eq!(of(&[0x11, 0xc8]).reads, Flags::of_bits(RflagsBits::CF));
    }
}

//! How a user's memory operand is made accessible.

use iced_x86::{Instruction, Register};

use crate::displace::Displaced;
use crate::fragment::Unsupported;
use crate::frame::{WINDOW_HIGH, WINDOW_LOW};
use crate::ranges::Ranges;

/// End of the user half that every kernel and paging mode grants; constant
/// addresses beyond it are refused.
pub(crate) const CONSTANT_LIMIT: u64 = 0x7fff_ffff_f000;

/// How the user's address is made up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub base: Register,
    pub index: Register,
    pub scale: u32,
    pub displacement: i64,
    pub fs: bool,
}

impl Address {
    /// That of the instruction's explicit memory operand.
    pub(crate) fn of(instruction: &Instruction) -> Self {
        let mut address = Self {
            base: instruction.memory_base(),
            index: instruction.memory_index(),
            scale: instruction.memory_index_scale(),
            displacement: instruction.memory_displacement64() as i64,
            fs: instruction.segment_prefix() == Register::FS,
        };
        if instruction.is_ip_rel_memory_operand() {
            address.base = Register::None;
        }
        if address.base == Register::None && address.scale == 1 {
            address.base = address.index;
            address.index = Register::None;
        }
        address
    }

    pub(crate) fn is_constant(&self) -> bool {
        self.base == Register::None && self.index == Register::None
    }

    /// 32-bit addressing: the sum is cut to its low half.
    pub(crate) fn is_narrow(&self) -> bool {
        self.base.is_gpr32() || self.index.is_gpr32()
    }

    /// A full-width base register and a displacement that any confined
    /// register may carry.
    fn has_window(&self) -> bool {
        !self.fs
            && self.base.is_gpr64()
            && (self.index == Register::None || self.index.is_gpr64())
            && (WINDOW_LOW..WINDOW_HIGH).contains(&self.displacement)
    }
}

/// What is known about an access besides its address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    /// A guard has to save the flags, by way of `rax`.
    pub flags_live: bool,
    /// The operand must be `[T]`.
    pub exact: bool,
    /// The index was seen not to fit into 32 bits.
    pub wide: bool,
}

/// The way to an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// A constant address, loaded into T.
    Constant(u64),
    /// `fs:[displacement]`.
    Thread(i64),
    /// The user's own operand over `base` and `index`, which live in their
    /// registers. With `guard`, `base` is to be confined in place first; with
    /// `narrow`, `index` is to be proven below 2 to the power of 32.
    Direct { base: Register, index: Register, guard: bool, narrow: bool },
    /// The base alone, copied to T and confined there.
    CopiedBase,
    /// The whole address, computed in T and confined there.
    Computed,
}

impl Access {
    /// Chooses the way to `address`.
    pub(crate) fn choose(
        address: &Address,
        ranges: &Ranges,
        displaced: &Displaced,
        how: How,
    ) -> Result<Self, Unsupported> {
        if address.is_constant() && address.fs && !how.exact {
            return match i32::try_from(address.displacement) {
                Ok(_) => Ok(Self::Thread(address.displacement)),
                Err(_) => Err(Unsupported::Address),
            };
        }
        if address.is_constant() && !address.fs {
            let constant = address.displacement as u64;
            return if constant < CONSTANT_LIMIT {
                Ok(Self::Constant(constant))
            } else {
                Err(Unsupported::Address)
            };
        }
        if how.exact || !address.has_window() {
            return Ok(Self::Computed);
        }
        let own = |register| register == Register::RSP || displaced.slot(register).is_none();
        // Flags that go by way of rax cost what is known of it.
        let free = |register| !(how.flags_live && register == Register::RAX);
        let direct = |base: Register, index: Register| {
            let guard = !ranges.is_confined(base);
            let scale = if index == address.index { address.scale } else { 1 };
            let narrow = index != Register::None && !ranges.is_index(index, scale);
            let possible = own(base)
                && (index == Register::None || own(index))
                && (!(guard || narrow) || free(base) && free(index))
                && (!narrow || !how.wide && index != base && index != Register::RSP);
            possible.then_some(Self::Direct { base, index, guard, narrow })
        };
        let (base, index) = (address.base, address.index);
        if index == Register::None {
            return Ok(direct(base, index).unwrap_or(Self::CopiedBase));
        }
        let first = direct(base, index);
        // Without a scale either part may be the base.
        let second = if address.scale == 1 { direct(index, base) } else { None };
        let cost = |access: &Self| match access {
            Self::Direct { guard, narrow, .. } => 2 * i32::from(*narrow) + i32::from(*guard),
            _ => i32::MAX,
        };
        Ok(first.into_iter().chain(second).min_by_key(cost).unwrap_or(Self::Computed))
    }

    /// Whether a guard with its flags stands before the access.
    pub(crate) fn is_guarded(self) -> bool {
        match self {
            Self::Constant(_) | Self::Thread(_) => false,
            Self::Direct { guard, narrow, .. } => guard || narrow,
            Self::CopiedBase | Self::Computed => true,
        }
    }
}

//! Which general registers an instruction reads and writes, implied ones
//! included, as sets by register number.

use super::form::Form;
use super::state::RSP;
use super::{Rule, Violation, number, transfer};
use iced_x86::{Instruction, OpAccess, Register};

/// What an instruction does to the general registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// Read as a value or as part of an address.
    pub reads: u16,
    /// Overwritten with all 64 bits.
    pub writes: u16,
    /// Overwritten in the lower 8 or 16 bits at most.
    pub patches: u16,
    /// Overwritten in any other way, or perhaps not at all.
    pub perhaps: u16,
}

/// What it does to one of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Access {
    /// It is a general register at all.
    general: bool,
    reads: bool,
    write: Write,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Write {
    #[default]
    None,
    Whole,
    Low,
    Perhaps,
}

impl Access {
    /// Of a general register, by what iced says. It may keep its value even
    /// so if `keeps`.
    pub fn new(register: Register, access: OpAccess, keeps: bool) -> Self {
        let (reads, writes, always) = kinds(access);
        let write = match writes {
            false => Write::None,
            true if register.is_gpr8() || register.is_gpr16() => Write::Low,
            true if always && !keeps => Write::Whole,
            true => Write::Perhaps,
        };
        Self { general: true, reads, write }
    }

    /// Whether all 64 bits are, in any case.
    pub fn overwrites(self) -> bool {
        self.write == Write::Whole
    }
}

impl Effects {
    /// Those of `instruction`, which has `form`.
    pub fn of(instruction: &Instruction, form: &Form) -> Result<Self, Violation> {
        let mut effects = form.implied;
        for (operand, access) in form.registers.iter().enumerate() {
            if access.general {
                let register = number(instruction.op_register(operand as u32));
                if register == RSP {
                    return Err((Rule::StackPointer, "rsp as an operand"));
                }
                effects.add(register, *access);
            }
        }
        if form.clears && transfer::same(instruction) {
            effects.reads = 0;
        }
        if form.memory {
            for part in [instruction.memory_base(), instruction.memory_index()] {
                effects.reads |= u16::from(part.is_gpr()) << (number(part) & 15);
            }
        }
        Ok(effects)
    }

    /// Adds an access to the register of that number.
    pub fn add(&mut self, register: usize, access: Access) {
        self.reads |= u16::from(access.reads) << register;
        let set = match access.write {
            Write::None => return,
            Write::Whole => &mut self.writes,
            Write::Low => &mut self.patches,
            Write::Perhaps => &mut self.perhaps,
        };
        *set |= 1 << register;
    }

    /// All registers that may change.
    pub fn changed(self) -> u16 {
        self.writes | self.patches | self.perhaps
    }

    /// All registers that it has to do with.
    pub fn all(self) -> u16 {
        self.reads | self.changed()
    }
}

/// (reads, writes, writes in any case)
pub(super) fn kinds(access: OpAccess) -> (bool, bool, bool) {
    match access {
        OpAccess::None | OpAccess::NoMemAccess => (false, false, false),
        OpAccess::Read | OpAccess::CondRead => (true, false, false),
        OpAccess::Write => (false, true, true),
        OpAccess::CondWrite => (false, true, false),
        OpAccess::ReadWrite => (true, true, true),
        OpAccess::ReadCondWrite => (true, true, false),
    }
}

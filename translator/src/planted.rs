//! Bugs to order, for tests that must find them. Only with the feature
//! `planted-bugs`, which no program is built with.
//!
//! They are planted into the finished stream of instructions, so they do not
//! depend on how it came about.

use iced_x86::{Code, Instruction, Register};

use crate::assemble::Branch;
use crate::emit::{Emitter, Item, Operation, Section};
use crate::frame;

/// A mistake that an emitter could make, once in every fragment that offers
/// an opportunity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlantedBug {
    /// A pointer's `btr` and its `jc` are missing: the access reaches kernel
    /// memory.
    DropMask,
    /// A flag-free `lea r,[r+d]` is an `add r,d`.
    ClobberFlags,
    /// A register's new value is not written back to its slot.
    SkipWriteBack,
    /// A guard exit leaves the bit cleared that the guard cleared.
    SkipUndo,
    /// A displaced register does not get the user's value back at exits.
    SkipRestore,
}

impl PlantedBug {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::DropMask,
        Self::ClobberFlags,
        Self::SkipWriteBack,
        Self::SkipUndo,
        Self::SkipRestore,
    ];

    /// Where in the emitter's stream it can be planted.
    fn section(self) -> Section {
        match self {
            Self::DropMask | Self::ClobberFlags | Self::SkipWriteBack => Section::Blocks,
            Self::SkipUndo => Section::Undo,
            Self::SkipRestore => Section::Restore,
        }
    }

    fn fits(self, items: &[Item], at: usize) -> bool {
        let Operation::Plain(i) = &items[at].operation else { return false };
        let slot = frame::SPILL..=frame::spill(frame::SPILL_SLOTS - 1);
        let in_slot =
            i.memory_base() == Register::RSP && slot.contains(&(i.memory_displacement64() as i32));
        match self {
            Self::DropMask => {
                let guarded = matches!(
                    items.get(at + 1).map(|next| &next.operation),
                    Some(Operation::Branch(Branch::If(2), _))
                );
                i.code() == Code::Btr_rm64_imm8 && i.immediate8() == 63 && guarded
            }
            Self::ClobberFlags => {
                i.code() == Code::Lea_r64_m
                    && i.memory_base() == i.op0_register()
                    && i.memory_index() == Register::None
            }
            Self::SkipWriteBack => i.code() == Code::Mov_rm64_r64 && in_slot,
            Self::SkipUndo => i.code() == Code::Bts_rm64_imm8,
            Self::SkipRestore => i.code() == Code::Mov_r64_rm64 && in_slot,
        }
    }

    /// Plants it in the middle one of the places that fit, if there are any.
    pub(crate) fn plant(self, emitter: &mut Emitter) {
        let items = &mut emitter.sections[self.section() as usize];
        let places: Vec<usize> = (0..items.len()).filter(|&at| self.fits(items, at)).collect();
        let Some(&at) = places.get(places.len() / 2) else { return };
        let nop = || Operation::Plain(Instruction::with(Code::Nopd));
        match (self, &mut items[at].operation) {
            (Self::ClobberFlags, Operation::Plain(i)) => {
                let distance = i.memory_displacement64() as i32;
                *i = Instruction::with2(Code::Add_rm64_imm32, i.op0_register(), distance)
                    .expect("add r,imm");
            }
            (Self::DropMask, operation) => {
                *operation = nop();
                items[at + 1].operation = nop();
            }
            (_, operation) => *operation = nop(),
        }
    }
}

//! `bt`, `bts`, `btr` and `btc` with the bit offset in a register: a string of
//! bits in memory, any 2^63 of them on either side of the operand.

use iced_x86::{Code, Instruction, Mnemonic, Register};

use super::{Live, Lowerer, Protect};
use crate::emit::{frame as frame_field, indexed};
use crate::exits::Saved;
use crate::fragment::Unsupported;
use crate::regs;
use crate::steps::Guest;

impl Lowerer<'_, '_> {
    /// Loads the word that the offset selects, tests the bit in a register,
    /// and stores the word again if it changed. That is two accesses for one,
    /// as the CPU does it: without `lock` none of these is atomic.
    pub(super) fn bit_string(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        let instruction = &guest.instruction;
        let ip = guest.ip();
        let bug = |_| Unsupported::Form;
        let (s, t, u) = (self.displaced.s, self.displaced.t, self.displaced.u);
        let around = !live.before.is_empty();
        let (flags, protect) =
            if around { (Saved::InSlot, Protect::InSlot) } else { (Saved::No, Protect::Dead) };
        if around {
            self.emit.flags_to_slot();
        }
        self.effective_to_t(instruction)?;
        if instruction.segment_prefix() == Register::FS {
            self.emit.push(Instruction::with1(Code::Rdfsbase_r64, u).map_err(bug)?);
            self.emit.lea(t, indexed(t, u, 1, 0));
        }
        let offset = instruction.op1_register();
        let word = Word::of(offset);
        self.fetch(u, offset);
        if let Some(extend) = word.extend {
            let part = regs::same_part(u, offset);
            self.emit.push(Instruction::with2(extend, u, part).map_err(bug)?);
        }
        let log2 = word.bytes.ilog2();
        self.emit.push(Instruction::with2(Code::Sar_rm64_imm8, u, 3 + log2).map_err(bug)?);
        self.emit.lea(t, indexed(t, u, word.bytes, 0));
        self.confine(t, false, ip, protect);

        let at_t = || crate::emit::memory(t, 0);
        let landing = self.fault(ip, flags);
        let value = regs::same_part(u, offset);
        self.emit.faulting(Instruction::with2(word.load, value, at_t()).map_err(bug)?, landing);
        if around {
            self.emit.flags_from_slot();
        }
        let stores = instruction.mnemonic() != Mnemonic::Bt;
        let number = if offset.full_register() == Register::RSP {
            s
        } else if let Some(slot) = self.displaced.slot(offset) {
            if stores {
                // T is the address still.
                return Err(Unsupported::Form);
            }
            self.emit.load(t, frame_field(slot));
            t
        } else {
            offset.full_register()
        };
        let number = regs::same_part(number, offset);
        let test = word.test(instruction.mnemonic())?;
        self.emit.push(Instruction::with2(test, value, number).map_err(bug)?);
        if stores {
            let store = Instruction::with2(word.store, at_t(), value).map_err(bug)?;
            self.emit.faulting(store, landing);
        }
        Ok(())
    }
}

/// Instructions on words of one width.
struct Word {
    bytes: u32,
    /// Makes a signed 64-bit number of that part of a register.
    extend: Option<Code>,
    load: Code,
    store: Code,
    /// `bt`, `bts`, `btr`, `btc`.
    tests: [Code; 4],
}

impl Word {
    /// Those on words as wide as `register`.
    fn of(register: Register) -> Self {
        match register.size() {
            2 => Self {
                bytes: 2,
                extend: Some(Code::Movsx_r64_rm16),
                load: Code::Mov_r16_rm16,
                store: Code::Mov_rm16_r16,
                tests: [
                    Code::Bt_rm16_r16,
                    Code::Bts_rm16_r16,
                    Code::Btr_rm16_r16,
                    Code::Btc_rm16_r16,
                ],
            },
            4 => Self {
                bytes: 4,
                extend: Some(Code::Movsxd_r64_rm32),
                load: Code::Mov_r32_rm32,
                store: Code::Mov_rm32_r32,
                tests: [
                    Code::Bt_rm32_r32,
                    Code::Bts_rm32_r32,
                    Code::Btr_rm32_r32,
                    Code::Btc_rm32_r32,
                ],
            },
            _ => Self {
                bytes: 8,
                extend: None,
                load: Code::Mov_r64_rm64,
                store: Code::Mov_rm64_r64,
                tests: [
                    Code::Bt_rm64_r64,
                    Code::Bts_rm64_r64,
                    Code::Btr_rm64_r64,
                    Code::Btc_rm64_r64,
                ],
            },
        }
    }

    fn test(&self, mnemonic: Mnemonic) -> Result<Code, Unsupported> {
        let [bt, bts, btr, btc] = self.tests;
        match mnemonic {
            Mnemonic::Bt => Ok(bt),
            Mnemonic::Bts => Ok(bts),
            Mnemonic::Btr => Ok(btr),
            Mnemonic::Btc => Ok(btc),
            _ => Err(Unsupported::Form),
        }
    }
}

//! Memory operands: effective addresses and their confinement.

use iced_x86::{Code, Instruction, MemoryOperand, Register};

use super::{Lowerer, Protect};
use crate::emit::{frame as frame_field, indexed, memory};
use crate::fragment::Unsupported;
use crate::operand::{Access, Address, How};
use crate::regs;

/// An operand ready to be accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub base: Register,
    /// None, or a register whose value is narrow.
    pub index: Register,
    pub scale: u32,
    pub displacement: i64,
    /// FS for `fs:[disp32]`, which has no base.
    pub segment: Register,
}

impl Place {
    pub(super) fn operand(self) -> MemoryOperand {
        MemoryOperand::new(
            self.base,
            self.index,
            self.scale,
            self.displacement,
            if self.base == Register::None { 8 } else { u32::from(self.displacement != 0) },
            false,
            self.segment,
        )
    }

    /// Puts this place into `instruction` instead of its memory operand.
    pub(super) fn apply(self, instruction: &mut Instruction) {
        instruction.set_memory_base(self.base);
        instruction.set_memory_index(self.index);
        instruction.set_memory_index_scale(self.scale);
        instruction.set_memory_displacement64(self.displacement as u64);
        instruction.set_memory_displ_size(if self.base == Register::None {
            8
        } else {
            u32::from(self.displacement != 0)
        });
        instruction.set_segment_prefix(self.segment);
    }
}

impl Lowerer<'_, '_> {
    /// Makes the memory operand accessible. Emits guards but no access; may
    /// use both scratch registers and leaves U free. `exact` asks for `[T]`.
    pub(super) fn place(
        &mut self,
        instruction: &Instruction,
        protect: Protect,
        exact: bool,
    ) -> Result<Place, Unsupported> {
        let address = self.ranges.address(instruction);
        let t = self.displaced.t;
        let at_t = |displacement| Place {
            base: t,
            index: Register::None,
            scale: 1,
            displacement,
            segment: Register::None,
        };
        let ip = instruction.ip();
        let how = How {
            flags_live: protect == Protect::Live && self.flags.need_rax(),
            exact,
            wide: self.steps.is_wide(ip),
        };
        match Access::choose(&address, &self.ranges, &self.displaced, how)? {
            Access::Constant(constant) => {
                self.emit.immediate(t, constant);
                Ok(at_t(0))
            }
            Access::Thread(displacement) => {
                Ok(Place { base: Register::None, segment: Register::FS, ..at_t(displacement) })
            }
            Access::Direct { base, index, guard, narrow } => {
                if guard || narrow {
                    let flags = self.protect(protect);
                    if guard {
                        self.confine_between(base, true, ip, flags);
                    }
                    if narrow {
                        self.narrow_between(index, ip, flags);
                    }
                    self.unprotect(protect);
                }
                let hardware = |register| {
                    if register == Register::RSP { self.displaced.s } else { register }
                };
                // By now `rsp` has its hardware register.
                let scaled = index == address.index;
                let (base, index) = (hardware(base), hardware(index));
                let scale = if scaled { address.scale } else { 1 };
                Ok(Place { base, index, scale, ..at_t(address.displacement) })
            }
            Access::CopiedBase => {
                self.fetch(t, address.base);
                self.confine(t, false, ip, protect);
                Ok(at_t(address.displacement))
            }
            Access::Computed => {
                self.effective(&address)?;
                if address.fs {
                    let u = self.displaced.u;
                    let base = Instruction::with1(Code::Rdfsbase_r64, u);
                    self.emit.push(base.map_err(|_| Unsupported::Form)?);
                    self.emit.lea(t, indexed(t, u, 1, 0));
                }
                self.confine(t, false, ip, protect);
                Ok(at_t(0))
            }
        }
    }

    /// The operand's offset into T, with U as a helper. Flags are kept.
    fn effective(&mut self, address: &Address) -> Result<(), Unsupported> {
        let t = self.displaced.t;
        if address.is_constant() {
            self.emit.immediate(t, address.displacement as u64);
            return Ok(());
        }
        let operand = self.address_operand(address)?;
        if address.is_narrow() {
            self.emit.push(
                Instruction::with2(Code::Lea_r32_m, regs::low32(t), operand)
                    .map_err(|_| Unsupported::Form)?,
            );
        } else {
            self.emit.lea(t, operand);
        }
        Ok(())
    }

    /// The user's address over registers that hold its parts; fetches
    /// displaced ones into T (base) and U (index). Always 64-bit addressing:
    /// the low half of the sum is what 32-bit addressing would yield.
    fn address_operand(&mut self, address: &Address) -> Result<MemoryOperand, Unsupported> {
        if i32::try_from(address.displacement).is_err()
            && u32::try_from(address.displacement).is_err()
        {
            return Err(Unsupported::Address);
        }
        // 32-bit addresses wrap, so the low half is all that matters.
        let displacement = i64::from(address.displacement as i32);
        let base = self.address_part(address.base, self.displaced.t);
        let index = if address.index == address.base {
            base
        } else {
            self.address_part(address.index, self.displaced.u)
        };
        Ok(if index == Register::None {
            memory(base, displacement)
        } else if base == Register::None {
            let size = 8;
            MemoryOperand::new(base, index, address.scale, displacement, size, false, base)
        } else {
            indexed(base, index, address.scale, displacement)
        })
    }

    fn address_part(&mut self, register: Register, scratch: Register) -> Register {
        let full = register.full_register();
        if register == Register::None {
            register
        } else if full == Register::RSP {
            self.displaced.s
        } else if let Some(slot) = self.displaced.slot(full) {
            self.emit.load(scratch, frame_field(slot));
            scratch
        } else {
            full
        }
    }

    /// The address of a `lea` that writes `rsp`, into T.
    pub(super) fn effective_to_t(&mut self, instruction: &Instruction) -> Result<(), Unsupported> {
        let mut address = Address::of(instruction);
        address.fs = false;
        self.effective(&address)
    }

    /// `lea` to 16 bits of a register, by way of T. Keeps the rest of it.
    fn lea_word(&mut self, user: Register, address: &Address) -> Result<(), Unsupported> {
        let (t, u) = (self.displaced.t, self.displaced.u);
        self.effective(address)?;
        let slot = self.displaced.slot(user);
        let to = if slot.is_some() { regs::low16(u) } else { user };
        if let Some(slot) = slot {
            self.emit.load(u, frame_field(slot));
        }
        let copy = Instruction::with2(Code::Mov_r16_rm16, to, regs::low16(t));
        self.emit.push(copy.map_err(|_| Unsupported::Form)?);
        if let Some(slot) = slot {
            self.emit.store(frame_field(slot), u);
        }
        Ok(())
    }

    /// `lea` to any register but `rsp`.
    pub(super) fn lea(&mut self, guest: &crate::steps::Guest) -> Result<(), Unsupported> {
        let instruction = &guest.instruction;
        let address = self.ranges.address(instruction);
        let user = instruction.op0_register();
        let slot = self.displaced.slot(user);
        let to = if slot.is_some() { regs::same_part(self.displaced.t, user) } else { user };
        if user.size() == 2 && (slot.is_some() || address.is_constant()) {
            return self.lea_word(user, &address);
        }
        if address.is_constant() {
            let value = address.displacement as u64;
            if user.size() == 8 {
                self.emit.immediate(to, value);
            } else {
                self.emit.push(
                    Instruction::with2(Code::Mov_r32_imm32, to, value as u32)
                        .map_err(|_| Unsupported::Form)?,
                );
            }
        } else {
            let operand = self.address_operand(&address)?;
            let (code, to) = if address.is_narrow() && to.is_gpr64() {
                (Code::Lea_r32_m, regs::low32(to))
            } else {
                (instruction.code(), to)
            };
            self.emit.push(Instruction::with2(code, to, operand).map_err(|_| Unsupported::Form)?);
        }
        if let Some(slot) = slot {
            self.emit.store(frame_field(slot), self.displaced.t);
        }
        Ok(())
    }
}

//! Memory operands: effective addresses and their confinement.

use iced_x86::{Code, Instruction, MemoryOperand, Register};

use super::{Lowerer, Protect};
use crate::emit::{frame as frame_field, indexed, memory};
use crate::fragment::Unsupported;
use crate::frame::{WINDOW_HIGH, WINDOW_LOW};
use crate::regs;

/// End of the user half that every kernel and paging mode grants; constant
/// addresses beyond it are refused.
const CONSTANT_LIMIT: u64 = 0x7fff_ffff_f000;

/// An operand ready to be accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub base: Register,
    pub displacement: i64,
    /// FS for `fs:[disp32]`, which has no base.
    pub segment: Register,
}

impl Place {
    pub(super) fn operand(self) -> MemoryOperand {
        MemoryOperand::new(
            self.base,
            Register::None,
            1,
            self.displacement,
            if self.base == Register::None { 8 } else { u32::from(self.displacement != 0) },
            false,
            self.segment,
        )
    }

    /// Puts this place into `instruction` instead of its memory operand.
    pub(super) fn apply(self, instruction: &mut Instruction) {
        instruction.set_memory_base(self.base);
        instruction.set_memory_index(Register::None);
        instruction.set_memory_index_scale(1);
        instruction.set_memory_displacement64(self.displacement as u64);
        instruction.set_memory_displ_size(if self.base == Register::None {
            8
        } else {
            u32::from(self.displacement != 0)
        });
        instruction.set_segment_prefix(self.segment);
    }
}

/// How the user's address is made up.
struct Address {
    base: Register,
    index: Register,
    scale: u32,
    displacement: i64,
    fs: bool,
}

impl Address {
    fn of(instruction: &Instruction) -> Self {
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

    fn is_constant(&self) -> bool {
        self.base == Register::None && self.index == Register::None
    }

    /// 32-bit addressing: the sum is cut to its low half.
    fn is_narrow(&self) -> bool {
        self.base.is_gpr32() || self.index.is_gpr32()
    }

    /// One full-width base register and a displacement that any confined
    /// register may carry.
    fn is_window(&self) -> bool {
        !self.fs
            && self.base.is_gpr64()
            && self.index == Register::None
            && (WINDOW_LOW..WINDOW_HIGH).contains(&self.displacement)
    }
}

impl Lowerer<'_> {
    /// Makes the memory operand accessible. Emits guards but no access; may
    /// use both scratch registers and leaves U free. `exact` asks for `[T]`.
    pub(super) fn place(
        &mut self,
        instruction: &Instruction,
        protect: Protect,
        exact: bool,
    ) -> Result<Place, Unsupported> {
        let address = Address::of(instruction);
        let t = self.displaced.t;
        let at_t = |displacement| Place { base: t, displacement, segment: Register::None };
        let ip = instruction.ip();

        if address.is_constant() && address.fs && !exact {
            if i32::try_from(address.displacement).is_err() {
                return Err(Unsupported::Address);
            }
            return Ok(Place {
                base: Register::None,
                displacement: address.displacement,
                segment: Register::FS,
            });
        }
        if address.is_constant() && !address.fs {
            let constant = address.displacement as u64;
            if constant >= CONSTANT_LIMIT {
                return Err(Unsupported::Address);
            }
            self.emit.immediate(t, constant);
            return Ok(at_t(0));
        }
        if address.is_window() && !exact {
            let in_place =
                |base| Place { base, displacement: address.displacement, segment: Register::None };
            if address.base == Register::RSP {
                return Ok(in_place(self.displaced.s));
            }
            let own = self.displaced.slot(address.base).is_none();
            if own && self.confined.contains(address.base) {
                return Ok(in_place(address.base));
            }
            if own && !(protect == Protect::Live && address.base == Register::RAX) {
                self.confine(address.base, true, ip, protect);
                return Ok(in_place(address.base));
            }
            self.fetch(t, address.base);
            self.confine(t, false, ip, protect);
            return Ok(at_t(address.displacement));
        }
        self.effective(&address)?;
        if address.fs {
            let u = self.displaced.u;
            self.emit
                .push(Instruction::with1(Code::Rdfsbase_r64, u).map_err(|_| Unsupported::Form)?);
            self.emit.lea(t, indexed(t, u, 1, 0));
        }
        self.confine(t, false, ip, protect);
        Ok(at_t(0))
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

    /// `lea` to any register but `rsp`.
    pub(super) fn lea(&mut self, guest: &crate::steps::Guest) -> Result<(), Unsupported> {
        let instruction = &guest.instruction;
        let address = Address::of(instruction);
        let user = instruction.op0_register();
        let slot = self.displaced.slot(user);
        let to = if slot.is_some() { regs::same_part(self.displaced.t, user) } else { user };
        if user.size() == 2 && (slot.is_some() || address.is_constant()) {
            return Err(Unsupported::Form);
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

//! Instructions that are copied, with scratch registers standing in for the
//! displaced ones.

use iced_x86::{Code, Instruction, InstructionInfoOptions, OpAccess, OpKind, Register};

use super::{Live, Lowerer, Protect};
use crate::emit::frame as frame_field;
use crate::exits::Saved;
use crate::forms;
use crate::fragment::Unsupported;
use crate::regs;
use crate::steps::Guest;

/// An instruction over hardware registers.
pub(super) struct Rewritten {
    pub instruction: Instruction,
    /// Stand-ins to be filled before it.
    pub loads: Vec<StandIn>,
    /// Stand-ins to be written back behind it.
    pub stores: Vec<StandIn>,
}

/// A scratch register in the place of an operand.
#[derive(Clone, Copy)]
pub(super) struct StandIn {
    scratch: Register,
    home: Home,
}

/// Where the value of an operand that cannot be named lives.
#[derive(Clone, Copy)]
enum Home {
    /// In the slot of a displaced register.
    Slot(i32),
    /// In this high byte: no REX prefix goes together with one.
    HighByte(Register),
}

impl StandIn {
    /// Whether filling it exchanges bytes of `register` for a while.
    fn exchanges(self, register: Register) -> bool {
        matches!(self.home, Home::HighByte(byte) if byte.full_register() == register)
    }
}

/// An operand that needs a stand-in: a displaced register, by its full name,
/// or a high byte.
struct Use {
    user: Register,
    read: bool,
    written: bool,
    stand_in: Register,
}

impl Lowerer<'_, '_> {
    pub(super) fn plain(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        let mut instruction = guest.instruction;
        instruction.set_code(without_offset_form(instruction.code()));
        if self.move_with_slot(&instruction) {
            return Ok(());
        }
        let scratch = [self.displaced.u, self.displaced.t];
        let mut free = &scratch[..];
        let memory = forms::memory_operand(&instruction).is_some();
        if memory {
            let place = self.place(&instruction, Protect::of(live.before), false)?;
            place.apply(&mut instruction);
            if place.base == self.displaced.t {
                free = &scratch[..1];
            }
        } else {
            instruction.set_segment_prefix(Register::None);
        }
        let rewritten = self.rewrite(instruction, free)?;
        let address = [instruction.memory_base(), instruction.memory_index()];
        if rewritten.loads.iter().any(|stand_in| address.iter().any(|&r| stand_in.exchanges(r))) {
            // The verifier loses sight of the address on the way.
            return Err(Unsupported::Form);
        }
        for stand_in in rewritten.loads {
            self.fill(stand_in);
        }
        if memory || guest.raises {
            let landing = self.fault(guest.ip(), Saved::No);
            self.emit.faulting(rewritten.instruction, landing);
        } else {
            self.emit.push(rewritten.instruction);
        }
        for stand_in in rewritten.stores {
            self.write_back(stand_in);
        }
        Ok(())
    }

    /// Copies the operand's value to its stand-in. Keeps the flags.
    fn fill(&mut self, stand_in: StandIn) {
        match stand_in.home {
            Home::Slot(slot) => self.emit.load(stand_in.scratch, frame_field(slot)),
            Home::HighByte(byte) => self.over_low_byte(byte, |low| {
                Instruction::with2(Code::Movzx_r32_rm8, regs::low32(stand_in.scratch), low)
            }),
        }
    }

    /// Copies a stand-in's value back. Keeps the flags.
    fn write_back(&mut self, stand_in: StandIn) {
        match stand_in.home {
            Home::Slot(slot) => self.emit.store(frame_field(slot), stand_in.scratch),
            Home::HighByte(byte) => self.over_low_byte(byte, |low| {
                Instruction::with2(Code::Mov_r8_rm8, low, regs::low8(stand_in.scratch))
            }),
        }
    }

    /// Emits an instruction on the high byte while it is the low one.
    fn over_low_byte(
        &mut self,
        high: Register,
        instruction: impl Fn(Register) -> Result<Instruction, iced_x86::IcedError>,
    ) {
        let low = regs::low8(high.full_register());
        let exchange = Instruction::with2(Code::Xchg_rm8_r8, high, low).expect("xchg r8,r8");
        self.emit.push(exchange);
        self.emit.push(instruction(low).expect("mov r8,r8"));
        self.emit.push(exchange);
    }

    /// A 64-bit move between a displaced register and one in place needs
    /// only the slot.
    fn move_with_slot(&mut self, instruction: &Instruction) -> bool {
        let moves = matches!(instruction.code(), Code::Mov_r64_rm64 | Code::Mov_rm64_r64)
            && instruction.op0_kind() == OpKind::Register
            && instruction.op1_kind() == OpKind::Register;
        if !moves {
            return false;
        }
        let (to, from) = (instruction.op0_register(), instruction.op1_register());
        let hardware = |register| {
            if register == Register::RSP { self.displaced.s } else { register }
        };
        match (self.displaced.slot(to), self.displaced.slot(from)) {
            (Some(slot), None) => self.emit.store(frame_field(slot), hardware(from)),
            (None, Some(slot)) => self.emit.load(to, frame_field(slot)),
            _ => return false,
        }
        true
    }

    /// Replaces `rsp` by S, and displaced register operands by stand-ins out
    /// of `free`; high bytes as well where another register takes a REX
    /// prefix. The memory operand must be a [`super::memory::Place`].
    pub(super) fn rewrite(
        &mut self,
        instruction: Instruction,
        free: &[Register],
    ) -> Result<Rewritten, Unsupported> {
        let special = |i| {
            let register = instruction.op_register(i);
            instruction.op_kind(i) == OpKind::Register
                && register.is_gpr()
                && (self.displaced.slot(register).is_some()
                    || register.full_register() == Register::RSP
                    || regs::is_high_byte(register))
        };
        if !(0..instruction.op_count()).any(special) {
            return Ok(Rewritten { instruction, loads: Vec::new(), stores: Vec::new() });
        }
        let (rewritten, clash) = self.substitute(instruction, free, false)?;
        if clash { Ok(self.substitute(instruction, free, true)?.0) } else { Ok(rewritten) }
    }

    /// [`Lowerer::rewrite`] with or without stand-ins for high bytes; true if
    /// one is named together with a REX prefix.
    fn substitute(
        &mut self,
        mut instruction: Instruction,
        free: &[Register],
        high_bytes: bool,
    ) -> Result<(Rewritten, bool), Unsupported> {
        let mut uses: Vec<Use> = Vec::new();
        let displaced = self.displaced;
        let needs_stand_in = |i| {
            instruction.op_kind(i) == OpKind::Register
                && instruction.op_register(i).is_gpr()
                && (displaced.slot(instruction.op_register(i)).is_some()
                    || high_bytes && regs::is_high_byte(instruction.op_register(i)))
        };
        // Most instructions have none.
        let mut operands = (0..instruction.op_count()).filter(|&i| needs_stand_in(i)).peekable();
        let info = operands.peek().is_some().then(|| {
            use InstructionInfoOptions as Leave;
            self.info.info_options(&instruction, Leave::NO_MEMORY_USAGE | Leave::NO_REGISTER_USAGE)
        });
        for (i, info) in operands.zip(info.into_iter().cycle()) {
            let register = instruction.op_register(i);
            if regs::is_high_byte(register) && displaced.slot(register).is_some() {
                return Err(Unsupported::Form);
            }
            let access = info.op_access(i);
            let written = !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None);
            let user = use_of(register);
            // Narrow writes keep the rest of the register; that of a
            // scratch register must not be kernel data a poll has left.
            let read = access != OpAccess::Write || register.size() < 4;
            match uses.iter_mut().find(|known| known.user == user) {
                Some(known) => {
                    known.read |= read;
                    known.written |= written;
                }
                None => uses.push(Use { user, read, written, stand_in: Register::None }),
            }
        }
        let address = displaced.t == instruction.memory_base();
        assign(&mut uses, free, address.then_some(displaced.t))?;

        let mut high_byte = false;
        let mut rex = false;
        for i in 0..instruction.op_count() {
            match instruction.op_kind(i) {
                OpKind::Register => {
                    let mut register = instruction.op_register(i);
                    if !register.is_gpr() {
                        continue;
                    }
                    let full = register.full_register();
                    if full == Register::RSP {
                        register = regs::same_part(self.displaced.s, register);
                    } else if let Some(known) =
                        uses.iter().find(|known| known.user == use_of(register))
                    {
                        register = if regs::is_high_byte(register) {
                            regs::low8(known.stand_in)
                        } else {
                            regs::same_part(known.stand_in, register)
                        };
                    }
                    instruction.set_op_register(i, register);
                    high_byte |= regs::is_high_byte(register);
                    rex |= regs::needs_rex(register);
                }
                OpKind::Memory => {
                    let parts = [instruction.memory_base(), instruction.memory_index()];
                    rex |=
                        parts.iter().any(|&part| part != Register::None && regs::index(part) >= 8);
                }
                _ => {}
            }
        }
        let stand_ins = |wanted: fn(&Use) -> bool| {
            uses.iter()
                .filter(|known| wanted(known))
                .map(|known| StandIn {
                    scratch: known.stand_in,
                    home: match self.displaced.slot(known.user) {
                        Some(slot) => Home::Slot(slot),
                        None => Home::HighByte(known.user),
                    },
                })
                .collect()
        };
        let rewritten = Rewritten {
            instruction,
            loads: stand_ins(|known| known.read),
            stores: stand_ins(|known| known.written),
        };
        Ok((rewritten, high_byte && rex))
    }
}

/// The same move with an ordinary operand, if it is one of those between the
/// accumulator and an absolute address.
fn without_offset_form(code: Code) -> Code {
    match code {
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        code => code,
    }
}

/// What a [`Use`] of `register` is known by.
fn use_of(register: Register) -> Register {
    if regs::is_high_byte(register) { register } else { register.full_register() }
}

/// Gives every use a stand-in of its own; a register that is only written may
/// share with one that is only read, or with the `address`, because all
/// operands are read first.
fn assign(
    uses: &mut [Use],
    free: &[Register],
    address: Option<Register>,
) -> Result<(), Unsupported> {
    let mut free = free.iter().copied();
    for known in uses.iter_mut().filter(|known| known.read) {
        known.stand_in = free.next().ok_or(Unsupported::Form)?;
    }
    let mut shared: Vec<Register> = uses
        .iter()
        .filter(|known| known.read && !known.written)
        .map(|known| known.stand_in)
        .chain(address)
        .collect();
    for known in uses.iter_mut().filter(|known| !known.read) {
        known.stand_in = free.next().or_else(|| shared.pop()).ok_or(Unsupported::Form)?;
    }
    Ok(())
}

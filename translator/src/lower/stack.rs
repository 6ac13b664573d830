//! The user's stack: `push`, `pop`, `leave` and ordinary writes of `rsp`.
//!
//! S stays confined all the time. It moves directly behind an access on the
//! stack, or by way of T, which is confined first.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::{Live, Lowerer, Protect};
use crate::emit::{frame as frame_field, memory};
use crate::exits::Saved;
use crate::fragment::Unsupported;
use crate::steps::Guest;

impl Lowerer<'_> {
    /// Stores `value` below the stack pointer and moves it there.
    pub(super) fn push_register(&mut self, value: Register, ip: u64) {
        let s = self.displaced.s;
        let landing = self.fault(ip, Saved::No);
        self.emit.faulting(
            Instruction::with2(Code::Mov_rm64_r64, memory(s, -8), value).expect("mov m,r"),
            landing,
        );
        self.emit.lea(s, memory(s, -8));
    }

    /// Loads the top of the stack and drops it and `more` bytes.
    pub(super) fn pop_register(&mut self, to: Register, more: u16, ip: u64) {
        let s = self.displaced.s;
        let landing = self.fault(ip, Saved::No);
        self.emit.faulting(
            Instruction::with2(Code::Mov_r64_rm64, to, memory(s, 0)).expect("mov r,m"),
            landing,
        );
        self.emit.lea(s, memory(s, 8 + i64::from(more)));
    }

    pub(super) fn push(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        let instruction = &guest.instruction;
        let ip = guest.ip();
        match instruction.op0_kind() {
            OpKind::Register => {
                let user = instruction.op0_register();
                let value = if user == Register::RSP {
                    self.displaced.s
                } else if self.displaced.slot(user).is_some() {
                    self.fetch(self.displaced.t, user);
                    self.displaced.t
                } else {
                    user
                };
                self.push_register(value, ip);
            }
            OpKind::Memory => {
                let place = self.place(instruction, Protect::of(live.before), false)?;
                let u = self.displaced.u;
                let landing = self.fault(ip, Saved::No);
                self.emit.faulting(
                    Instruction::with2(Code::Mov_r64_rm64, u, place.operand())
                        .map_err(|_| Unsupported::Form)?,
                    landing,
                );
                self.push_register(u, ip);
            }
            _ => {
                let value = instruction.immediate(0) as i64;
                let value = i32::try_from(value).map_err(|_| Unsupported::Form)?;
                let s = self.displaced.s;
                let landing = self.fault(ip, Saved::No);
                self.emit.faulting(
                    Instruction::with2(Code::Mov_rm64_imm32, memory(s, -8), value)
                        .map_err(|_| Unsupported::Form)?,
                    landing,
                );
                self.emit.lea(s, memory(s, -8));
            }
        }
        Ok(())
    }

    pub(super) fn pop(&mut self, guest: &Guest) -> Result<(), Unsupported> {
        let user = guest.instruction.op0_register();
        if user == Register::RSP {
            return Err(Unsupported::Form);
        }
        match self.displaced.slot(user) {
            None => self.pop_register(user, 0, guest.ip()),
            Some(slot) => {
                self.pop_register(self.displaced.t, 0, guest.ip());
                self.emit.store(frame_field(slot), self.displaced.t);
            }
        }
        Ok(())
    }

    pub(super) fn leave(&mut self, guest: &Guest, live: Live) {
        let t = self.displaced.t;
        let known = self.confined.contains(Register::RBP);
        self.fetch(t, Register::RBP);
        if !known {
            self.confine(t, false, guest.ip(), Protect::of(live.before));
        }
        let slot = self.displaced.slot(Register::RBP);
        let to = if slot.is_some() { self.displaced.u } else { Register::RBP };
        let landing = self.fault(guest.ip(), Saved::No);
        self.emit.faulting(
            Instruction::with2(Code::Mov_r64_rm64, to, memory(t, 0)).expect("mov r,m"),
            landing,
        );
        self.emit.lea(t, memory(t, 8));
        if let Some(slot) = slot {
            self.emit.store(frame_field(slot), to);
        }
        self.emit.mov(self.displaced.s, t);
    }

    /// `mov`, `lea`, `add`, `sub`, `and` with `rsp` as their result: computed
    /// in T, confined there, then copied.
    pub(super) fn writes_rsp(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        let instruction = &guest.instruction;
        let (s, t) = (self.displaced.s, self.displaced.t);
        let ip = guest.ip();
        if !instruction.op0_register().is_gpr64() {
            return Err(Unsupported::Form);
        }
        let protect = Protect::of(live.before);
        match instruction.mnemonic() {
            Mnemonic::Lea => self.effective_to_t(instruction)?,
            Mnemonic::Mov if instruction.op1_kind() == OpKind::Register => {
                self.fetch(t, instruction.op1_register());
            }
            Mnemonic::Mov if instruction.op1_kind() == OpKind::Memory => {
                let place = self.place(instruction, protect, false)?;
                let landing = self.fault(ip, Saved::No);
                self.emit.faulting(
                    Instruction::with2(Code::Mov_r64_rm64, t, place.operand())
                        .map_err(|_| Unsupported::Form)?,
                    landing,
                );
            }
            Mnemonic::Add | Mnemonic::Sub | Mnemonic::And => {
                return self.arithmetic_on_rsp(guest, live);
            }
            _ => return Err(Unsupported::Form),
        }
        self.confine(t, false, ip, protect);
        self.emit.mov(s, t);
        Ok(())
    }

    /// `add`, `sub` and `and` replace all flags, so the guard needs no care;
    /// if they are live behind, the operation is done again for its flags.
    fn arithmetic_on_rsp(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        let instruction = &guest.instruction;
        let (s, t, u) = (self.displaced.s, self.displaced.t, self.displaced.u);
        let source = match instruction.op1_kind() {
            OpKind::Register => {
                let user = instruction.op1_register();
                if user == Register::RSP {
                    return Err(Unsupported::Form);
                }
                self.displaced.slot(user).map_or(Ok(user), |_| {
                    // U is needed for the second round.
                    if live.after.is_empty() { Ok(u) } else { Err(Unsupported::Form) }
                })?
            }
            OpKind::Memory => return Err(Unsupported::Form),
            _ => Register::None,
        };
        if source == u {
            self.fetch(u, instruction.op1_register());
        }
        let on = |register: Register| {
            let mut copy = *instruction;
            copy.set_op0_register(register);
            if source != Register::None {
                copy.set_op1_register(source);
            }
            copy
        };
        self.emit.mov(t, s);
        self.emit.push(on(t));
        self.confine(t, false, guest.ip(), Protect::Dead);
        if !live.after.is_empty() {
            self.emit.mov(u, s);
            self.emit.push(on(u));
        }
        self.emit.mov(s, t);
        Ok(())
    }
}

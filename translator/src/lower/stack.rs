//! The user's stack: `push`, `pop`, `leave` and ordinary writes of `rsp`.
//!
//! S stays confined all the time. It moves behind an access on the stack, once
//! for all that a block pushes and pops, or by way of T, which is confined
//! first.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::{Live, Lowerer, Protect};
use crate::emit::{frame as frame_field, memory};
use crate::exits::Saved;
use crate::fragment::Unsupported;
use crate::ranges::stack_move;
use crate::regs;
use crate::steps::Guest;

impl Lowerer<'_, '_> {
    /// Lets S follow the user's `rsp`. Keeps the flags.
    pub(super) fn settle(&mut self) {
        let s = self.displaced.s;
        self.emit.lea(s, memory(s, self.ranges.ahead()));
        self.ranges.settle();
        self.exits.set_ahead(0);
    }

    /// Stores `value` below the stack pointer; S does not follow yet.
    fn store_below(&mut self, value: Register, ip: u64) {
        let below = memory(self.displaced.s, self.ranges.ahead() - 8);
        let landing = self.fault(ip, Saved::No);
        self.emit.faulting(
            Instruction::with2(Code::Mov_rm64_r64, below, value).expect("mov m,r"),
            landing,
        );
    }

    /// Loads the top of the stack; S does not follow yet.
    fn load_top(&mut self, to: Register, ip: u64) {
        let top = memory(self.displaced.s, self.ranges.ahead());
        let landing = self.fault(ip, Saved::No);
        self.emit
            .faulting(Instruction::with2(Code::Mov_r64_rm64, to, top).expect("mov r,m"), landing);
    }

    /// Moves S to the user's `rsp`, and `by` bytes further. Nothing is put off
    /// behind it.
    fn follow(&mut self, by: i64) {
        let s = self.displaced.s;
        self.emit.lea(s, memory(s, self.ranges.ahead() + by));
        self.exits.set_ahead(0);
    }

    /// Stores `value` below the stack pointer and moves it there.
    pub(super) fn push_register(&mut self, value: Register, ip: u64) {
        self.store_below(value, ip);
        self.follow(-8);
    }

    /// Loads the top of the stack and drops it and `more` bytes.
    pub(super) fn pop_register(&mut self, to: Register, more: u16, ip: u64) {
        self.load_top(to, ip);
        self.follow(8 + i64::from(more));
    }

    pub(super) fn push(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        let instruction = &guest.instruction;
        let ip = guest.ip();
        if instruction.stack_pointer_increment() == -2 {
            return self.push_word(guest, live);
        }
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
                self.store_below(value, ip);
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
                let below = memory(self.displaced.s, self.ranges.ahead() - 8);
                let landing = self.fault(ip, Saved::No);
                self.emit.faulting(
                    Instruction::with2(Code::Mov_rm64_imm32, below, value)
                        .map_err(|_| Unsupported::Form)?,
                    landing,
                );
            }
        }
        Ok(())
    }

    /// `push` of 16 bits.
    fn push_word(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        let instruction = &guest.instruction;
        let ip = guest.ip();
        let (s, u) = (self.displaced.s, self.displaced.u);
        let below = memory(s, -2);
        let store = match instruction.op0_kind() {
            OpKind::Register => {
                self.fetch(u, instruction.op0_register());
                Instruction::with2(Code::Mov_rm16_r16, below, regs::low16(u))
            }
            OpKind::Memory => {
                let place = self.place(instruction, Protect::of(live.before), false)?;
                let load =
                    Instruction::with2(Code::Movzx_r32_rm16, regs::low32(u), place.operand());
                let landing = self.fault(ip, Saved::No);
                self.emit.faulting(load.map_err(|_| Unsupported::Form)?, landing);
                Instruction::with2(Code::Mov_rm16_r16, below, regs::low16(u))
            }
            _ => {
                let value = i32::from(instruction.immediate(0) as i16);
                Instruction::with2(Code::Mov_rm16_imm16, below, value)
            }
        };
        let landing = self.fault(ip, Saved::No);
        self.emit.faulting(store.map_err(|_| Unsupported::Form)?, landing);
        self.emit.lea(s, memory(s, -2));
        Ok(())
    }

    /// `pop` of 16 bits into a register.
    fn pop_word(&mut self, user: Register, ip: u64) {
        let (s, t, u) = (self.displaced.s, self.displaced.t, self.displaced.u);
        let landing = self.fault(ip, Saved::No);
        let slot = self.displaced.slot(user);
        // T whole: a part of it may be what a poll has left.
        let (code, to) = match slot {
            Some(_) => (Code::Movzx_r32_rm16, regs::low32(t)),
            None => (Code::Mov_r16_rm16, user),
        };
        self.emit.faulting(Instruction::with2(code, to, memory(s, 0)).expect("mov r,m16"), landing);
        self.emit.lea(s, memory(s, 2));
        if let Some(slot) = slot {
            let (from, to) = (regs::low16(t), regs::low16(u));
            self.emit.load(u, frame_field(slot));
            self.emit.push(Instruction::with2(Code::Mov_r16_rm16, to, from).expect("mov r16,r16"));
            self.emit.store(frame_field(slot), u);
        }
    }

    /// `pop` into memory. An address over `rsp` takes its new value.
    fn pop_memory(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        let (s, t, u) = (self.displaced.s, self.displaced.t, self.displaced.u);
        let ip = guest.ip();
        let size = i64::from(guest.instruction.stack_pointer_increment());
        let mut target = guest.instruction;
        if target.memory_base() == Register::RSP {
            let moved = (target.memory_displacement64() as i64).checked_add(size);
            let moved = moved.and_then(|moved| i32::try_from(moved).ok());
            let moved = i64::from(moved.ok_or(Unsupported::Address)?);
            target.set_memory_displacement64(moved as u64);
            target.set_memory_displ_size(1);
        }
        let place = self.place(&target, Protect::of(live.before), false)?;
        let (load, to, store, from) = match size {
            2 => (Code::Movzx_r32_rm16, regs::low32(u), Code::Mov_rm16_r16, regs::low16(u)),
            _ => (Code::Mov_r64_rm64, u, Code::Mov_rm64_r64, u),
        };
        let bug = |_| Unsupported::Form;
        let landing = self.fault(ip, Saved::No);
        let load = Instruction::with2(load, to, memory(s, 0)).map_err(bug)?;
        self.emit.faulting(load, landing);
        let store = Instruction::with2(store, place.operand(), from).map_err(bug)?;
        self.emit.faulting(store, landing);
        // The stack was read at S, so S + 8 is no kernel address and the
        // guard needs no branch; nor could its exit undo the store.
        let protect = !live.before.is_empty();
        if protect {
            self.emit.flags_to_slot();
        }
        self.emit.lea(t, memory(s, size));
        self.emit.bit_reset63(t);
        if protect {
            self.emit.flags_from_slot();
        }
        self.emit.mov(s, t);
        Ok(())
    }

    pub(super) fn pop(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        let ip = guest.ip();
        if guest.instruction.op0_kind() == OpKind::Memory {
            return self.pop_memory(guest, live);
        }
        let user = guest.instruction.op0_register();
        if user == Register::RSP {
            let (s, t) = (self.displaced.s, self.displaced.t);
            let landing = self.fault(ip, Saved::No);
            self.emit.faulting(
                Instruction::with2(Code::Mov_r64_rm64, t, memory(s, 0)).expect("mov r,m"),
                landing,
            );
            self.confine(t, false, ip, Protect::of(live.before));
            self.emit.mov(s, t);
            return Ok(());
        }
        if user.is_gpr16() {
            self.pop_word(user, ip);
            return Ok(());
        }
        match self.displaced.slot(user) {
            None => self.load_top(user, ip),
            Some(slot) => {
                self.load_top(self.displaced.t, ip);
                self.emit.store(frame_field(slot), self.displaced.t);
            }
        }
        Ok(())
    }

    pub(super) fn leave(&mut self, guest: &Guest, live: Live) {
        let t = self.displaced.t;
        let known = self.ranges.is_confined(Register::RBP);
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

    /// Instructions with `rsp` as their 64-bit result: computed in T, confined
    /// there, then copied.
    pub(super) fn writes_rsp(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        let instruction = &guest.instruction;
        let (s, t) = (self.displaced.s, self.displaced.t);
        let ip = guest.ip();
        let protect = Protect::of(live.before);
        if self.ranges.puts_off(guest, live.after) {
            return Ok(());
        }
        if stack_move(guest).is_some_and(|by| self.ranges.rsp_may_move(by)) {
            let mut moved = *instruction;
            moved.set_op0_register(s);
            if moved.mnemonic() == Mnemonic::Lea {
                moved.set_memory_base(s);
            }
            self.emit.push(moved);
            return Ok(());
        }
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
            Mnemonic::Mov => self.emit.immediate(t, instruction.immediate(1)),
            Mnemonic::Add | Mnemonic::Sub | Mnemonic::And | Mnemonic::Or | Mnemonic::Xor => {
                return self.arithmetic_on_rsp(guest, live);
            }
            Mnemonic::Xchg => {
                self.exchange_rsp(guest, live);
                return Ok(());
            }
            _ => return Err(Unsupported::Form),
        }
        self.confine(t, false, ip, protect);
        self.emit.mov(s, t);
        Ok(())
    }

    /// `add`, `sub`, `and`, `or` and `xor` replace all flags, so the guard
    /// needs no care before; if they are live behind, the operation is done
    /// again for its flags, or they pass the guard in their slot.
    fn arithmetic_on_rsp(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        let instruction = &guest.instruction;
        let ip = guest.ip();
        let (s, t, u) = (self.displaced.s, self.displaced.t, self.displaced.u);
        let source = match instruction.op1_kind() {
            OpKind::Register => match instruction.op1_register() {
                Register::RSP => s,
                user if self.displaced.slot(user).is_some() => {
                    self.fetch(u, user);
                    u
                }
                user => user,
            },
            OpKind::Memory => {
                let place = self.place(instruction, Protect::Dead, false)?;
                let load = Instruction::with2(Code::Mov_r64_rm64, u, place.operand());
                let landing = self.fault(ip, Saved::No);
                self.emit.faulting(load.map_err(|_| Unsupported::Form)?, landing);
                u
            }
            _ => Register::None,
        };
        let on = |register: Register| {
            let mut copy = *instruction;
            if source == Register::None {
                copy.set_op0_register(register);
                return Ok(copy);
            }
            let code = match instruction.mnemonic() {
                Mnemonic::Add => Code::Add_r64_rm64,
                Mnemonic::Sub => Code::Sub_r64_rm64,
                Mnemonic::And => Code::And_r64_rm64,
                Mnemonic::Or => Code::Or_r64_rm64,
                Mnemonic::Xor => Code::Xor_r64_rm64,
                _ => return Err(Unsupported::Form),
            };
            Instruction::with2(code, register, source).map_err(|_| Unsupported::Form)
        };
        self.emit.mov(t, s);
        self.emit.push(on(t)?);
        if live.after.is_empty() {
            self.confine(t, false, ip, Protect::Dead);
        } else if source == u {
            // U is taken, so there is no second round.
            self.emit.flags_to_slot();
            self.confine(t, false, ip, Protect::InSlot);
            self.emit.flags_from_slot();
        } else {
            self.confine(t, false, ip, Protect::Dead);
            self.emit.mov(u, s);
            self.emit.push(on(u)?);
        }
        self.emit.mov(s, t);
        Ok(())
    }

    /// `xchg` of `rsp` with another register.
    fn exchange_rsp(&mut self, guest: &Guest, live: Live) {
        let instruction = &guest.instruction;
        let (s, t) = (self.displaced.s, self.displaced.t);
        let user = match instruction.op0_register() {
            Register::RSP => instruction.op1_register(),
            user => user,
        };
        self.fetch(t, user);
        self.confine(t, false, guest.ip(), Protect::of(live.before));
        match self.displaced.slot(user) {
            Some(slot) => self.emit.store(frame_field(slot), s),
            None if user == Register::RSP => {}
            None => self.emit.mov(user, s),
        }
        self.emit.mov(s, t);
    }
}

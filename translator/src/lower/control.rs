//! Control flow: branches inside the region, calls, returns, and indirect
//! targets compared with predictions.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::{Live, Lowerer, Protect};
use crate::displace::SPILL_RCX;
use crate::emit::{Section, frame as frame_field, indexed, memory};
use crate::exits::Saved;
use crate::fragment::{ExitKind, Unsupported};
use crate::frame;
use crate::region::{Block, End};
use crate::steps::Guest;

impl Lowerer<'_> {
    /// Lowers what follows the body of `block`; `next` is emitted behind it.
    pub(super) fn end(
        &mut self,
        block: &Block,
        next: Option<u64>,
        live: Live,
    ) -> Result<(), Unsupported> {
        let from = block.start;
        match (&block.end, &block.terminator) {
            (End::Next(to), _) | (End::Jump { target: to }, _) => self.go(from, *to, next),
            (End::Exit { ip, kind, reason }, _) => {
                let label = self.exits.exit(&mut self.emit, *ip, *kind, *reason);
                self.emit.jmp(label);
            }
            (End::Branch { taken, next: straight }, Some(guest)) => {
                self.conditional(guest, from, *taken, *straight, next)?;
            }
            (End::Call { callee, site }, Some(guest)) => {
                self.emit.immediate(self.displaced.t, *site);
                self.push_register(self.displaced.t, guest.ip());
                self.go(from, *callee, next);
            }
            (End::IndirectJump { targets }, Some(guest)) => {
                self.load_target(guest, live)?;
                self.dispatch(guest, from, targets, next)?;
            }
            (End::IndirectCall { targets, site }, Some(guest)) => {
                self.load_target(guest, live)?;
                self.emit.immediate(self.displaced.u, *site);
                self.push_register(self.displaced.u, guest.ip());
                self.dispatch(guest, from, targets, next)?;
            }
            (End::Return { targets }, Some(guest)) => {
                let more = match guest.instruction.op_count() {
                    0 => 0,
                    _ => guest.instruction.immediate16(),
                };
                self.pop_register(self.displaced.t, more, guest.ip());
                self.dispatch(guest, from, targets, next)?;
            }
            // Region discovery gives every branching end its instruction.
            (_, None) => return Err(Unsupported::Form),
        }
        Ok(())
    }

    fn conditional(
        &mut self,
        guest: &Guest,
        from: u64,
        taken: u64,
        straight: u64,
        next: Option<u64>,
    ) -> Result<(), Unsupported> {
        let mut branch = guest.instruction;
        let jumps_when_zero = match branch.mnemonic() {
            Mnemonic::Jrcxz => true,
            Mnemonic::Loop => false,
            _ => {
                branch.as_near_branch();
                if next == Some(taken) && taken != straight {
                    branch.negate_condition_code();
                    let label = self.edge(from, straight);
                    self.emit.branch(branch.code(), label);
                } else {
                    let label = self.edge(from, taken);
                    self.emit.branch(branch.code(), label);
                    self.go(from, straight, next);
                }
                return Ok(());
            }
        };
        // These reach only a few bytes, so they hop over a jump.
        if !jumps_when_zero {
            self.emit.lea(Register::RCX, memory(Register::RCX, -1));
            self.lose(Register::RCX);
        }
        let (zero, other) = if jumps_when_zero { (taken, straight) } else { (straight, taken) };
        let hop = self.emit.label();
        self.emit.branch(Code::Jrcxz_rel8_64, hop);
        let label = self.edge(from, other);
        self.emit.jmp(label);
        self.emit.bind(hop);
        self.go(from, zero, next);
        Ok(())
    }

    /// The target of an indirect jump or call into T.
    fn load_target(&mut self, guest: &Guest, live: Live) -> Result<(), Unsupported> {
        let mut instruction = guest.instruction;
        let t = self.displaced.t;
        if instruction.op0_kind() == OpKind::Register {
            self.fetch(t, instruction.op0_register());
            return Ok(());
        }
        if instruction.segment_prefix() != Register::FS {
            // 0x3e is `notrack` here.
            instruction.set_segment_prefix(Register::None);
        }
        let place = self.place(&instruction, Protect::of(live.before), false)?;
        let landing = self.fault(guest.ip(), Saved::No);
        self.emit.faulting(
            Instruction::with2(Code::Mov_r64_rm64, t, place.operand())
                .map_err(|_| Unsupported::Form)?,
            landing,
        );
        Ok(())
    }

    /// Goes to the predicted target that T equals, else leaves with T as the
    /// target. Keeps the flags: they are live on a miss.
    fn dispatch(
        &mut self,
        guest: &Guest,
        from: u64,
        targets: &[u64],
        next: Option<u64>,
    ) -> Result<(), Unsupported> {
        let (t, u) = (self.displaced.t, self.displaced.u);
        let rcx = Register::RCX;
        let exit =
            self.exits.exit(&mut self.emit, guest.ip(), ExitKind::Indirect, Unsupported::None);
        let Some((&first, others)) = targets.split_first() else {
            self.emit.store(frame_field(frame::TARGET), t);
            self.emit.jmp(exit);
            return Ok(());
        };
        self.emit.store(frame_field(SPILL_RCX), rcx);
        self.lose(rcx);
        let mut hits = Vec::with_capacity(targets.len());
        for &target in targets {
            let hit = self.emit.label();
            hits.push(hit);
            match i32::try_from(target) {
                Ok(near) => self.emit.lea(rcx, memory(t, -i64::from(near))),
                Err(_) => {
                    self.emit.immediate(u, target.wrapping_neg());
                    self.emit.lea(rcx, indexed(t, u, 1, 0));
                }
            }
            self.emit.branch(Code::Jrcxz_rel8_64, hit);
        }
        let former = self.emit.select(Section::Undo);
        let miss = self.emit.here();
        self.emit.load(rcx, frame_field(SPILL_RCX));
        self.emit.store(frame_field(frame::TARGET), t);
        self.emit.jmp(exit);
        self.emit.select(former);

        self.emit.jmp(miss);
        for (&target, &hit) in others.iter().zip(&hits[1..]) {
            self.emit.bind(hit);
            self.emit.load(rcx, frame_field(SPILL_RCX));
            let label = self.edge(from, target);
            self.emit.jmp(label);
        }
        self.emit.bind(hits[0]);
        self.emit.load(rcx, frame_field(SPILL_RCX));
        self.go(from, first, next);
        Ok(())
    }
}

//! Control flow: branches inside the region, calls, returns, and where
//! indirect branches get their target from.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::{Live, Lowerer, Protect};
use crate::displace::SPILL_RCX;
use crate::emit::{frame as frame_field, memory};
use crate::exits::Saved;
use crate::fragment::Unsupported;
use crate::graph::{BlockId, End, Target};
use crate::ranges::popped;
use crate::steps::Guest;

impl Lowerer<'_, '_> {
    /// Lowers what follows the body of the block `from`; `next` is emitted
    /// behind it.
    pub(super) fn end(
        &mut self,
        from: BlockId,
        terminator: Option<&Guest>,
        next: Option<BlockId>,
        live: Live,
    ) -> Result<(), Unsupported> {
        let block = self.graph.block(from);
        match (&block.end, terminator) {
            (End::Next(to) | End::Jump(to), _) => self.go(from, *to, next),
            (End::Exit { ip, kind, reason }, _) => {
                let label = self.exits.exit(&mut self.emit, *ip, *kind, *reason);
                self.emit.jmp(label);
            }
            (End::Branch { taken, next: straight }, Some(guest)) => {
                self.conditional(guest, from, [*taken, *straight], next);
            }
            (End::Call { callee, site }, Some(guest)) => {
                self.emit.immediate(self.displaced.t, *site);
                self.push_register(self.displaced.t, guest.ip());
                self.go(from, *callee, next);
            }
            (End::IndirectJump(targets), Some(guest)) => {
                self.load_target(guest, live)?;
                self.dispatch(guest, from, targets, next);
            }
            (End::IndirectCall { targets, site }, Some(guest)) => {
                self.load_target(guest, live)?;
                self.emit.immediate(self.displaced.u, *site);
                self.push_register(self.displaced.u, guest.ip());
                self.dispatch(guest, from, targets, next);
            }
            (End::Return(targets), Some(guest)) => {
                self.pop_register(self.displaced.t, popped(guest), guest.ip());
                self.dispatch(guest, from, targets, next);
            }
            // The graph gives every branching end its instruction.
            (_, None) => return Err(Unsupported::Form),
        }
        Ok(())
    }

    fn conditional(
        &mut self,
        guest: &Guest,
        from: BlockId,
        [taken, straight]: [Target; 2],
        next: Option<BlockId>,
    ) {
        let mut branch = guest.instruction;
        let jumps_when_zero = match branch.mnemonic() {
            Mnemonic::Jrcxz | Mnemonic::Jecxz => true,
            Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => false,
            _ => {
                branch.as_near_branch();
                return self.condition(branch, from, [taken, straight], next);
            }
        };
        // These reach only a few bytes, so they hop over a jump.
        if !jumps_when_zero {
            self.emit.lea(Register::RCX, memory(Register::RCX, -1));
        }
        let (zero, other) = if jumps_when_zero { (taken, straight) } else { (straight, taken) };
        let narrow = branch.mnemonic() == Mnemonic::Jecxz;
        if narrow {
            self.emit.store(frame_field(SPILL_RCX), Register::RCX);
            self.emit.push(
                Instruction::with2(Code::Mov_r32_rm32, Register::ECX, Register::ECX)
                    .expect("mov r32,r32"),
            );
        }
        let hop = self.emit.label();
        self.emit.branch(Code::Jrcxz_rel8_64, hop);
        if narrow {
            self.emit.load(Register::RCX, frame_field(SPILL_RCX));
        }
        let label = self.edge(from, other);
        match branch.mnemonic() {
            Mnemonic::Loope => self.emit.branch(Code::Je_rel32_64, label),
            Mnemonic::Loopne => self.emit.branch(Code::Jne_rel32_64, label),
            _ => self.emit.jmp(label),
        }
        self.emit.bind(hop);
        if narrow {
            self.emit.load(Register::RCX, frame_field(SPILL_RCX));
        }
        self.go(from, zero, next);
    }

    /// `jcc`: with as few jumps taken as the layout allows.
    fn condition(
        &mut self,
        mut branch: Instruction,
        from: BlockId,
        [taken, straight]: [Target; 2],
        next: Option<BlockId>,
    ) {
        let backward = |to: Target| {
            let emitted = to.block.filter(|&block| !self.graph.block(block).is_bare_exit());
            emitted.is_some_and(|block| self.layout.is_backward(from, block))
        };
        let follows = |to: Target| next.is_some() && next == to.block;
        // The side that is jumped to, and the one that comes next in the code.
        let swap = follows(taken) && taken != straight || backward(taken) && !backward(straight);
        let (aside, ahead) = if swap { (straight, taken) } else { (taken, straight) };
        if swap {
            branch.negate_condition_code();
        }
        let label = self.edge(from, aside);
        self.emit.branch(branch.code(), label);
        self.go(from, ahead, next);
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
}

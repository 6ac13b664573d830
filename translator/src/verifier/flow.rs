//! Follows every path: the fixpoint over the whole code, and the walks that
//! show where fault landings and poll exits lead.

use super::code::{Code, Jump, Role, frame_offset};
use super::state::{Exits, State};
use super::step::{Stepper, accesses_user};
use super::{Policy, Rule, VerifyError, Violation};
use crate::fragment::ExitKind;
use crate::frame;
use iced_x86::{Code as Op, Mnemonic};

/// How often the state before one instruction may change. Loops widen, so that
/// each register changes a few times at most; no compiler's code comes near.
const MAX_CHANGES: usize = 64;

/// Proves every rule that depends on paths.
pub(super) fn prove(code: &Code, policy: &Policy) -> Result<(), Box<VerifyError>> {
    let states = fixpoint(code, policy)?;
    for (i, state) in states.iter().enumerate() {
        let padding = matches!(code.instructions[i].mnemonic(), Mnemonic::Int3 | Mnemonic::Nop);
        if state.is_none() && !padding {
            return Err(code.error(i, (Rule::Unreachable, "no path leads here")));
        }
    }
    let mut walk = Walk { seen: vec![None; code.instructions.len()] };
    let mut landings: Vec<usize> = code.landings.iter().flatten().copied().collect();
    landings.sort_unstable();
    landings.dedup();
    for landing in landings {
        walk.leads_out(code, landing, ExitKind::Fault)
            .map_err(|detail| code.error(landing, (Rule::Landing, detail)))?;
    }
    let mut walk = Walk { seen: vec![None; code.instructions.len()] };
    for &exit in &code.poll_exits {
        walk.leads_out(code, exit, ExitKind::Poll)
            .map_err(|detail| code.error(exit, (Rule::Loop, detail)))?;
    }
    Ok(())
}

/// The state before each instruction; `None` where no path leads.
fn fixpoint(code: &Code, policy: &Policy) -> Result<Vec<Option<State>>, Box<VerifyError>> {
    let count = code.instructions.len();
    let mut states: Vec<Option<State>> = vec![None; count];
    let stepper = Stepper { code, policy };
    // In the order of the code, which nearly all edges follow: what joins
    // there is joined before it is executed.
    let mut pending = vec![false; count];
    let mut next = 0;
    let mut lowest_behind = count;
    states[0] = Some(State::entry());
    pending[0] = true;
    let mut budget = count * MAX_CHANGES;
    loop {
        let Some(i) = (next..count).find(|&i| pending[i]) else {
            if lowest_behind == count {
                break;
            }
            next = std::mem::replace(&mut lowest_behind, count);
            continue;
        };
        pending[i] = false;
        next = i + 1;
        budget = budget
            .checked_sub(1)
            .ok_or_else(|| code.error(i, (Rule::Size, "the fixpoint takes longer than it can")))?;
        let before = states[i].expect("only points with a state are put on the list");
        let after = stepper.step(i, &before).map_err(|violation| code.error(i, violation))?;
        let mut flow = |to: usize, state: State| {
            let joined = states[to].map_or(state, |old| {
                let joined = old.join(&state);
                if to <= i { old.widen(&joined) } else { joined }
            });
            if states[to] != Some(joined) {
                states[to] = Some(joined);
                pending[to] = true;
                if to <= i {
                    lowest_behind = lowest_behind.min(to);
                }
            }
        };
        if let Some(landing) = code.landings[i] {
            // A repeated instruction may have got part of the way.
            let partly = code.instructions[i].is_string_instruction();
            flow(landing, if partly { before.join(&after) } else { before });
        }
        match code.jumps[i] {
            Jump::Out => {
                stepper.leave(&after).map_err(|violation| code.error(i, violation))?;
                continue;
            }
            Jump::To(target) => {
                backward(code, i, target).map_err(|violation| code.error(i, violation))?;
                flow(target, after);
                if code.instructions[i].mnemonic() == Mnemonic::Jmp {
                    continue;
                }
            }
            Jump::None => {}
        }
        if i + 1 == count {
            return Err(code.error(i, (Rule::JumpTarget, "the code runs off its end")));
        }
        flow(i + 1, after);
    }
    Ok(states)
}

/// A jump to a lower address, or to itself, ends a poll.
fn backward(code: &Code, i: usize, target: usize) -> Result<(), Violation> {
    if target <= i && code.roles[i] != Role::BackEdge {
        return Err((Rule::Loop, "a jump backward that is not the end of a poll"));
    }
    Ok(())
}

/// Walks paths that must lead straight to exits of one kind.
struct Walk {
    /// With which exits each instruction was reached.
    seen: Vec<Option<Exits>>,
}

impl Walk {
    fn leads_out(&mut self, code: &Code, start: usize, kind: ExitKind) -> Result<(), &'static str> {
        let mut work = vec![(start, Exits::UNSET)];
        while let Some((i, mut exits)) = work.pop() {
            let joined = self.seen[i].map_or(exits, |old| old.join(exits));
            if self.seen[i] == Some(joined) {
                continue;
            }
            self.seen[i] = Some(joined);
            exits = joined;
            let instruction = &code.instructions[i];
            if accesses_user(instruction) || code.landings[i].is_some() {
                return Err("may fault again before it leaves");
            }
            if instruction.code() == Op::Mov_rm32_imm32
                && frame_offset(instruction) == Some(frame::EXIT_ID)
            {
                let exit = code.parts.exits.get(instruction.immediate32() as usize);
                exits = exit.map_or(Exits::UNSET, |exit| Exits::of(exit.kind));
            }
            match code.jumps[i] {
                Jump::Out if exits == Exits::of(kind) => continue,
                Jump::Out => return Err("leaves through an exit of another kind"),
                Jump::To(target) if target <= i => return Err("jumps backward before it leaves"),
                Jump::To(target) => work.push((target, exits)),
                Jump::None => {}
            }
            if instruction.mnemonic() != Mnemonic::Jmp && i + 1 < code.instructions.len() {
                work.push((i + 1, exits));
            }
        }
        Ok(())
    }
}

//! Follows every path until nothing changes: the fixpoint over the whole code.

use super::code::{Code, Jump, Line, Role};
use super::state::{Origin, Paths, State};
use super::step::Stepper;
use super::{Policy, Rule, VerifyError, Violation};
use iced_x86::Mnemonic;

/// How often the state at one label may change. Loops widen, so that each
/// register changes a few times at most; no compiler's code comes near.
const MAX_CHANGES: usize = 64;

/// Proves every rule that depends on paths.
pub(super) fn prove(code: &Code, policy: &Policy) -> Result<(), Box<VerifyError>> {
    let mut proof = Proof::new(code, policy);
    proof.run()?;
    let mut reached = false;
    for (i, line) in code.lines.iter().enumerate() {
        if let Some(label) = proof.label_at(i) {
            reached |= proof.states[label].is_some();
        }
        let padding = matches!(line.instruction.mnemonic(), Mnemonic::Int3 | Mnemonic::Nop);
        if !reached && !padding {
            return Err(code.error(i, (Rule::Unreachable, "no path leads here")));
        }
        reached &= line.falls_through();
    }
    Ok(())
}

/// States are kept where paths join: at labels. In between each follows from
/// the one before it.
struct Proof<'a> {
    lines: &'a [Line],
    code: &'a Code<'a>,
    stepper: Stepper<'a>,
    /// The label of each line, or [`NO_LABEL`].
    labels: Vec<u32>,
    /// The line of each label: the entry, and what jumps and faults lead to.
    starts: Vec<usize>,
    /// The state before each label; `None` where no path leads so far.
    states: Vec<Option<State>>,
    /// The state has changed since the lines behind the label were executed.
    pending: Vec<bool>,
    /// The first pending label that a jump backward led to.
    behind: Option<usize>,
}

const NO_LABEL: u32 = u32::MAX;

impl<'a> Proof<'a> {
    fn new(code: &'a Code, policy: &'a Policy) -> Self {
        let lines = &code.lines[..];
        let is_label = |i: usize| i == 0 || lines[i].target;
        let starts: Vec<usize> = (0..lines.len()).filter(|i| is_label(*i)).collect();
        let mut labels = vec![NO_LABEL; lines.len()];
        for (label, start) in starts.iter().enumerate() {
            labels[*start] = label as u32;
        }
        let mut this = Self {
            lines,
            code,
            stepper: Stepper { exits: &code.parts.exits, policy },
            labels,
            states: vec![None; starts.len()],
            pending: vec![false; starts.len()],
            starts,
            behind: None,
        };
        this.states[0] = Some(State::entry());
        this.pending[0] = true;
        this
    }

    fn label_at(&self, line: usize) -> Option<usize> {
        let label = *self.labels.get(line)?;
        (label != NO_LABEL).then_some(label as usize)
    }

    /// Executes in the order of the code, which nearly all edges follow: what
    /// joins there is joined before it is executed.
    fn run(&mut self) -> Result<(), Box<VerifyError>> {
        let mut next = 0;
        let mut budget = self.starts.len() * MAX_CHANGES;
        loop {
            let Some(label) = (next..self.pending.len()).find(|&label| self.pending[label]) else {
                match self.behind.take() {
                    Some(label) => next = label,
                    None => return Ok(()),
                }
                continue;
            };
            self.pending[label] = false;
            next = label + 1;
            budget = budget.checked_sub(1).ok_or_else(|| {
                let violation = (Rule::Size, "the fixpoint takes longer than it can");
                self.code.error(self.starts[label], violation)
            })?;
            self.follow(label)?;
        }
    }

    /// Executes the lines from `label` up to the next label or jump away.
    fn follow(&mut self, label: usize) -> Result<(), Box<VerifyError>> {
        let mut state = self.states[label].expect("only labels with a state are pending");
        for i in self.starts[label].. {
            let more =
                self.line(i, &mut state).map_err(|violation| self.code.error(i, violation))?;
            if !more {
                break;
            }
            if self.label_at(i + 1).is_some() {
                self.flow(i, i + 1, &state);
                break;
            }
        }
        Ok(())
    }

    /// Executes line `i`, and tells whether the next one may follow.
    fn line(&mut self, i: usize, state: &mut State) -> Result<bool, Violation> {
        let line = &self.lines[i];
        self.stepper.leads_out(i, line, state.paths)?;
        if let Some(landing) = line.landing {
            let mut landed = *state;
            self.stepper.step(line, state)?;
            // A repeated instruction may have got part of the way.
            if line.form.string {
                landed = landed.join(state);
            }
            landed.paths = Paths::from(Origin::Fault);
            self.flow(i, landing, &landed);
        } else {
            self.stepper.step(line, state)?;
        }
        match line.jump {
            Jump::None => {}
            Jump::Out => self.stepper.leave(state)?,
            Jump::To(target) => {
                if target <= i && line.role != Role::BackEdge {
                    return Err((Rule::Loop, "a jump backward that is not the end of a poll"));
                }
                let mut there = *state;
                if line.role == Role::Poll {
                    there.paths = Paths::from(Origin::Poll);
                }
                self.flow(i, target, &there);
            }
        }
        if line.falls_through() && i + 1 == self.lines.len() {
            return Err((Rule::JumpTarget, "the code runs off its end"));
        }
        Ok(line.falls_through())
    }

    /// Joins `state` into that of line `to`, a label, to which line `from` leads.
    fn flow(&mut self, from: usize, to: usize, state: &State) {
        let label = self.label_at(to).expect("all lines that others lead to have labels");
        let place = &mut self.states[label];
        let joined = place.map_or(*state, |old| {
            let joined = old.join(state);
            if to <= from { old.widen(&joined) } else { joined }
        });
        if *place != Some(joined) {
            *place = Some(joined);
            self.pending[label] = true;
            if to <= from {
                self.behind = Some(self.behind.map_or(label, |behind| behind.min(label)));
            }
        }
    }
}

//! How much is executed between two polls, at most.

use super::code::{Code, Jump, Line, Memory, Role};
use super::{Rule, VerifyError};
use crate::frame::{BUDGET, REP_LIMIT, SLOW_WORK, WORK_LIMIT};
use iced_x86::Mnemonic;

/// Proves that no path from the entry or behind a poll to the next poll, or
/// out, is longer than [`WORK_LIMIT`] instructions, repetitions counted; that each poll
/// takes off the budget what the longest path to its jump backward has; and that no path
/// is longer than the fragment says.
///
/// Jumps backward end a poll (that is [`Rule::Loop`], which is proven first),
/// so what is left has no loops, and the longest path to each line follows from those to
/// the lines before it.
pub(super) fn prove(code: &Code) -> Result<(), Box<VerifyError>> {
    let mut before = vec![0u32; code.lines.len() + 1];
    let mut taken_off = 0;
    for (i, line) in code.lines.iter().enumerate() {
        let refused = |detail| Err(code.error(i, (Rule::Work, detail)));
        let path = before[i] + own(line);
        if path > WORK_LIMIT {
            return refused("too much can be executed without a poll up to here");
        }
        if path > code.parts.work {
            return refused("more can be executed up to here than the fragment says");
        }
        if is_taking_off(line) {
            taken_off = line.instruction.immediate32();
        }
        let mut reach = |to: usize| before[to] = before[to].max(path);
        match line.jump {
            // The next stretch begins there, with its own bound.
            Jump::To(_) if line.role == Role::BackEdge => {
                // More does no harm, unless it is negative as the CPU takes it.
                if !(path..=i32::MAX.unsigned_abs()).contains(&taken_off) {
                    return refused("the poll takes off less than is executed");
                }
            }
            Jump::To(target) if target <= i => {
                return refused("jumps backward without a poll");
            }
            Jump::To(target) => reach(target),
            Jump::None | Jump::Out => {}
        }
        match line.landing {
            Some(landing) if landing <= i => {
                return refused("a fault continues before the instruction");
            }
            Some(landing) => reach(landing),
            None => {}
        }
        if line.falls_through() {
            reach(i + 1);
        }
    }
    Ok(())
}

/// How many instructions it counts for.
fn own(line: &Line) -> u32 {
    use Mnemonic as M;
    if line.role == Role::Bounded {
        return REP_LIMIT.unsigned_abs();
    }
    match line.instruction.mnemonic() {
        M::Div | M::Idiv | M::Rdrand | M::Rdseed => SLOW_WORK,
        M::Clflush | M::Clflushopt | M::Clwb | M::Mfence | M::Pause => SLOW_WORK,
        _ => 1,
    }
}

/// Whether it is that part of a poll.
fn is_taking_off(line: &Line) -> bool {
    line.role == Role::Poll && line.memory == Memory::Frame(BUDGET)
}

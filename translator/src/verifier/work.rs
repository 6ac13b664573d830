//! How much is executed between two polls, at most.

use super::code::{Code, Jump, Role};
use super::{Rule, VerifyError};
use crate::frame::{REP_LIMIT, WORK_LIMIT};

/// Proves that no path from the entry or behind a poll to the next poll, or
/// out, is longer than [`WORK_LIMIT`] instructions, repetitions counted.
///
/// Jumps backward end a poll (that is [`Rule::Loop`], which is proven first),
/// so what is left has no loops, and the longest paths from the last line to the
/// first follow from those behind them.
pub(super) fn prove(code: &Code) -> Result<(), Box<VerifyError>> {
    let mut behind = vec![0u32; code.lines.len() + 1];
    for (i, line) in code.lines.iter().enumerate().rev() {
        let refused = |detail| Err(code.error(i, (Rule::Work, detail)));
        let mut longest = if line.falls_through() { behind[i + 1] } else { 0 };
        match line.jump {
            // The next stretch begins there, with its own bound.
            Jump::To(_) if line.role == Role::BackEdge => {}
            Jump::To(target) => longest = longest.max(behind[target]),
            Jump::None | Jump::Out => {}
        }
        if let Some(landing) = line.landing {
            if landing <= i {
                return refused("a fault continues before the instruction");
            }
            longest = longest.max(behind[landing]);
        }
        let own = if line.role == Role::Bounded { REP_LIMIT.unsigned_abs() } else { 1 };
        behind[i] = longest + own;
        if behind[i] > WORK_LIMIT {
            return refused("too much can be executed without a poll from here");
        }
    }
    Ok(())
}

//! The fixed sequences, which may be entered only at their start: polls, and
//! the guards before locked and repeated instructions.

use super::code::{Jump, Line, Memory, Role};
use super::operands;
use crate::frame;
use iced_x86::{Code as Op, Instruction, MemoryOperand, Mnemonic, OpKind, Register};

/// Restoring flags and registers between a poll and its jump takes no more.
const MAX_RESTORES: usize = 8;
/// Instructions of a poll without restores and jump.
const POLL: usize = 9;
/// Which of them takes off the budget.
const BUDGET_AT: usize = 7;

/// Gives the lines of every sequence their roles.
pub(super) fn find(lines: &mut [Line]) {
    for i in 0..lines.len() {
        if lines[i].memory == Memory::Frame(frame::POLL_FLAGS) {
            if let Some(last) =
                poll(&lines[i..]).filter(|last| entered_at_start(&lines[i..=i + last]))
            {
                lines[i..i + POLL].iter_mut().for_each(|line| line.role = Role::Poll);
                lines[i + last].role = Role::BackEdge;
            }
        } else if is_locked(&lines[i]) {
            if i >= 4 && lock_guard(&lines[i - 4..=i]) && entered_at_start(&lines[i - 4..=i]) {
                lines[i].role = Role::Guarded;
            }
        } else if operands::is_repeated(&lines[i].instruction)
            && i >= 2
            && rep_bound(&lines[i - 2], &lines[i - 1])
            && entered_at_start(&lines[i - 2..=i])
        {
            lines[i].role = Role::Bounded;
        }
    }
}

/// Whether the access is locked: `xchg` is without saying so.
pub(super) fn is_locked(line: &Line) -> bool {
    line.instruction.has_lock_prefix() || line.form.locks
}

/// Whether nothing jumps behind the first of `lines`.
fn entered_at_start(lines: &[Line]) -> bool {
    lines[1..].iter().all(|line| !line.target)
}

/// Where the jump is that ends the poll at the beginning of `lines`, if that
/// is one.
fn poll(lines: &[Line]) -> Option<usize> {
    let t = lines[0].instruction.op0_register();
    let field = |offset| MemoryOperand::with_base_displ(Register::RSP, i64::from(offset));
    let pointed = MemoryOperand::with_base(t);
    let t32 = t.full_register32();
    // Wherever it leads.
    let branch = |code| Instruction::with_branch(code, 0);
    let expected = [
        Instruction::with2(Op::Mov_r64_rm64, t, field(frame::POLL_FLAGS)),
        Instruction::with2(Op::Mov_r32_rm32, t32, pointed),
        Instruction::with2(Op::Test_rm32_r32, field(frame::POLL_MASK), t32),
        branch(Op::Jne_rel32_64),
        Instruction::with2(Op::Mov_r64_rm64, t, field(frame::POLL_SOFTIRQ)),
        Instruction::with2(Op::Cmp_rm16_imm8, pointed, 0),
        branch(Op::Jne_rel32_64),
        // How much is for the rule Work.
        Instruction::with2(
            Op::Sub_rm32_imm32,
            field(frame::BUDGET),
            lines.get(BUDGET_AT)?.instruction.immediate32(),
        ),
        branch(Op::Js_rel32_64),
    ];
    for (line, expected) in lines.iter().zip(&expected) {
        let expected = expected.as_ref().ok()?;
        let same = if expected.is_jcc_short_or_near() {
            line.instruction.is_jcc_short_or_near()
                && line.instruction.condition_code() == expected.condition_code()
                && matches!(line.jump, Jump::To(_))
        } else {
            same(&line.instruction, expected)
        };
        if !same {
            return None;
        }
    }
    let restores = lines.get(POLL..)?.iter().take(MAX_RESTORES).take_while(|line| is_restore(line));
    let last = POLL + restores.count();
    let line = lines.get(last)?;
    let ends = !line.falls_through() && matches!(line.jump, Jump::To(_));
    ends.then_some(last)
}

/// Whether both are the same, however long the displacement was encoded.
fn same(decoded: &Instruction, expected: &Instruction) -> bool {
    let mut decoded = *decoded;
    decoded.set_memory_displ_size(expected.memory_displ_size());
    decoded == *expected
}

/// What may stand between a poll and its jump: it brings the flags and
/// registers back, neither faults nor takes long.
fn is_restore(line: &Line) -> bool {
    let spills = frame::SPILL..frame::spill(frame::SPILL_SLOTS - 1) + 1;
    match (line.instruction.mnemonic(), line.memory) {
        (Mnemonic::Mov, Memory::Frame(offset)) => {
            spills.contains(&offset) && line.instruction.code() == Op::Mov_r64_rm64
        }
        (
            Mnemonic::Sahf
            | Mnemonic::Lea
            | Mnemonic::Mov
            | Mnemonic::Add
            | Mnemonic::Sub
            | Mnemonic::Xor
            | Mnemonic::Cmp
            | Mnemonic::Test,
            Memory::None,
        ) => true,
        _ => false,
    }
}

/// Whether the last of `lines` is an access through `[t]` to bytes of one
/// cache line: the others copy t to u and leave if u is too near to its end.
fn lock_guard(lines: &[Line]) -> bool {
    let [copy, mask, compare, branch, access] = lines else { return false };
    let (copy, access) = (&copy.instruction, &access.instruction);
    let (t, u) = (access.memory_base(), copy.op0_register().full_register());
    let plain = t.is_gpr64()
        && access.memory_index() == Register::None
        && access.memory_displacement64() == 0;
    let limit = i64::from(frame::CACHE_LINE) - access.memory_size().size() as i64;
    let from = match copy.code() {
        Op::Mov_r64_rm64 | Op::Mov_rm64_r64 => t,
        Op::Mov_r32_rm32 | Op::Mov_rm32_r32 => t.full_register32(),
        _ => return false,
    };
    let copied = copy.op0_kind() == OpKind::Register
        && copy.op1_kind() == OpKind::Register
        && copy.op1_register() == from;
    let on_u = |line: &Line, mnemonic, value| {
        let instruction = &line.instruction;
        instruction.mnemonic() == mnemonic
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register() == u.full_register32()
            && immediate(instruction, 1) == Some(value)
    };
    plain
        && copied
        && u != t
        && limit >= 0
        && on_u(mask, Mnemonic::And, i64::from(frame::CACHE_LINE) - 1)
        && on_u(compare, Mnemonic::Cmp, limit)
        && branch.instruction.mnemonic() == Mnemonic::Ja
}

/// Whether both leave if rcx is too high.
fn rep_bound(compare: &Line, branch: &Line) -> bool {
    let compare = &compare.instruction;
    let limits = 0..=i64::from(frame::REP_LIMIT);
    compare.mnemonic() == Mnemonic::Cmp
        && compare.op0_kind() == OpKind::Register
        && compare.op0_register() == Register::RCX
        && immediate(compare, 1).is_some_and(|limit| limits.contains(&limit))
        && branch.instruction.mnemonic() == Mnemonic::Ja
}

/// The sign-extended immediate of operand `operand`.
pub(super) fn immediate(instruction: &Instruction, operand: u32) -> Option<i64> {
    instruction.try_immediate(operand).ok().map(|value| value as i64)
}

//! Which operands an allowed instruction may have, whatever the state.

use super::form::Form;
use super::{Rule, Violation};
use iced_x86::{Instruction, OpKind, Register};

/// Whether an operand is an explicit memory operand.
pub(super) fn has_memory(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Memory
        || instruction.op1_kind() == OpKind::Memory
        || instruction.op2_kind() == OpKind::Memory
        || instruction.op3_kind() == OpKind::Memory
}

/// Whether a string instruction is repeated.
pub(super) fn is_repeated(instruction: &Instruction) -> bool {
    (instruction.has_rep_prefix() || instruction.has_repne_prefix())
        && instruction.is_string_instruction()
}

/// Checks prefixes, and the shape of memory operands.
pub(super) fn check(instruction: &Instruction, form: &Form) -> Result<(), Violation> {
    if instruction.segment_prefix() != Register::None && !form.touches && !form.string {
        return Err((Rule::Encoding, "a segment prefix without meaning"));
    }
    if (instruction.has_rep_prefix() || instruction.has_repne_prefix()) && !form.string {
        return Err((Rule::Encoding, "a repeat prefix without meaning"));
    }
    if instruction.has_xacquire_prefix() || instruction.has_xrelease_prefix() {
        return Err((Rule::Instruction, "a lock elision prefix"));
    }
    if form.string {
        return string(instruction);
    }
    if form.memory && !form.idle {
        return memory(instruction, form);
    }
    Ok(())
}

/// The operands of a string instruction: `[rsi]`, `[rdi]` and a part of rax.
fn string(instruction: &Instruction) -> Result<(), Violation> {
    let listed =
        |kind| matches!(kind, OpKind::Register | OpKind::MemorySegRSI | OpKind::MemoryESRDI);
    if instruction.segment_prefix() != Register::None || !instruction.op_kinds().all(listed) {
        return Err((Rule::MemoryForm, "a string instruction with a segment or 32-bit addressing"));
    }
    Ok(())
}

/// The shape of a memory operand: `[base + index * scale + displacement]` or
/// `fs:[disp32]`. A vector as index (gathers) is many addresses, and a 32-bit
/// register wraps where the proof does not.
fn memory(instruction: &Instruction, form: &Form) -> Result<(), Violation> {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let segment = instruction.segment_prefix();
    if base == Register::RIP || base == Register::EIP {
        return Err((Rule::MemoryForm, "an address relative to kernel code"));
    }
    if !form.touches {
        if base == Register::RSP {
            return Err((Rule::StackPointer, "the address of the frame"));
        }
        let wide = |r: Register| r == Register::None || r.is_gpr64();
        if !wide(base) || !wide(index) {
            return Err((Rule::MemoryForm, "lea with 32-bit addressing"));
        }
        return Ok(());
    }
    if index != Register::None && (!index.is_gpr64() || base == Register::RSP) {
        return Err((Rule::MemoryForm, "an index of the frame, or of another width"));
    }
    match (base, segment) {
        // iced counts 8 bytes for a displacement without base in 64-bit
        // addressing, 4 behind an address-size prefix. `mov` also knows a
        // displacement of really 64 bits, which reaches everything.
        (Register::None, Register::FS)
            if index == Register::None
                && instruction.memory_displ_size() == 8
                && i32::try_from(instruction.memory_displacement64() as i64).is_ok() =>
        {
            Ok(())
        }
        (base, Register::None) if base.is_gpr64() => Ok(()),
        _ => Err((Rule::MemoryForm, "neither [base+index*scale+disp32] nor fs:[disp32]")),
    }
}

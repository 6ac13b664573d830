//! Which operands an allowed instruction may have, whatever the state.

use super::{Rule, Violation};
use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

/// A direct jump, conditional or not.
pub(super) fn is_jump(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
    )
}

/// Whether the access is locked: `xchg` is without saying so.
pub(super) fn is_locked(instruction: &Instruction) -> bool {
    let memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
    instruction.has_lock_prefix() || (instruction.mnemonic() == Mnemonic::Xchg && memory)
}

/// Whether a string instruction is repeated.
pub(super) fn is_repeated(instruction: &Instruction) -> bool {
    instruction.is_string_instruction()
        && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
}

/// Whether operand 0 or another is an explicit memory operand.
pub(super) fn has_memory(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| kind == OpKind::Memory)
}

/// Checks operand kinds and registers, and the shape of a memory operand.
pub(super) fn check(instruction: &Instruction) -> Result<(), Violation> {
    let mnemonic = instruction.mnemonic();
    let string = instruction.is_string_instruction();
    for (operand, kind) in instruction.op_kinds().enumerate() {
        match kind {
            OpKind::Register => {
                let register = instruction.op_register(operand as u32);
                if register.full_register() == Register::RSP {
                    return Err((Rule::StackPointer, "rsp as an operand"));
                }
                if !(register.is_gpr() || register.is_vector_register() || register.is_k()) {
                    return Err((Rule::Register, "not a general, vector or mask register"));
                }
            }
            OpKind::Memory => memory(instruction)?,
            OpKind::NearBranch64 if is_jump(instruction) => {}
            OpKind::MemorySegRSI | OpKind::MemoryESRDI if string => {
                if instruction.segment_prefix() != Register::None {
                    return Err((Rule::MemoryForm, "a string instruction with a segment"));
                }
            }
            OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => {}
            _ => return Err((Rule::MemoryForm, "an operand of a kind that is not listed")),
        }
    }
    if is_jump(instruction) && instruction.op0_kind() != OpKind::NearBranch64 {
        return Err((Rule::Instruction, "a jump that is not direct"));
    }
    let accesses = has_memory(instruction) && mnemonic != Mnemonic::Lea;
    if instruction.segment_prefix() != Register::None && !accesses {
        return Err((Rule::Encoding, "a segment prefix without meaning"));
    }
    if (instruction.has_rep_prefix() || instruction.has_repne_prefix()) && !string {
        return Err((Rule::Encoding, "a repeat prefix without meaning"));
    }
    if instruction.has_xacquire_prefix() || instruction.has_xrelease_prefix() {
        return Err((Rule::Instruction, "a lock elision prefix"));
    }
    // A register bit offset reaches memory far outside the operand.
    let bits = matches!(mnemonic, Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    if bits && has_memory(instruction) && instruction.op1_kind() == OpKind::Register {
        return Err((Rule::MemoryForm, "a bit string in memory"));
    }
    Ok(())
}

/// The shape of a memory operand: `[base + index * scale + displacement]` or
/// `fs:[disp32]`. A vector as index (gathers) is many addresses, and a 32-bit
/// register wraps where the proof does not.
fn memory(instruction: &Instruction) -> Result<(), Violation> {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let segment = instruction.segment_prefix();
    if base == Register::RIP || base == Register::EIP {
        return Err((Rule::MemoryForm, "an address relative to kernel code"));
    }
    let lea = instruction.mnemonic() == Mnemonic::Lea;
    if lea {
        if base == Register::RSP {
            return Err((Rule::StackPointer, "the address of the frame"));
        }
        let wide = |r: Register| r == Register::None || r.is_gpr64();
        if segment != Register::None || !wide(base) || !wide(index) {
            return Err((Rule::MemoryForm, "lea with a segment or 32-bit addressing"));
        }
        return Ok(());
    }
    if instruction.mnemonic() == Mnemonic::Nop {
        // Accesses nothing, whatever it names.
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

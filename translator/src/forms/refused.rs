//! What is never translated, each for a reason that has a name.

use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind, Register};

use crate::fragment::Unsupported;

/// Why no translation of the instruction exists, whatever its operands.
pub(super) fn by_nature(instruction: &Instruction) -> Option<Unsupported> {
    let mnemonic = instruction.mnemonic();
    if instruction.is_invalid() {
        Some(Unsupported::Undecodable)
    } else if traps(mnemonic) {
        Some(Unsupported::Trap)
    } else if whole_flags(mnemonic) {
        Some(Unsupported::WholeFlags)
    } else if transaction(mnemonic) {
        Some(Unsupported::Transaction)
    } else if kernel_managed(mnemonic) {
        Some(Unsupported::KernelManaged)
    } else if uses_other_segment(instruction) {
        Some(Unsupported::Segment)
    } else if is_x87(instruction) {
        Some(Unsupported::X87)
    } else if instruction.is_vsib() || masked_by_vector(mnemonic) {
        Some(Unsupported::ElementAccess)
    } else {
        None
    }
}

/// Privileged, or a fault or virtual-machine exit by nature.
fn traps(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Int
            | M::Int1
            | M::Int3
            | M::Into
            | M::Ud0
            | M::Ud1
            | M::Ud2
            | M::Hlt
            | M::Cpuid
            | M::Xsetbv
            | M::In
            | M::Out
            | M::Insb
            | M::Insd
            | M::Insw
            | M::Outsb
            | M::Outsd
            | M::Outsw
            | M::Rdmsr
            | M::Wrmsr
            | M::Cli
            | M::Sti
            | M::Sysenter
            | M::Sysexit
            | M::Sysret
            | M::Rdpmc
            | M::Iretq
            | M::Iretd
            | M::Iret
            | M::Clts
            | M::Swapgs
            | M::Invlpg
            | M::Wbinvd
            | M::Invd
            // With UMIP.
            | M::Sgdt
            | M::Sidt
            | M::Sldt
            | M::Smsw
            | M::Str
    )
}

fn whole_flags(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Pushfq | M::Popfq | M::Pushf | M::Popf | M::Std)
}

fn transaction(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Xbegin | M::Xend | M::Xabort | M::Xsusldtrk | M::Xresldtrk)
}

fn kernel_managed(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Xgetbv
            | M::Xsave
            | M::Xsave64
            | M::Xsavec
            | M::Xsavec64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xrstor
            | M::Xrstor64
            | M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Rdpkru
            | M::Wrpkru
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Rdgsbase
            | M::Incsspd
            | M::Incsspq
            | M::Saveprevssp
            | M::Rstorssp
            | M::Wrssd
            | M::Wrssq
    )
}

/// `gs`, and everything far about control flow.
fn uses_other_segment(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    instruction.segment_prefix() == Register::GS
        || instruction.is_jmp_far()
        || instruction.is_jmp_far_indirect()
        || instruction.is_call_far()
        || instruction.is_call_far_indirect()
        || matches!(instruction.mnemonic(), M::Retf | M::Lfs | M::Lgs | M::Lss)
        || (0..instruction.op_count()).any(|i| {
            instruction.op_kind(i) == OpKind::Register
                && instruction.op_register(i).is_segment_register()
        })
}

/// x87 keeps the address of its last instruction for the program to see, and
/// a fragment's address is the kernel's. MMX registers are the x87 ones.
fn is_x87(instruction: &Instruction) -> bool {
    use CpuidFeature as F;
    let state = |feature: &CpuidFeature| {
        matches!(feature, F::FPU | F::FPU287 | F::FPU387 | F::MMX | F::D3NOW | F::D3NOWEXT)
    };
    let register = |i| {
        instruction.op_kind(i) == OpKind::Register
            && (instruction.op_register(i).is_mm() || instruction.op_register(i).is_st())
    };
    instruction.cpuid_features().iter().any(state)
        || (0..instruction.op_count()).any(register)
        // These enter MMX state even with the operand in memory.
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd | Mnemonic::Wait
        )
}

/// Moves under a mask in a vector register. They may touch no memory at all,
/// so nothing follows for the address from their not having faulted.
fn masked_by_vector(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Maskmovdqu
            | M::Vmaskmovdqu
            | M::Vmaskmovps
            | M::Vmaskmovpd
            | M::Vpmaskmovd
            | M::Vpmaskmovq
    )
}

//! The allow-list: which user instructions are translated, in which form.
//!
//! There is no pass-through: [`classify`] names the way an instruction is
//! lowered or the reason why it ends the fragment.

mod avx;
mod avx_float;
mod refused;
mod sse;

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::cpu::CpuFeatures;
use crate::fragment::Unsupported;
use crate::regs;

/// How an instruction is lowered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Copied with registers and the memory operand replaced.
    Plain,
    /// Like [`Class::Plain`], but locked: its operand must lie inside one
    /// cache line.
    Locked,
    /// Has no effect on the user's state; nothing is emitted.
    Hint,
    /// `bt` and its kin on memory, with the bit offset in a register.
    BitString,
    /// `lea`: an address, no access.
    Lea,
    /// Changes the user's stack pointer as an ordinary operand.
    WritesRsp,
    /// `push` of a register, an immediate or memory.
    Push,
    /// `pop` into a register or memory.
    Pop,
    /// `leave`.
    Leave,
    /// A string instruction with its implicit memory operands.
    String,
    /// `jcc rel`.
    Branch,
    /// `jrcxz`, `jecxz` or `loop`, also with a condition.
    CounterBranch,
    /// `jmp rel`.
    Jump,
    /// `call rel`.
    Call,
    /// `jmp` through a register or memory.
    IndirectJump,
    /// `call` through a register or memory.
    IndirectCall,
    /// `ret`, with or without an immediate.
    Return,
    /// `syscall`: the SYSCALL exit.
    Syscall,
}

/// An allowed instruction's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    /// How it is lowered.
    pub class: Class,
    /// May raise #DE or #XM without touching memory.
    pub raises: bool,
}

/// Whether the instruction ends its basic block.
impl Class {
    pub(crate) fn ends_block(self) -> bool {
        matches!(
            self,
            Class::Branch
                | Class::CounterBranch
                | Class::Jump
                | Class::Call
                | Class::IndirectJump
                | Class::IndirectCall
                | Class::Return
                | Class::Syscall
        )
    }
}

/// Finds the form of a decoded instruction, or why it is not allowed.
pub(crate) fn classify(instruction: &Instruction, cpu: CpuFeatures) -> Result<Form, Unsupported> {
    if let Some(reason) = refused::by_nature(instruction) {
        return Err(reason);
    }
    let form = allowed_form(instruction)?;
    if cpu.executes(instruction) { Ok(form) } else { Err(Unsupported::CpuFeature) }
}

/// The form of an instruction that does not trap, on a CPU that has it.
fn allowed_form(instruction: &Instruction) -> Result<Form, Unsupported> {
    use Mnemonic as M;
    let mnemonic = instruction.mnemonic();
    let form = |class| Ok(Form { class, raises: false });
    if instruction.has_xacquire_prefix() || instruction.has_xrelease_prefix() {
        return Err(Unsupported::Form);
    }

    match mnemonic {
        // A 0x67 or operand-size prefix on these changes more than a width.
        M::Syscall => return form(Class::Syscall),
        // Without a shadow stack `rdssp` does nothing, and a thread that
        // has one does not ride.
        M::Nop
        | M::Endbr64
        | M::Endbr32
        | M::Rdsspd
        | M::Rdsspq
        | M::Cld
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchnta
        | M::Prefetchw => return form(Class::Hint),
        M::Jmp | M::Call | M::Ret => return control(instruction),
        M::Jrcxz | M::Jecxz | M::Loop | M::Loope | M::Loopne => {
            let known = matches!(
                instruction.code(),
                Code::Jrcxz_rel8_64
                    | Code::Jecxz_rel8_64
                    | Code::Loop_rel8_64_RCX
                    | Code::Loope_rel8_64_RCX
                    | Code::Loopne_rel8_64_RCX
            );
            return if known { form(Class::CounterBranch) } else { Err(Unsupported::Form) };
        }
        M::Push | M::Pop | M::Leave => return stack(instruction),
        _ => {}
    }
    if instruction.is_jcc_short_or_near() {
        return if instruction.op0_kind() == OpKind::NearBranch64 {
            form(Class::Branch)
        } else {
            Err(Unsupported::Segment)
        };
    }
    if instruction.is_string_instruction() {
        return string(instruction);
    }

    let raises =
        matches!(mnemonic, M::Div | M::Idiv) || sse::float(mnemonic) || avx_float::float(mnemonic);
    let known = raises
        || integer(mnemonic)
        || bit_manipulation(mnemonic)
        || sse::integer(mnemonic)
        || sse::moves(mnemonic)
        || avx::integer(mnemonic)
        || avx_float::moves(mnemonic)
        || avx::mask(mnemonic)
        || other(mnemonic);
    if !known || !operands_allowed(instruction) {
        return Err(Unsupported::Form);
    }
    plain(instruction, raises)
}

fn control(instruction: &Instruction) -> Result<Form, Unsupported> {
    let class = match instruction.code() {
        Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => Class::Jump,
        Code::Call_rel32_64 => Class::Call,
        Code::Jmp_rm64 => Class::IndirectJump,
        Code::Call_rm64 => Class::IndirectCall,
        Code::Retnq | Code::Retnq_imm16 => Class::Return,
        _ => return Err(Unsupported::Segment),
    };
    Ok(Form { class, raises: false })
}

fn stack(instruction: &Instruction) -> Result<Form, Unsupported> {
    let class = match instruction.code() {
        Code::Push_r64
        | Code::Pushq_imm8
        | Code::Pushq_imm32
        | Code::Push_rm64
        | Code::Push_r16
        | Code::Push_rm16
        | Code::Pushw_imm8
        | Code::Push_imm16 => Class::Push,
        Code::Pop_r64 | Code::Pop_rm64 => Class::Pop,
        Code::Pop_r16 | Code::Pop_rm16 if !writes_rsp(instruction) => Class::Pop,
        Code::Leaveq => Class::Leave,
        _ => return Err(Unsupported::Form),
    };
    Ok(Form { class, raises: false })
}

/// `movs`, `stos`, `lods`, `scas`, `cmps` with 64-bit addresses in DS/ES.
fn string(instruction: &Instruction) -> Result<Form, Unsupported> {
    use Mnemonic as M;
    let known = match instruction.mnemonic() {
        // What F2 repeats here is not defined.
        M::Movsb
        | M::Movsw
        | M::Movsd
        | M::Movsq
        | M::Stosb
        | M::Stosw
        | M::Stosd
        | M::Stosq
        | M::Lodsb
        | M::Lodsw
        | M::Lodsd
        | M::Lodsq => !instruction.has_repne_prefix(),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq | M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => {
            true
        }
        _ => false,
    };
    let wide = (0..instruction.op_count()).all(|i| {
        matches!(
            instruction.op_kind(i),
            OpKind::Register | OpKind::MemorySegRSI | OpKind::MemoryESRDI
        )
    });
    if !known || !wide {
        return Err(Unsupported::Form);
    }
    if instruction.segment_prefix() == Register::FS {
        return Err(Unsupported::Segment);
    }
    Ok(Form { class: Class::String, raises: false })
}

/// The last step for instructions whose mnemonic and operand kinds are known.
fn plain(instruction: &Instruction, raises: bool) -> Result<Form, Unsupported> {
    use Mnemonic as M;
    let memory = memory_operand(instruction);
    let mnemonic = instruction.mnemonic();
    if instruction.has_rep_prefix() || instruction.has_repne_prefix() {
        // Ignored today, perhaps something else tomorrow.
        return Err(Unsupported::Form);
    }
    if matches!(mnemonic, M::Bt | M::Bts | M::Btr | M::Btc)
        && memory.is_some()
        && instruction.op1_kind() == OpKind::Register
    {
        // With 32-bit addressing it is not told where the sum wraps.
        let wide = |part: Register| part == Register::None || !part.is_gpr32();
        let plain = !instruction.has_lock_prefix()
            && wide(instruction.memory_base())
            && wide(instruction.memory_index());
        return if plain {
            Ok(Form { class: Class::BitString, raises })
        } else {
            Err(Unsupported::Form)
        };
    }
    if mnemonic == M::Lea {
        let class = if writes_rsp(instruction) { Class::WritesRsp } else { Class::Lea };
        return if class == Class::Lea || instruction.op0_register() == Register::RSP {
            Ok(Form { class, raises })
        } else {
            Err(Unsupported::Form)
        };
    }
    if writes_rsp(instruction) {
        let known = match mnemonic {
            M::Mov | M::Add | M::Sub | M::And | M::Or | M::Xor => {
                instruction.op0_register() == Register::RSP
            }
            M::Xchg => memory.is_none() && instruction.op0_register().is_gpr64(),
            _ => false,
        };
        return if known {
            Ok(Form { class: Class::WritesRsp, raises })
        } else {
            Err(Unsupported::Form)
        };
    }
    let locked = instruction.has_lock_prefix() || (mnemonic == M::Xchg && memory.is_some());
    if locked && memory != Some(0) && mnemonic != M::Xchg {
        return Err(Unsupported::Form);
    }
    // The guard before the access leaves its own carry, and takes the
    // register that a high byte would need beside a REX prefix.
    let high_byte = (0..instruction.op_count()).any(|i| {
        instruction.op_kind(i) == OpKind::Register && regs::is_high_byte(instruction.op_register(i))
    });
    if locked && (matches!(mnemonic, M::Adc | M::Sbb) || high_byte) {
        return Err(Unsupported::Form);
    }
    Ok(Form { class: if locked { Class::Locked } else { Class::Plain }, raises })
}

/// Index of the explicit memory operand.
pub(crate) fn memory_operand(instruction: &Instruction) -> Option<u32> {
    (0..instruction.op_count()).find(|&i| instruction.op_kind(i) == OpKind::Memory)
}

/// Whether `rsp`, in any width, is the first operand and written. None of
/// the listed mnemonics writes another explicit GPR operand but `xchg`,
/// `xadd` and `mulx`, whose other operand counts too.
fn writes_rsp(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let is_rsp = |i| {
        instruction.op_kind(i) == OpKind::Register
            && instruction.op_register(i).full_register() == Register::RSP
    };
    match instruction.mnemonic() {
        M::Cmp | M::Test | M::Bt | M::Mul | M::Div | M::Idiv => false,
        M::Imul if instruction.op_count() == 1 => false,
        M::Xchg | M::Xadd | M::Mulx => is_rsp(0) || is_rsp(1),
        _ => instruction.op_count() > 0 && is_rsp(0),
    }
}

/// Only general, vector and mask registers, immediates, and one memory
/// operand with an ordinary address.
fn operands_allowed(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).all(|i| match instruction.op_kind(i) {
        OpKind::Register => {
            let register = instruction.op_register(i);
            register.is_gpr() || register.is_vector_register() || register.is_k()
        }
        OpKind::Memory => !instruction.memory_index().is_vector_register(),
        OpKind::Immediate8
        | OpKind::Immediate8_2nd
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => true,
        _ => false,
    })
}

/// Integer instructions of baseline x86-64.
fn integer(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Movnti
            | M::Lea
            | M::Add
            | M::Adc
            | M::Sub
            | M::Sbb
            | M::And
            | M::Or
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Imul
            | M::Mul
            | M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd
            | M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Bsf
            | M::Bsr
            | M::Bswap
            | M::Cbw
            | M::Cwde
            | M::Cdqe
            | M::Cwd
            | M::Cdq
            | M::Cqo
            | M::Xchg
            | M::Xadd
            | M::Cmpxchg
            | M::Cmpxchg8b
            | M::Cmpxchg16b
            | M::Pause
            | M::Lfence
            | M::Mfence
            | M::Sfence
            | M::Rdtsc
            | M::Rdtscp
            | M::Sahf
            | M::Lahf
            | M::Clc
            | M::Stc
            | M::Cmc
            | M::Cmova
            | M::Cmovae
            | M::Cmovb
            | M::Cmovbe
            | M::Cmove
            | M::Cmovg
            | M::Cmovge
            | M::Cmovl
            | M::Cmovle
            | M::Cmovne
            | M::Cmovno
            | M::Cmovnp
            | M::Cmovns
            | M::Cmovo
            | M::Cmovp
            | M::Cmovs
            | M::Seta
            | M::Setae
            | M::Setb
            | M::Setbe
            | M::Sete
            | M::Setg
            | M::Setge
            | M::Setl
            | M::Setle
            | M::Setne
            | M::Setno
            | M::Setnp
            | M::Setns
            | M::Seto
            | M::Setp
            | M::Sets
    )
}

/// Later general-register extensions; `cpu` decides whether they exist.
fn bit_manipulation(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Popcnt
            | M::Lzcnt
            | M::Tzcnt
            | M::Movbe
            | M::Crc32
            | M::Andn
            | M::Bextr
            | M::Blsi
            | M::Blsr
            | M::Blsmsk
            | M::Bzhi
            | M::Pdep
            | M::Pext
            | M::Rorx
            | M::Sarx
            | M::Shlx
            | M::Shrx
            | M::Mulx
            | M::Adcx
            | M::Adox
            | M::Movdiri
    )
}

/// What belongs to none of the other lists.
fn other(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Stmxcsr
            | M::Vstmxcsr
            | M::Ldmxcsr
            | M::Vldmxcsr
            | M::Rdrand
            | M::Rdseed
            | M::Rdpid
            | M::Rdfsbase
            | M::Clflush
            | M::Clflushopt
            | M::Clwb
            | M::Xtest
    )
}

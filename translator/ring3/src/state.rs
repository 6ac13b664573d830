//! The user-visible CPU state that a test sets and compares.

/// Flags that user code reads and writes: CF, PF, AF, ZF, SF, DF and OF.
pub const USER_FLAGS: u64 = 0xcd5;
/// The arithmetic ones of them.
pub const ARITHMETIC_FLAGS: u64 = 0x8d5;

/// Index into [`CpuState::gpr`] by name, in encoding order (as iced-x86).
#[allow(missing_docs, reason = "the names are the registers' names")]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
    pub const R9: usize = 9;
    pub const R10: usize = 10;
    pub const R11: usize = 11;
    pub const R12: usize = 12;
    pub const R13: usize = 13;
    pub const R14: usize = 14;
    pub const R15: usize = 15;
}

/// Names in the order of [`CpuState::gpr`].
pub const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Vector registers. Parts that the CPU lacks read as zero and are ignored
/// when set.
#[derive(Clone, PartialEq, Eq)]
pub struct Vectors {
    /// `zmm0`-`zmm31`, little endian; `xmm`/`ymm` are their low parts.
    pub zmm: [[u8; 64]; 32],
    /// `k0`-`k7`.
    pub k: [u64; 8],
    /// Control and status of SSE arithmetic.
    pub mxcsr: u32,
}

/// MXCSR after reset: all exceptions masked, round to nearest.
pub const MXCSR_DEFAULT: u32 = 0x1f80;

impl Default for Vectors {
    fn default() -> Self {
        Self { zmm: [[0; 64]; 32], k: [0; 8], mxcsr: MXCSR_DEFAULT }
    }
}

impl std::fmt::Debug for Vectors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "mxcsr {:#x}", self.mxcsr)?;
        for (i, z) in self.zmm.iter().enumerate().filter(|(_, z)| z.iter().any(|b| *b != 0)) {
            writeln!(
                f,
                "zmm{i} {:032x}",
                u128::from_le_bytes(z[..16].try_into().expect("16 bytes"))
            )?;
        }
        Ok(())
    }
}

/// What user code can see of the CPU, apart from memory and the instruction
/// pointer.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct CpuState {
    /// General registers in encoding order: rax, rcx, rdx, rbx, rsp, ...
    pub gpr: [u64; 16],
    /// Flags; only [`USER_FLAGS`] are set and reported.
    pub rflags: u64,
    /// Vector registers.
    pub vectors: Vectors,
}

impl std::fmt::Debug for CpuState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, value) in GPR_NAMES.iter().zip(&self.gpr) {
            writeln!(f, "{name} {value:#018x}")?;
        }
        writeln!(f, "rflags {:#x}", self.rflags)?;
        self.vectors.fmt(f)
    }
}

impl CpuState {
    /// Names each difference to `other` ("rax: 0x1 != 0x2"), flags compared
    /// under `flags_mask`. Empty if there is none.
    #[must_use]
    pub fn differences(&self, other: &Self, flags_mask: u64) -> Vec<String> {
        let mut out = Vec::new();
        for (i, name) in GPR_NAMES.iter().enumerate() {
            if self.gpr[i] != other.gpr[i] {
                out.push(format!("{name}: {:#x} != {:#x}", self.gpr[i], other.gpr[i]));
            }
        }
        if (self.rflags ^ other.rflags) & flags_mask != 0 {
            let (a, b) = (self.rflags & flags_mask, other.rflags & flags_mask);
            out.push(format!("rflags: {a:#x} != {b:#x}"));
        }
        for i in 0..32 {
            if self.vectors.zmm[i] != other.vectors.zmm[i] {
                out.push(format!(
                    "zmm{i}: {:02x?} != {:02x?}",
                    self.vectors.zmm[i], other.vectors.zmm[i]
                ));
            }
        }
        if self.vectors.k != other.vectors.k {
            out.push(format!("k: {:x?} != {:x?}", self.vectors.k, other.vectors.k));
        }
        if self.vectors.mxcsr != other.vectors.mxcsr {
            out.push(format!("mxcsr: {:#x} != {:#x}", self.vectors.mxcsr, other.vectors.mxcsr));
        }
        out
    }
}

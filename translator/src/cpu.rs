//! Which instruction-set extensions a translation may use.

use iced_x86::{CpuidFeature, Instruction};

/// Extensions that exist beyond baseline x86-64, one bit each in
/// [`CpuFeatures`].
///
/// The translator copies user instructions, so a fragment needs what the
/// program itself needs; a feature absent here turns the instructions of that
/// extension into UNSUPPORTED exits.
macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $iced:ident, $detect:expr;)*) => {
        /// A set of instruction-set extensions; baseline x86-64 is implied.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct CpuFeatures(u64);

        impl CpuFeatures {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*

            /// Every extension the allow-list knows, whatever this machine has.
            #[must_use]
            pub const fn all() -> Self {
                Self(0 $(| Self::$name.0)*)
            }

            /// The extensions of the machine this runs on, by `cpuid`.
            ///
            /// FSGSBASE is what the CPU can do; the kernel may have it
            /// disabled, which the caller knows better and
            /// can [`CpuFeatures::without`].
            #[cfg(target_arch = "x86_64")]
            #[must_use]
            pub fn host() -> Self {
                let mut set = Self::baseline();
                $(if $detect { set = set.with(Self::$name); })*
                set
            }

            fn of_iced(feature: CpuidFeature) -> Option<Self> {
                match feature {
                    $(CpuidFeature::$iced => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

macro_rules! detect {
    ($name:tt) => {
        std::arch::is_x86_feature_detected!($name)
    };
}

features! {
    /// SSE3.
    SSE3 = 0, SSE3, detect!("sse3");
    /// SSSE3.
    SSSE3 = 1, SSSE3, detect!("ssse3");
    /// SSE4.1.
    SSE4_1 = 2, SSE4_1, detect!("sse4.1");
    /// SSE4.2.
    SSE4_2 = 3, SSE4_2, detect!("sse4.2");
    /// POPCNT.
    POPCNT = 4, POPCNT, detect!("popcnt");
    /// LZCNT; without it the same bytes mean `bsr`.
    LZCNT = 5, LZCNT, detect!("lzcnt");
    /// BMI1; without it `tzcnt` means `bsf`.
    BMI1 = 6, BMI1, detect!("bmi1");
    /// BMI2.
    BMI2 = 7, BMI2, detect!("bmi2");
    /// ADX.
    ADX = 8, ADX, detect!("adx");
    /// MOVBE.
    MOVBE = 9, MOVBE, detect!("movbe");
    /// CMPXCHG16B.
    CMPXCHG16B = 10, CMPXCHG16B, detect!("cmpxchg16b");
    /// AES-NI.
    AES = 11, AES, detect!("aes");
    /// PCLMULQDQ.
    PCLMULQDQ = 12, PCLMULQDQ, detect!("pclmulqdq");
    /// SHA-1 and SHA-256.
    SHA = 13, SHA, detect!("sha");
    /// AVX, with the operating system's support.
    AVX = 14, AVX, detect!("avx");
    /// AVX2.
    AVX2 = 15, AVX2, detect!("avx2");
    /// FMA.
    FMA = 16, FMA, detect!("fma");
    /// F16C.
    F16C = 17, F16C, detect!("f16c");
    /// VEX or EVEX coded AES on vectors wider than 128 bits.
    VAES = 18, VAES, detect!("vaes");
    /// VPCLMULQDQ.
    VPCLMULQDQ = 19, VPCLMULQDQ, detect!("vpclmulqdq");
    /// GFNI.
    GFNI = 20, GFNI, detect!("gfni");
    /// AVX-512 foundation, with the operating system's support.
    AVX512F = 21, AVX512F, detect!("avx512f");
    /// AVX-512 on 128 and 256-bit vectors.
    AVX512VL = 22, AVX512VL, detect!("avx512vl");
    /// AVX-512 bytes and words.
    AVX512BW = 23, AVX512BW, detect!("avx512bw");
    /// AVX-512 doublewords and quadwords.
    AVX512DQ = 24, AVX512DQ, detect!("avx512dq");
    /// AVX-512 conflict detection.
    AVX512CD = 25, AVX512CD, detect!("avx512cd");
    /// AVX-512 byte permutes.
    AVX512_VBMI = 26, AVX512_VBMI, detect!("avx512vbmi");
    /// AVX-512 bit algorithms.
    AVX512_BITALG = 27, AVX512_BITALG, detect!("avx512bitalg");
    /// AVX-512 population count.
    AVX512_VPOPCNTDQ = 28, AVX512_VPOPCNTDQ, detect!("avx512vpopcntdq");
    /// `rdfsbase`.
    FSGSBASE = 29, FSGSBASE, cpuid_bit(7, Output::Ebx, 0);
    /// `rdtscp`.
    RDTSCP = 30, RDTSCP, cpuid_bit(0x8000_0001, Output::Edx, 27);
    /// AVX-512 52-bit multiply and add.
    AVX512_IFMA = 31, AVX512_IFMA, detect!("avx512ifma");
    /// AVX-512 byte and word dot products.
    AVX512_VNNI = 32, AVX512_VNNI, detect!("avx512vnni");
    /// The same, VEX coded.
    AVX_VNNI = 33, AVX_VNNI, detect!("avxvnni");
    /// AVX-512 byte and word compress, expand and funnel shifts.
    AVX512_VBMI2 = 34, AVX512_VBMI2, detect!("avx512vbmi2");
    /// `rdrand`.
    RDRAND = 35, RDRAND, detect!("rdrand");
    /// `rdseed`.
    RDSEED = 36, RDSEED, detect!("rdseed");
    /// `rdpid`.
    RDPID = 37, RDPID, cpuid_bit(7, Output::Ecx, 22);
    /// `clflush`.
    CLFLUSH = 38, CLFSH, cpuid_bit(1, Output::Edx, 19);
    /// `clflushopt`.
    CLFLUSHOPT = 39, CLFLUSHOPT, cpuid_bit(7, Output::Ebx, 23);
    /// `clwb`.
    CLWB = 40, CLWB, cpuid_bit(7, Output::Ebx, 24);
    /// `movdiri`.
    MOVDIRI = 41, MOVDIRI, cpuid_bit(7, Output::Ecx, 27);
    /// `xtest`.
    RTM = 42, HLE_or_RTM, detect!("rtm");
    /// 52-bit multiply and add, VEX coded.
    AVX_IFMA = 43, AVX_IFMA, detect!("avxifma");
}

impl CpuFeatures {
    /// Baseline x86-64 only.
    #[must_use]
    pub const fn baseline() -> Self {
        Self(0)
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set less `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether a machine with this set executes `instruction` as decoded.
    pub(crate) fn executes(self, instruction: &Instruction) -> bool {
        instruction.cpuid_features().iter().all(|&feature| {
            baseline_has(feature)
                || Self::of_iced(feature).is_some_and(|needed| self.contains(needed))
        })
    }
}

/// Part of x86-64 as first shipped, or ignored as a hint where absent.
fn baseline_has(feature: CpuidFeature) -> bool {
    matches!(
        feature,
        CpuidFeature::INTEL8086
            | CpuidFeature::INTEL186
            | CpuidFeature::INTEL286
            | CpuidFeature::INTEL386
            | CpuidFeature::INTEL486
            | CpuidFeature::X64
            | CpuidFeature::CMOV
            | CpuidFeature::CX8
            | CpuidFeature::TSC
            | CpuidFeature::SSE
            | CpuidFeature::SSE2
            | CpuidFeature::SYSCALL
            | CpuidFeature::MULTIBYTENOP
            | CpuidFeature::PAUSE
            | CpuidFeature::PREFETCHW
            | CpuidFeature::CET_IBT
            | CpuidFeature::CET_SS
    )
}

#[cfg(target_arch = "x86_64")]
enum Output {
    Ebx,
    Ecx,
    Edx,
}

/// One bit of a `cpuid` leaf (sub-leaf 0); false for leaves beyond the
/// machine's maximum.
#[cfg(target_arch = "x86_64")]
fn cpuid_bit(leaf: u32, output: Output, bit: u32) -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let highest = __cpuid(leaf & 0x8000_0000).eax;
    if leaf > highest {
        return false;
    }
    let values = __cpuid_count(leaf, 0);
    let register = match output {
        Output::Ebx => values.ebx,
        Output::Ecx => values.ecx,
        Output::Edx => values.edx,
    };
    register >> bit & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_combine() {
        let set = CpuFeatures::AVX.with(CpuFeatures::BMI2);
        assert!(set.contains(CpuFeatures::AVX));
        assert!(!set.contains(CpuFeatures::AVX2));
        assert!(!set.without(CpuFeatures::AVX).contains(CpuFeatures::AVX));
        assert!(CpuFeatures::all().contains(set));
        assert!(CpuFeatures::all().contains(CpuFeatures::host()));
    }
}

//! Which instruction-set extensions a fragment may use.

use iced_x86::{Code, CpuidFeature};

/// Extensions beyond baseline x86-64 that exist where the fragment will run.
///
/// An instruction the CPU does not have is #UD, which ring 0 does not survive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features(u64);

macro_rules! table {
    ($($name:ident, $detect:tt;)*) => {
        const TABLE: &[CpuidFeature] = &[$(CpuidFeature::$name),*];

        /// In the order of [`TABLE`].
        #[cfg(target_arch = "x86_64")]
        fn detected() -> Vec<bool> {
            vec![$(table!(@ $detect)),*]
        }
    };
    (@ (leaf $leaf:literal $register:ident $bit:literal)) => {{
        let highest = std::arch::x86_64::__cpuid($leaf & 0x8000_0000).eax;
        highest >= $leaf
            && std::arch::x86_64::__cpuid_count($leaf, 0).$register >> $bit & 1 == 1
    }};
    (@ $name:tt) => { std::arch::is_x86_feature_detected!($name) };
}

table! {
    SSE3, "sse3";
    SSSE3, "ssse3";
    SSE4_1, "sse4.1";
    SSE4_2, "sse4.2";
    POPCNT, "popcnt";
    LZCNT, "lzcnt";
    BMI1, "bmi1";
    BMI2, "bmi2";
    ADX, "adx";
    MOVBE, "movbe";
    CMPXCHG16B, "cmpxchg16b";
    AES, "aes";
    PCLMULQDQ, "pclmulqdq";
    SHA, "sha";
    GFNI, "gfni";
    AVX, "avx";
    AVX2, "avx2";
    FMA, "fma";
    F16C, "f16c";
    VAES, "vaes";
    VPCLMULQDQ, "vpclmulqdq";
    AVX512F, "avx512f";
    AVX512VL, "avx512vl";
    AVX512BW, "avx512bw";
    AVX512DQ, "avx512dq";
    AVX512CD, "avx512cd";
    AVX512_VBMI, "avx512vbmi";
    AVX512_BITALG, "avx512bitalg";
    AVX512_VPOPCNTDQ, "avx512vpopcntdq";
    FSGSBASE, (leaf 7 ebx 0);
    RDTSCP, (leaf 0x8000_0001 edx 27);
    AVX512_IFMA, "avx512ifma";
    AVX512_VNNI, "avx512vnni";
    AVX_VNNI, "avxvnni";
    AVX512_VBMI2, "avx512vbmi2";
    RDRAND, "rdrand";
    RDSEED, "rdseed";
    RDPID, (leaf 7 ecx 22);
    CLFSH, (leaf 1 edx 19);
    CLFLUSHOPT, (leaf 7 ebx 23);
    CLWB, (leaf 7 ebx 24);
    MOVDIRI, (leaf 7 ecx 27);
    HLE_or_RTM, "rtm";
    AVX_IFMA, "avxifma";
}

const _: () = assert!(TABLE.len() < 63);

impl Features {
    /// Baseline x86-64 only.
    pub const BASELINE: Self = Self(0);

    /// Everything the verifier knows, whatever this machine has.
    #[must_use]
    pub fn all() -> Self {
        Self((1 << TABLE.len()) - 1)
    }

    /// What the CPU and operating system under this program offer.
    #[cfg(target_arch = "x86_64")]
    #[must_use]
    pub fn host() -> Self {
        let bits = detected().into_iter().enumerate().map(|(i, on)| u64::from(on) << i).sum();
        Self(bits)
    }

    /// This set less one extension; no change if the verifier does not know it.
    #[must_use]
    pub fn without(self, feature: CpuidFeature) -> Self {
        match TABLE.iter().position(|f| *f == feature) {
            Some(bit) => Self(self.0 & !(1 << bit)),
            None => self,
        }
    }

    /// What a CPU must have to execute instructions of `code`.
    pub(super) fn needed(code: Code) -> Self {
        // No set has the highest bit: of what is not in the table nobody knows.
        let bit = |feature| TABLE.iter().position(|f| *f == feature).unwrap_or(63);
        let features = code.cpuid_features().iter().filter(|feature| !baseline(**feature));
        Self(features.fold(0, |set, feature| set | 1 << bit(*feature)))
    }

    /// Whether everything in `needed` is in this set.
    pub(super) fn include(self, needed: Self) -> bool {
        needed.0 & !self.0 == 0
    }
}

/// Every x86-64 CPU has these, or ignores the encoding.
fn baseline(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL186
            | F::INTEL286
            | F::INTEL386
            | F::INTEL486
            | F::X64
            | F::CMOV
            | F::CX8
            | F::TSC
            | F::SSE
            | F::SSE2
            | F::MULTIBYTENOP
            | F::PAUSE
            | F::PREFETCHW
            | F::CET_IBT
    )
}

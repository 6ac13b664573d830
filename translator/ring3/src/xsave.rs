//! The standard (non-compacted) XSAVE image: [`Vectors`] to and from it. The
//! kernel uses the same layout in signal frames.

use crate::Error;
use crate::state::Vectors;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const OPMASK: u64 = 1 << 5;
const ZMM_HI256: u64 = 1 << 6;
const HI16_ZMM: u64 = 1 << 7;

/// Offset of MXCSR in the legacy region.
const MXCSR: usize = 24;
/// Offset of xmm0 in the legacy region.
const XMM: usize = 160;
/// Offset of XSTATE_BV, the set of components the image holds.
const XSTATE_BV: usize = 512;

/// Enough for every component up to AVX-512; XSAVE writes only what its mask
/// names.
pub const AREA_BYTES: usize = 4096;

/// An image for XSAVE/XRSTOR, which demand this alignment.
#[repr(C, align(64))]
pub struct Area(pub [u8; AREA_BYTES]);

/// Which components exist and where.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Components of [`Vectors`] that the CPU and the kernel have enabled.
    pub mask: u64,
    ymm: usize,
    k: usize,
    zmm_hi256: usize,
    hi16_zmm: usize,
}

impl Layout {
    /// This machine's layout.
    pub fn get() -> Result<Self, Error> {
        static LAYOUT: OnceLock<Option<Layout>> = OnceLock::new();
        LAYOUT.get_or_init(Self::detect).ok_or(Error::NoXsave)
    }

    fn detect() -> Option<Self> {
        if !std::arch::is_x86_feature_detected!("xsave") {
            return None;
        }
        let leaf = __cpuid_count(0xd, 0);
        let enabled = u64::from(leaf.eax) | u64::from(leaf.edx) << 32;
        // CPUID lists what the CPU could enable; std asks XGETBV as well.
        let mut mask = SSE;
        if std::arch::is_x86_feature_detected!("avx") {
            mask |= AVX;
        }
        if std::arch::is_x86_feature_detected!("avx512f") {
            mask |= OPMASK | ZMM_HI256 | HI16_ZMM;
        }
        let offset = |component: u32| __cpuid_count(0xd, component).ebx as usize;
        let layout = Self {
            mask: mask & enabled,
            ymm: offset(2),
            k: offset(5),
            zmm_hi256: offset(6),
            hi16_zmm: offset(7),
        };
        let fits = layout.hi16_zmm + 16 * 64 <= AREA_BYTES;
        (fits || mask & HI16_ZMM == 0).then_some(layout)
    }

    /// Writes `vectors` into `area` and marks them present.
    pub fn store(&self, vectors: &Vectors, area: &mut [u8]) {
        area[MXCSR..MXCSR + 4].copy_from_slice(&vectors.mxcsr.to_le_bytes());
        for (i, z) in vectors.zmm.iter().enumerate() {
            let mut put =
                |at: usize, bytes: &[u8]| area[at..at + bytes.len()].copy_from_slice(bytes);
            if i < 16 {
                put(XMM + 16 * i, &z[..16]);
                if self.mask & AVX != 0 {
                    put(self.ymm + 16 * i, &z[16..32]);
                }
                if self.mask & ZMM_HI256 != 0 {
                    put(self.zmm_hi256 + 32 * i, &z[32..]);
                }
            } else if self.mask & HI16_ZMM != 0 {
                put(self.hi16_zmm + 64 * (i - 16), z);
            }
        }
        if self.mask & OPMASK != 0 {
            for (i, k) in vectors.k.iter().enumerate() {
                area[self.k + 8 * i..][..8].copy_from_slice(&k.to_le_bytes());
            }
        }
        let present = u64_at(area, XSTATE_BV) | self.mask;
        area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&present.to_le_bytes());
    }

    /// Reads `vectors` from `area`; a component that is not marked present is
    /// in its initial state, zero.
    pub fn load(&self, area: &[u8], vectors: &mut Vectors) {
        *vectors = Vectors::default();
        vectors.mxcsr = u64_at(area, MXCSR) as u32;
        let present = u64_at(area, XSTATE_BV) & self.mask;
        for (i, z) in vectors.zmm.iter_mut().enumerate() {
            if i < 16 {
                if present & SSE != 0 {
                    z[..16].copy_from_slice(&area[XMM + 16 * i..][..16]);
                }
                if present & AVX != 0 {
                    z[16..32].copy_from_slice(&area[self.ymm + 16 * i..][..16]);
                }
                if present & ZMM_HI256 != 0 {
                    z[32..].copy_from_slice(&area[self.zmm_hi256 + 32 * i..][..32]);
                }
            } else if present & HI16_ZMM != 0 {
                z.copy_from_slice(&area[self.hi16_zmm + 64 * (i - 16)..][..64]);
            }
        }
        if present & OPMASK != 0 {
            for (i, k) in vectors.k.iter_mut().enumerate() {
                *k = u64_at(area, self.k + 8 * i);
            }
        }
    }
}

fn u64_at(area: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(area[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_round_trips_and_absent_components_read_as_zero() {
        let layout = Layout::get().expect("XSAVE");
        let mut vectors = Vectors { mxcsr: 0x1fa0, ..Vectors::default() };
        for i in 0..16 {
            vectors.zmm[i][..16].fill(i as u8 + 1);
        }
        let mut area = vec![0u8; AREA_BYTES];
        layout.store(&vectors, &mut area);
        let mut back = Vectors::default();
        layout.load(&area, &mut back);
        assert_eq!(back, vectors);
        area[XSTATE_BV..XSTATE_BV + 8].fill(0);
        layout.load(&area, &mut back);
        assert_eq!(back, Vectors { mxcsr: 0x1fa0, ..Vectors::default() });
    }
}

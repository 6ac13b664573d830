//! Deterministic bytes, and digests of what came back.

use sha2::{Digest as _, Sha256};

/// `length` pseudo-random bytes that depend on `seed` only: they do not
/// compress and no two aligned words are likely equal.
#[must_use]
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Pseudo-random numbers that are the same everywhere (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "an iterator without end is more to use")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// A number below `limit`, which must not be 0. (The remainder favours
    /// small numbers by less than `limit` in 2<sup>64</sup>.)
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Collects what a workload computed into one SHA-256.
#[derive(Debug, Clone, Default)]
pub struct Digest(Sha256);

impl Digest {
    /// Adds one named result. Names and lengths are part of the digest, so
    /// that bytes cannot move from one result to the next unnoticed.
    pub fn add(&mut self, name: &str, data: &[u8]) {
        for part in [name.as_bytes(), data] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }

    /// The digest in hexadecimal.
    #[must_use]
    pub fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_a_function_of_the_seed() {
        assert_eq!(bytes(1, 100), bytes(1, 100));
        assert_ne!(bytes(1, 100), bytes(2, 100));
        assert_eq!(bytes(7, 1000)[..13], bytes(7, 13)[..]);
        // First output of splitmix64 for seed 0, from its reference code.
        assert_eq!(bytes(0, 8), 0xe220_a839_7b1d_cdaf_u64.to_le_bytes());
    }

    #[test]
    fn digest_sees_where_a_result_ends() {
        let digest = |parts: &[(&str, &[u8])]| {
            let mut digest = Digest::default();
            for (name, data) in parts {
                digest.add(name, data);
            }
            digest.finish()
        };
        assert_eq!(digest(&[("a", b"bc")]), digest(&[("a", b"bc")]));
        assert_ne!(digest(&[("a", b"bc")]), digest(&[("ab", b"c")]));
        assert_ne!(digest(&[("a", b"b"), ("c", b"d")]), digest(&[("c", b"d"), ("a", b"b")]));
        assert_eq!(digest(&[]).len(), 64);
    }
}

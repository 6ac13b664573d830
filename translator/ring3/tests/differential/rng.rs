//! A small deterministic generator (splitmix64), so that a printed seed is
//! enough to repeat a failure.

pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform enough in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Values at which arithmetic tends to break.
    pub fn value(&mut self) -> u64 {
        match self.below(5) {
            0 => self.next() & 0xff,
            1 => (self.next() & 0xff).wrapping_neg(),
            2 => self.pick(&[0, 1, 0x7f, 0x80, 0x7fff_ffff, 0x8000_0000, i64::MAX as u64, 1 << 63]),
            3 => self.next() & 0xffff_ffff,
            _ => self.next(),
        }
    }
}

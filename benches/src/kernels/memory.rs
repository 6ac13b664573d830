//! The memory that a kernel works on.

/// Buffers at fixed addresses. A kernel's pointers lead into them.
#[derive(Debug, Default)]
pub struct Memory {
    /// Of words, so that every buffer is aligned.
    buffers: Vec<Box<[u64]>>,
}

impl Memory {
    /// Zeroed memory of at least `bytes` bytes; its address.
    pub fn zeroed(&mut self, bytes: usize) -> u64 {
        self.words(&vec![0; bytes.div_ceil(8)])
    }

    /// A copy of `words`; its address.
    pub fn words(&mut self, words: &[u64]) -> u64 {
        let mut buffer: Box<[u64]> = words.into();
        let address = buffer.as_mut_ptr() as u64;
        self.buffers.push(buffer);
        address
    }

    /// Puts `words` into the buffer at `address`, which has this size.
    pub(super) fn overwrite(&mut self, address: u64, words: &[u64]) {
        let buffer = self.buffers.iter_mut().find(|buffer| buffer.as_ptr() as u64 == address);
        buffer.expect("the address of a buffer").copy_from_slice(words);
    }

    /// A copy of `bytes`, with at least eight zero bytes behind it; its address.
    pub fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len() / 8 * 8 + 16, 0);
        let words: Vec<u64> = padded
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
            .collect();
        self.words(&words)
    }

    /// The strings one behind the other, null-terminated; the address of an
    /// array of pointers to them, and that of an array of their lengths.
    pub fn strings<S: AsRef<[u8]>>(&mut self, strings: &[S]) -> (u64, u64) {
        let mut text = Vec::new();
        let mut offsets = Vec::new();
        for string in strings {
            offsets.push(text.len() as u64);
            text.extend_from_slice(string.as_ref());
            text.push(0);
        }
        let base = self.bytes(&text);
        let pointers: Vec<u64> = offsets.iter().map(|offset| base + offset).collect();
        let lengths: Vec<u64> = strings.iter().map(|s| s.as_ref().len() as u64).collect();
        (self.words(&pointers), self.words(&lengths))
    }

    /// A copy of everything.
    pub(super) fn contents(&self) -> Vec<Box<[u64]>> {
        self.buffers.iter().map(|buffer| Box::from(read(buffer))).collect()
    }

    /// Puts back what [`Self::contents`] saw.
    pub(super) fn restore(&mut self, contents: &[Box<[u64]>]) {
        for (buffer, old) in self.buffers.iter_mut().zip(contents) {
            buffer.copy_from_slice(old);
        }
    }
}

/// The words of `buffer`, which guest code may have written: not what the
/// compiler knows of them.
fn read(buffer: &[u64]) -> &[u64] {
    std::hint::black_box(buffer)
}

/// Numbers that look random and are the same in every run (Knuth's MMIX
/// generator; the upper bits are good).
#[derive(Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(self.0) * u128::from(limit)) >> 64) as u64
    }

    /// The next one below a power of two, whose exponent is any from `low` to
    /// `high`: numbers of all lengths.
    pub fn below_power(&mut self, low: u32, high: u32) -> u64 {
        let exponent = low + self.below(u64::from(high - low + 1)) as u32;
        self.below(1 << exponent)
    }

    /// `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }
}

/// `count` keys as caches have them: `user:1234:cart`, with lengths that vary.
pub fn keys(count: usize) -> Vec<String> {
    const PARTS: [&str; 7] =
        ["cart", "profile", "s", "configuration", "list", "count", "session:state"];
    let mut numbers = Numbers::new(7);
    (0..count)
        .map(|_| {
            let id = numbers.below_power(4, 31);
            let part = PARTS[numbers.below(PARTS.len() as u64) as usize];
            format!("user:{id}:{part}")
        })
        .collect()
}

/// `count` numbers of all magnitudes and both signs.
pub fn integers(count: usize) -> Vec<i64> {
    let mut numbers = Numbers::new(11);
    (0..count)
        .map(|_| {
            let number = numbers.below_power(1, 62) as i64;
            if numbers.below(4) == 0 { -number } else { number }
        })
        .collect()
}

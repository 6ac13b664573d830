//! Where user code comes from.

/// Readable user code.
pub trait CodeSource {
    /// Reads code at `address` into the front of `buf` and returns how many
    /// bytes were readable there, at most `buf.len()`; 0 when none.
    fn read_code(&mut self, address: u64, buf: &mut [u8]) -> usize;

    /// The 64-bit value at a constant address (a GOT slot, say). A hint:
    /// correctness never depends on it.
    fn pointer_hint(&mut self, address: u64) -> Option<u64> {
        let _ = address;
        None
    }
}

/// A slice of code that starts at a given address; handy in tests.
#[derive(Debug, Clone)]
pub struct SliceSource<'a> {
    /// Address of the first byte.
    pub address: u64,
    /// The code.
    pub bytes: &'a [u8],
}

impl CodeSource for SliceSource<'_> {
    fn read_code(&mut self, address: u64, buf: &mut [u8]) -> usize {
        let Some(offset) = address.checked_sub(self.address) else {
            return 0;
        };
        let Some(rest) = usize::try_from(offset).ok().and_then(|o| self.bytes.get(o..)) else {
            return 0;
        };
        let length = rest.len().min(buf.len());
        buf[..length].copy_from_slice(&rest[..length]);
        length
    }
}

/// Longest x86 instruction in bytes.
pub(crate) const MAX_INSTRUCTION: usize = 15;
/// How much is read at once; a source behind an ioctl is slow per call.
const CHUNK: usize = 512;

/// Reads a [`CodeSource`] in chunks, so that one translation sees one version
/// of each byte and asks rarely.
pub(crate) struct CodeCache<'a> {
    source: &'a mut dyn CodeSource,
    /// Sorted by their addresses, disjoint, none empty.
    chunks: Vec<Chunk>,
    /// The chunk used last.
    latest: usize,
}

struct Chunk {
    start: u64,
    bytes: Vec<u8>,
}

impl Chunk {
    /// Its bytes from `address` on, if that is inside.
    fn from(&self, address: u64) -> Option<&[u8]> {
        let offset = usize::try_from(address.wrapping_sub(self.start)).ok()?;
        self.bytes.get(offset..).filter(|bytes| !bytes.is_empty())
    }
}

impl<'a> CodeCache<'a> {
    pub(crate) fn new(source: &'a mut dyn CodeSource) -> Self {
        Self { source, chunks: Vec::new(), latest: 0 }
    }

    pub(crate) fn pointer_hint(&mut self, address: u64) -> Option<u64> {
        self.source.pointer_hint(address)
    }

    /// Copies the bytes at `address` to `buffer` and returns how many there are.
    pub(crate) fn fetch(&mut self, address: u64, buffer: &mut [u8; MAX_INSTRUCTION]) -> usize {
        let mut length = 0;
        while length < MAX_INSTRUCTION {
            let Some(at) = address.checked_add(length as u64) else {
                break;
            };
            let part = self.ahead(at);
            if part.is_empty() {
                break;
            }
            let more = part.len().min(MAX_INSTRUCTION - length);
            buffer[length..length + more].copy_from_slice(&part[..more]);
            length += more;
        }
        length
    }

    /// Bytes from `address` to the end of their chunk, read if new. None if
    /// there are none.
    pub(crate) fn ahead(&mut self, address: u64) -> &[u8] {
        if self.chunks.get(self.latest).is_none_or(|chunk| chunk.from(address).is_none()) {
            // The first chunk behind the address; the one before may hold it.
            let behind = self.chunks.partition_point(|chunk| chunk.start <= address);
            self.latest = match behind.checked_sub(1) {
                Some(before) if self.chunks[before].from(address).is_some() => before,
                _ => {
                    // Never across a known chunk: one version of each byte.
                    let next = self.chunks.get(behind);
                    let limit =
                        next.map_or(CHUNK, |next| CHUNK.min((next.start - address) as usize));
                    let mut bytes = vec![0; limit];
                    let length = self.source.read_code(address, &mut bytes);
                    if length == 0 {
                        return &[];
                    }
                    bytes.truncate(length);
                    self.chunks.insert(behind, Chunk { start: address, bytes });
                    behind
                }
            };
        }
        self.chunks[self.latest].from(address).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counting<'a>(SliceSource<'a>, usize);
    impl CodeSource for Counting<'_> {
        fn read_code(&mut self, address: u64, buf: &mut [u8]) -> usize {
            self.1 += 1;
            self.0.read_code(address, buf)
        }
    }

    #[test]
    fn fetch_joins_chunks_and_stops_at_the_end() {
        let bytes: Vec<u8> = (0..=255).cycle().take(2000).collect();
        let mut source = Counting(SliceSource { address: 0x1000, bytes: &bytes }, 0);
        let mut cache = CodeCache::new(&mut source);
        let mut buffer = [0; MAX_INSTRUCTION];
        for offset in (0..2000).rev() {
            let end = (offset + MAX_INSTRUCTION).min(2000);
            let length = cache.fetch(0x1000 + offset as u64, &mut buffer);
            assert_eq!(buffer[..length], bytes[offset..end]);
        }
        assert_eq!(cache.fetch(0xfff, &mut buffer), 0);
        assert_eq!(cache.fetch(0x1000 + 2000, &mut buffer), 0);
    }

    #[test]
    fn sequential_fetches_read_once_per_chunk() {
        let bytes = [0x90; 400];
        let mut source = Counting(SliceSource { address: 0, bytes: &bytes }, 0);
        let mut cache = CodeCache::new(&mut source);
        for offset in 0..300 {
            cache.fetch(offset, &mut [0; MAX_INSTRUCTION]);
        }
        assert_eq!(source.1, 1);
    }
}

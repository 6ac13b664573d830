//! The loops behind `ub-workload`: small, real programs whose work is system
//! calls, with results that show whether every one of them did its job.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What `ub-workload` prints, as one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Timed calls.
    pub calls: u64,
    /// All calls, warm-up included.
    pub total_calls: u64,
    /// Duration of the timed calls, in nanoseconds.
    pub elapsed_ns: u64,
    /// What the timed calls returned, folded, in hexadecimal.
    pub checksum: String,
}

/// How much to do before and during the timed part.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// Timed calls.
    pub calls: u64,
    /// Untimed calls before it, at least.
    pub warmup_calls: u64,
    /// Untimed time before it, at least.
    pub warmup: Duration,
}

/// What `ub-workload --wait` prints between warm-up and timed part.
pub const READY: &str = "ready";
/// Calls between two looks at the clock during warm-up.
const CHUNK: u64 = 512;
/// Odd multiplier of the fold (from the 64-bit FNV-1 definition).
const PRIME: u64 = 0x0000_0100_0000_01b3;
/// Start value of the fold (as above).
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
/// Bytes of which a read is sampled one word; see [`Reader`].
const LINE: usize = 64;

/// Warms up, calls `warm`, and then times `run(calls)`, which returns its
/// checksum.
///
/// # Errors
/// The first error of `run` or `warm`.
pub fn measure(
    amount: &Amount,
    warm: impl FnOnce() -> io::Result<()>,
    mut run: impl FnMut(u64) -> io::Result<u64>,
) -> io::Result<Line> {
    let start = Instant::now();
    let mut warmed = 0;
    while warmed < amount.warmup_calls || start.elapsed() < amount.warmup {
        run(CHUNK)?;
        warmed += CHUNK;
    }
    warm()?;
    let start = Instant::now();
    let checksum = run(amount.calls)?;
    let elapsed = start.elapsed();
    Ok(Line {
        calls: amount.calls,
        total_calls: warmed + amount.calls,
        elapsed_ns: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
        checksum: format!("{checksum:016x}"),
    })
}

/// `calls` times getppid. The checksum folds how far each answer is from
/// `parent`, so it is the same in every process whose parent stays.
///
/// Not inlined: warm-up and timed part must run the same instructions, or
/// the timed part would start with untranslated code.
#[inline(never)]
#[must_use]
pub fn null(calls: u64, parent: u32) -> u64 {
    let mut checksum = BASIS;
    for _ in 0..calls {
        // SAFETY: getppid has no arguments and no effects on memory.
        let answer = unsafe { libc::syscall(libc::SYS_getppid) };
        let wrong = (answer as u64).wrapping_sub(u64::from(parent));
        checksum = (checksum ^ wrong).wrapping_mul(PRIME);
    }
    checksum
}

/// Reads blocks of a file in order, round and round. Of every cache line of a
/// block one 8-byte word goes into the checksum, another one in each pass over
/// the file, so eight passes cover each byte while the user code between two
/// calls stays short.
#[derive(Debug)]
pub struct Reader {
    file: File,
    block: Vec<u8>,
    blocks: u64,
}

impl Reader {
    /// Reads `block` bytes at a time; `block` is a multiple of 64.
    ///
    /// # Errors
    /// `InvalidInput` if the file does not hold a whole number of blocks, and
    /// what `fstat` says.
    pub fn new(file: File, block: usize) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let whole = block != 0 && block.is_multiple_of(LINE) && length.is_multiple_of(block as u64);
        if !whole || length == 0 {
            let text = format!("a file of {length} bytes does not divide into blocks of {block}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(Self { file, block: vec![0; block], blocks: length / block as u64 })
    }

    /// `calls` times pread, from the start of the file. Returns the checksum.
    ///
    /// Not inlined, for the reason given at [`null`].
    ///
    /// # Errors
    /// What pread says; `UnexpectedEof` for a short read.
    #[inline(never)]
    pub fn run(&mut self, calls: u64) -> io::Result<u64> {
        let fd = self.file.as_fd().as_raw_fd();
        let size = self.block.len();
        let (mut index, mut lane, mut checksum) = (0, 0, BASIS);
        for _ in 0..calls {
            let offset = (index * size as u64) as libc::off_t;
            // SAFETY: the buffer is `size` writable bytes that outlive the call,
            // and `fd` is open as long as `self.file`.
            let count = unsafe { libc::pread(fd, self.block.as_mut_ptr().cast(), size, offset) };
            if count != size as isize {
                return Err(short_read(count));
            }
            checksum = fold(checksum, &self.block, lane);
            index += 1;
            if index == self.blocks {
                index = 0;
                lane = (lane + 1) % (LINE / 8);
            }
        }
        Ok(checksum)
    }

    /// What [`Self::run`] returns for a file that holds `content`, computed
    /// without system calls.
    #[must_use]
    pub fn expected(content: &[u8], block: usize, calls: u64) -> u64 {
        let blocks = (content.len() / block) as u64;
        (0..calls).fold(BASIS, |checksum, call| {
            let start = (call % blocks) as usize * block;
            let lane = (call / blocks) as usize % (LINE / 8);
            fold(checksum, &content[start..start + block], lane)
        })
    }
}

/// Folds word `lane` of each line of `block` into `checksum`.
#[inline]
fn fold(checksum: u64, block: &[u8], lane: usize) -> u64 {
    block.chunks_exact(LINE).fold(checksum, |checksum, line| {
        let mut word = [0; 8];
        word.copy_from_slice(&line[lane * 8..lane * 8 + 8]);
        (checksum ^ u64::from_le_bytes(word)).wrapping_mul(PRIME)
    })
}

/// Kept out of the loop's code.
#[cold]
fn short_read(count: isize) -> io::Error {
    if count < 0 {
        io::Error::last_os_error()
    } else {
        io::Error::new(io::ErrorKind::UnexpectedEof, format!("pread returned {count} bytes"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn null_tells_right_from_wrong_answers() {
        let parent = std::os::unix::process::parent_id();
        assert_eq!(null(1000, parent), null(1000, parent));
        assert_ne!(null(1000, parent), null(1000, parent + 1));
        assert_ne!(null(1000, parent), null(1001, parent));
    }

    #[test]
    fn reading_gives_what_the_content_says() {
        let content = crate::content::bytes(3, 64 * 1024);
        for block in [64, 4096] {
            let mut reader = Reader::new(file(&content), block).unwrap();
            let passes = 9 * (content.len() / block) as u64 + 5;
            assert_eq!(reader.run(passes).unwrap(), Reader::expected(&content, block, passes));
        }
    }

    #[test]
    fn every_byte_matters_after_eight_passes() {
        let content = crate::content::bytes(3, 256);
        let expected = Reader::expected(&content, 64, 32);
        for position in 0..content.len() {
            let mut changed = content.clone();
            changed[position] ^= 1;
            assert_ne!(Reader::expected(&changed, 64, 32), expected, "byte {position}");
        }
    }

    #[test]
    fn files_that_do_not_divide_are_refused() {
        assert!(Reader::new(file(&[0; 100]), 64).is_err());
        assert!(Reader::new(file(&[]), 64).is_err());
        assert!(Reader::new(file(&[0; 128]), 0).is_err());
        assert!(Reader::new(file(&[0; 100]), 50).is_err());
    }

    #[test]
    fn a_truncated_file_is_an_error_not_a_wrong_sum() {
        let file = file(&[7; 128]);
        let mut reader = Reader::new(file.try_clone().unwrap(), 64).unwrap();
        file.set_len(64).unwrap();
        assert_eq!(reader.run(2).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn measure_counts_warm_up_apart() {
        let amount =
            Amount { calls: 10, warmup_calls: CHUNK + 1, warmup: Duration::from_millis(0) };
        let mut seen = Vec::new();
        let mut warmed = false;
        let warm = || {
            warmed = true;
            Ok(())
        };
        let line = measure(&amount, warm, |calls| {
            seen.push(calls);
            Ok(0xab)
        })
        .unwrap();
        assert!(warmed);
        assert_eq!(seen, [CHUNK, CHUNK, 10]);
        assert_eq!((line.calls, line.total_calls), (10, 2 * CHUNK + 10));
        assert_eq!(line.checksum, "00000000000000ab");
    }
}

//! The loops behind `ub-workload`: small, real programs whose work is system
//! calls, with results that show whether every one of them did its job.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::workload::Sum;

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

/// What `ub-workload --serve` prints first.
pub const READY: &str = "ready";
/// Calls for which a planted sleep sleeps once.
pub const SLEEP_EVERY: u64 = 64;
/// Calls between two looks at the clock during warm-up.
const CHUNK: u64 = 512;
/// Odd multiplier of the fold (from the 64-bit FNV-1 definition).
const PRIME: u64 = 0x0000_0100_0000_01b3;
/// Start value of the fold (as above).
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
/// Bytes of which a read is sampled one word; see [`Reader`].
const LINE: usize = 64;

/// Warms up and then times `run(calls)`, which returns its checksum.
///
/// # Errors
/// The first error of `run`.
pub fn measure(amount: &Amount, mut run: impl FnMut(u64) -> io::Result<u64>) -> io::Result<Line> {
    let start = Instant::now();
    let mut warmed = 0;
    while warmed < amount.warmup_calls || start.elapsed() < amount.warmup {
        run(CHUNK)?;
        warmed += CHUNK;
    }
    time(amount.calls, warmed + amount.calls, None, &mut run)
}

/// Says [`READY`], then answers each line of `input`, a number of calls, with
/// a [`Line`], until the input ends. A planted `sleep` is slept once for every
/// [`SLEEP_EVERY`] calls.
///
/// # Errors
/// The first error of `run`, and what reading and writing say.
pub fn serve(
    input: impl BufRead,
    mut output: impl Write,
    sleep: Option<Duration>,
    mut run: impl FnMut(u64) -> io::Result<u64>,
) -> io::Result<()> {
    writeln!(output, "{READY}")?;
    output.flush()?;
    let mut total = 0;
    for line in input.lines() {
        let line = line?;
        let calls: u64 = line.trim().parse().map_err(|_| {
            let text = format!("not a number of calls: {line:?}");
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        total += calls;
        let line = time(calls, total, sleep, &mut run)?;
        writeln!(output, "{}", serde_json::to_string(&line)?)?;
        output.flush()?;
    }
    Ok(())
}

fn time(
    calls: u64,
    total_calls: u64,
    sleep: Option<Duration>,
    run: &mut impl FnMut(u64) -> io::Result<u64>,
) -> io::Result<Line> {
    let start = Instant::now();
    if let Some(sleep) = sleep {
        (0..calls / SLEEP_EVERY).for_each(|_| std::thread::sleep(sleep));
    }
    let checksum = run(calls)?;
    let elapsed = start.elapsed();
    Ok(Line {
        calls,
        total_calls,
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
    fold_answers(calls, parent, || {
        // SAFETY: getppid has no arguments and no effects on memory.
        unsafe { libc::syscall(libc::SYS_getppid) }
    })
}

/// `calls` times getppid, with three instructions between two of them. Returns
/// whether the last answer was `parent`.
#[inline(never)]
#[must_use]
pub fn bare(calls: u64, parent: u32) -> u64 {
    let mut answer = u64::from(parent);
    if calls > 0 {
        // SAFETY: getppid has no arguments and no effects on memory; the
        // instruction destroys rcx and r11.
        unsafe {
            std::arch::asm!(
                "2:",
                "mov eax, {number}",
                "syscall",
                "dec {left}",
                "jnz 2b",
                number = const libc::SYS_getppid,
                left = inout(reg) calls => _,
                out("rax") answer,
                out("rcx") _,
                out("r11") _,
                options(nostack),
            );
        }
    }
    u64::from(answer == u64::from(parent))
}

/// Asks `calls` times for the parent.
#[inline]
pub(crate) fn fold_answers(calls: u64, parent: u32, ask: impl Fn() -> libc::c_long) -> u64 {
    let mut checksum = BASIS;
    for _ in 0..calls {
        let wrong = (ask() as u64).wrapping_sub(u64::from(parent));
        checksum = (checksum ^ wrong).wrapping_mul(PRIME);
    }
    checksum
}

/// Reads blocks of a file in order, round and round. With [`Sum::Lines`], of
/// every cache line of a block one 8-byte word goes into the checksum, another
/// one in each pass over the file, so eight passes cover each byte while the
/// user code between two calls stays short.
#[derive(Debug)]
pub struct Reader {
    file: File,
    block: Vec<u8>,
    blocks: u64,
    sum: Sum,
}

impl Reader {
    /// Reads `block` bytes at a time; `block` is a multiple of 64.
    ///
    /// # Errors
    /// `InvalidInput` if the file does not hold a whole number of blocks, and
    /// what `fstat` says.
    pub fn new(file: File, block: usize, sum: Sum) -> io::Result<Self> {
        let blocks = blocks_of(&file, block)?;
        Ok(Self { file, block: vec![0; block], blocks, sum })
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
            match self.sum {
                Sum::None => {}
                Sum::Lines => checksum = fold(checksum, &self.block, lane),
                Sum::All => checksum = fold_all(checksum, &self.block),
            }
            index += 1;
            if index == self.blocks {
                index = 0;
                lane = (lane + 1) % (LINE / 8);
            }
        }
        Ok(if self.sum == Sum::None { fold_all(checksum, &self.block) } else { checksum })
    }

    /// What [`Self::run`] returns for a file that holds `content`, computed
    /// without system calls.
    #[must_use]
    pub fn expected(content: &[u8], block: usize, sum: Sum, calls: u64) -> u64 {
        let blocks = (content.len() / block) as u64;
        let data = |call: u64| &content[(call % blocks) as usize * block..][..block];
        match sum {
            Sum::None => fold_all(BASIS, data(calls.saturating_sub(1))),
            Sum::Lines => (0..calls).fold(BASIS, |checksum, call| {
                let lane = (call / blocks) as usize % (LINE / 8);
                fold(checksum, data(call), lane)
            }),
            Sum::All => (0..calls).fold(BASIS, |checksum, call| fold_all(checksum, data(call))),
        }
    }
}

/// Reads as [`Reader`] does, but submits `depth` reads with one call of
/// io_uring and waits for all of them.
pub struct Ring {
    ring: io_uring::IoUring,
    file: File,
    block: usize,
    blocks: u64,
    buffers: Vec<u8>,
    sum: Sum,
    depth: u32,
}

impl Ring {
    /// Reads `block` bytes at a time, `depth` times per call.
    ///
    /// # Errors
    /// As [`Reader::new`], and what the kernel says about io_uring.
    pub fn new(file: File, block: usize, sum: Sum, depth: u32) -> io::Result<Self> {
        let blocks = blocks_of(&file, block)?;
        let ring = io_uring::IoUring::new(depth.next_power_of_two())?;
        Ok(Self { ring, file, block, blocks, buffers: vec![0; block * depth as usize], sum, depth })
    }

    /// `calls` reads from the start of the file. Returns the checksum that
    /// [`Reader::run`] returns for the same file.
    ///
    /// # Errors
    /// What the kernel says; `UnexpectedEof` for a short read.
    #[inline(never)]
    pub fn run(&mut self, calls: u64) -> io::Result<u64> {
        let mut checksum = BASIS;
        let mut done = 0;
        while done < calls {
            let batch = u64::from(self.depth).min(calls - done);
            self.submit(done, batch)?;
            for index in 0..batch {
                let data = &self.buffers[index as usize * self.block..][..self.block];
                match self.sum {
                    Sum::None if done + index + 1 == calls => checksum = fold_all(checksum, data),
                    Sum::None => {}
                    Sum::Lines => {
                        let lane = ((done + index) / self.blocks) as usize % (LINE / 8);
                        checksum = fold(checksum, data, lane);
                    }
                    Sum::All => checksum = fold_all(checksum, data),
                }
            }
            done += batch;
        }
        Ok(checksum)
    }

    /// Submits reads `first` and following, `count` in all, and waits for them.
    fn submit(&mut self, first: u64, count: u64) -> io::Result<()> {
        let fd = io_uring::types::Fd(self.file.as_fd().as_raw_fd());
        for (index, buffer) in self.buffers.chunks_mut(self.block).take(count as usize).enumerate()
        {
            let offset = (first + index as u64) % self.blocks * self.block as u64;
            let read = io_uring::opcode::Read::new(fd, buffer.as_mut_ptr(), buffer.len() as u32)
                .offset(offset)
                .build();
            // SAFETY: the buffer belongs to `self`, is not moved, and is not
            // read before the wait below has seen this read complete.
            unsafe { self.ring.submission().push(&read) }.map_err(io::Error::other)?;
        }
        let mut left = count;
        while left > 0 {
            self.ring.submit_and_wait(left as usize)?;
            for completion in self.ring.completion() {
                left -= 1;
                let result = completion.result();
                if result < 0 {
                    return Err(io::Error::from_raw_os_error(-result));
                }
                if result as usize != self.block {
                    return Err(short_read(result as isize));
                }
            }
        }
        Ok(())
    }
}

/// The number of blocks in `file`, which must be whole.
fn blocks_of(file: &File, block: usize) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let whole = block != 0 && block.is_multiple_of(LINE) && length.is_multiple_of(block as u64);
    if !whole || length == 0 {
        let text = format!("a file of {length} bytes does not divide into blocks of {block}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(length / block as u64)
}

/// Folds every word of `block` into `checksum`.
#[inline]
fn fold_all(checksum: u64, block: &[u8]) -> u64 {
    let sum = block.chunks_exact(8).fold(0_u64, |sum, word| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        sum.wrapping_mul(3).wrapping_add(u64::from_le_bytes(bytes))
    });
    (checksum ^ sum).wrapping_mul(PRIME)
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
    fn bare_calls_are_answered() {
        let parent = std::os::unix::process::parent_id();
        assert_eq!((bare(1000, parent), bare(0, parent)), (1, 1));
        assert_eq!(bare(1000, parent + 1), 0);
    }

    #[test]
    fn reading_gives_what_the_content_says() {
        let content = crate::content::bytes(3, 64 * 1024);
        for (block, sum) in
            [(64, Sum::Lines), (4096, Sum::Lines), (4096, Sum::None), (1024, Sum::All)]
        {
            let mut reader = Reader::new(file(&content), block, sum).unwrap();
            let calls = 9 * (content.len() / block) as u64 + 5;
            let expected = Reader::expected(&content, block, sum, calls);
            assert_eq!(reader.run(calls).unwrap(), expected);
            match Ring::new(file(&content), block, sum, 7) {
                Ok(mut ring) => assert_eq!(ring.run(calls).unwrap(), expected),
                // Containers may forbid io_uring; the guests of the harness have it.
                Err(error) => assert!(
                    matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)),
                    "{error}"
                ),
            }
        }
    }

    #[test]
    fn every_byte_matters_after_eight_passes() {
        let content = crate::content::bytes(3, 256);
        for (sum, calls) in [(Sum::Lines, 32), (Sum::All, 4)] {
            let expected = Reader::expected(&content, 64, sum, calls);
            for position in 0..content.len() {
                let mut changed = content.clone();
                changed[position] ^= 1;
                assert_ne!(Reader::expected(&changed, 64, sum, calls), expected, "byte {position}");
            }
        }
    }

    #[test]
    fn files_that_do_not_divide_are_refused() {
        for (length, block) in [(100, 64), (0, 64), (128, 0), (100, 50)] {
            assert!(Reader::new(file(&vec![0; length]), block, Sum::Lines).is_err());
        }
    }

    #[test]
    fn a_truncated_file_is_an_error_not_a_wrong_sum() {
        let file = file(&[7; 128]);
        let mut reader = Reader::new(file.try_clone().unwrap(), 64, Sum::Lines).unwrap();
        file.set_len(64).unwrap();
        assert_eq!(reader.run(2).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn measure_counts_warm_up_apart() {
        let amount =
            Amount { calls: 10, warmup_calls: CHUNK + 1, warmup: Duration::from_millis(0) };
        let mut seen = Vec::new();
        let line = measure(&amount, |calls| {
            seen.push(calls);
            Ok(0xab)
        })
        .unwrap();
        assert_eq!(seen, [CHUNK, CHUNK, 10]);
        assert_eq!((line.calls, line.total_calls), (10, 2 * CHUNK + 10));
        assert_eq!(line.checksum, "00000000000000ab");
    }

    #[test]
    fn serving_answers_each_number() {
        let mut output = Vec::new();
        serve(&b"3\n40\n"[..], &mut output, None, Ok).unwrap();
        let text = String::from_utf8(output).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], READY);
        let last: Line = serde_json::from_str(lines[2]).unwrap();
        assert_eq!(
            (last.calls, last.total_calls, last.checksum.as_str()),
            (40, 43, "0000000000000028")
        );
        assert!(serve(&b"x\n"[..], Vec::new(), None, Ok).is_err());
    }
}

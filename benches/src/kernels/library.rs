//! Functions of the C library in the variants that this CPU selects, called
//! through the linkage that any program has.

use anyhow::Result;

use super::Kernel;
use super::memory::{Memory, Numbers, integers, keys};
use crate::guest::Call;

/// The kernels of this file.
pub static KERNELS: [Kernel; 7] = [
    Kernel::own("libc strlen", strlen),
    Kernel::own("libc memchr", memchr),
    Kernel::own("libc memcmp", memcmp),
    Kernel::own("libc memcpy", memcpy),
    Kernel::own("libc memset", memset),
    Kernel::own("libc strtoll", strtoll),
    Kernel::own("libc qsort", qsort),
];

/// Strings from some bytes to some hundred.
fn strings(count: usize) -> Vec<Vec<u8>> {
    let mut numbers = Numbers::new(21);
    keys(count)
        .into_iter()
        .map(|key| {
            let mut string = vec![b'x'; numbers.below_power(0, 8) as usize];
            string.extend_from_slice(key.as_bytes());
            string
        })
        .collect()
}

fn strlen(memory: &mut Memory) -> Result<Call> {
    let strings = strings(1000);
    Ok(call!(ub_strlen, memory.strings(&strings).0, strings.len()))
}

fn memchr(memory: &mut Memory) -> Result<Call> {
    let strings = strings(1000);
    let (pointers, lengths) = memory.strings(&strings);
    Ok(call!(ub_memchr, pointers, lengths, strings.len()))
}

fn memcmp(memory: &mut Memory) -> Result<Call> {
    let strings = strings(1000);
    let mut others = strings.clone();
    for other in others.iter_mut().step_by(3) {
        let middle = other.len() / 2;
        other[middle] ^= 1;
    }
    let (pointers, lengths) = memory.strings(&strings);
    let (others, _) = memory.strings(&others);
    Ok(call!(ub_memcmp, pointers, others, lengths, strings.len()))
}

fn memcpy(memory: &mut Memory) -> Result<Call> {
    let strings = strings(1000);
    let (pointers, lengths) = memory.strings(&strings);
    let to = memory.zeroed(strings.iter().map(Vec::len).sum());
    Ok(call!(ub_memcpy, to, pointers, lengths, strings.len()))
}

fn memset(memory: &mut Memory) -> Result<Call> {
    let strings = strings(1000);
    let (_, lengths) = memory.strings(&strings);
    let to = memory.zeroed(strings.iter().map(Vec::len).sum());
    Ok(call!(ub_memset, to, lengths, strings.len()))
}

fn strtoll(memory: &mut Memory) -> Result<Call> {
    let numbers: Vec<String> = integers(150).iter().map(i64::to_string).collect();
    Ok(call!(ub_strtoll, memory.strings(&numbers).0, numbers.len()))
}

fn qsort(memory: &mut Memory) -> Result<Call> {
    let mut numbers = Numbers::new(22);
    let words: Vec<u64> = (0..100).map(|_| numbers.below(1 << 60)).collect();
    let scratch = memory.zeroed(8 * words.len());
    Ok(call!(ub_libc_qsort, scratch, memory.words(&words), words.len()))
}

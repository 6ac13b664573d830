//! What a system call that does nothing costs on this machine.

use std::arch::asm;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Batches of which the median counts: an interrupt spoils one, not all.
const BATCHES: usize = 31;
/// System calls in a batch.
const CALLS: u32 = 1000;

/// Measured costs, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// A system call that does nothing, as the program sees it when nobody
    /// profiles: the way into the kernel and back, mitigations included.
    pub switch_ns: f64,
    /// What the profiler measures for a gap without user instructions.
    pub empty_gap_ns: f64,
    /// What the profiler measures for a call that does nothing.
    pub empty_call_ns: f64,
    /// What the profiler adds to each system call.
    pub overhead_ns: f64,
}

/// Nanoseconds for one system call that does nothing: the median of batches.
#[must_use]
pub fn null_call_ns() -> f64 {
    let mut batches: Vec<f64> = (0..BATCHES)
        .map(|_| {
            let start = Instant::now();
            null_calls(CALLS);
            start.elapsed().as_nanos() as f64 / f64::from(CALLS)
        })
        .collect();
    median(&mut batches)
}

/// Makes `count` system calls with as little as possible in between.
pub(crate) fn null_calls(count: u32) {
    // SAFETY: getppid has no arguments and changes nothing; the clobbered
    // registers are those that the instruction clobbers.
    unsafe {
        asm!(
            "2:",
            "mov eax, {call}",
            "syscall",
            "dec {count:e}",
            "jnz 2b",
            call = const libc::SYS_getppid,
            count = inout(reg) count.max(1) => _,
            out("rax") _,
            out("rcx") _,
            out("r11") _,
        );
    }
}

/// The value in the middle; 0 of none.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_do_not_move_the_median() {
        assert_eq!(median(&mut [3.0, 1e9, 1.0, 2.0, 2.5]), 2.5);
        assert_eq!(median(&mut []), 0.0);
    }

    #[test]
    fn a_system_call_takes_time() {
        assert!(null_call_ns() > 1.0);
    }
}

//! What system calls and instructions cost on this machine.

pub mod exercise;
mod refill;
mod speed;

use std::arch::asm;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

pub use refill::Refill;
pub use speed::{copied_byte_ns, instruction_ns};

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
    /// The same where it only counts them.
    #[serde(default)]
    pub counting_ns: f64,
    /// One instruction of code like that of a ride.
    #[serde(default)]
    pub instruction_ns: f64,
    /// One byte that is copied.
    #[serde(default)]
    pub copied_byte_ns: f64,
    /// What calls that do something pay for the crossing besides `switch_ns`.
    #[serde(default)]
    pub refill: Refill,
}

impl Costs {
    /// Measures what can be measured without profiling.
    #[must_use]
    pub fn measure() -> Self {
        let switch_ns = null_call_ns();
        Self {
            switch_ns,
            instruction_ns: instruction_ns(),
            copied_byte_ns: copied_byte_ns(),
            // Without Unix sockets it stays unknown, and the bound is lower.
            refill: Refill::measure(switch_ns).unwrap_or_default(),
            ..Self::default()
        }
    }
}

/// Nanoseconds for one system call that does nothing: the median of batches.
#[must_use]
pub fn null_call_ns() -> f64 {
    ns_each(CALLS, || null_calls(CALLS))
}

/// Nanoseconds for each of the `items` that `work` does: the median of batches.
fn ns_each(items: u32, mut work: impl FnMut()) -> f64 {
    let mut batches = [0.0; BATCHES].map(|_: f64| {
        let start = cpu_ns();
        work();
        (cpu_ns() - start) / f64::from(items)
    });
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

/// CPU time of this thread, in nanoseconds: others may have load on the machine.
pub(crate) fn cpu_ns() -> f64 {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(0.0, |time| time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64)
}

/// The value in the middle; 0 of none.
#[must_use]
pub fn median(values: &mut [f64]) -> f64 {
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

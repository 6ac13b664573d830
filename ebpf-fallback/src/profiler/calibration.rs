//! What the profiler costs and measures of calls that do nothing.

use std::arch::asm;

use super::layout::{NO_CALL, SiteKey, Thread};
use super::{Profiler, Unavailable};
use crate::costs::{self, cpu_ns};

/// The last of the address spaces under which this process measures itself.
const OWN: u32 = u32::MAX;
/// How many times it does, watched in either way in turn: what slows the machine down
/// for a while slows both.
const ROUNDS: u32 = 15;
/// System calls each time.
const CALLS: u32 = 500;

/// Whether an address space is one under which this process measures itself.
pub(super) fn is_own(space: u32) -> bool {
    OWN - space < ROUNDS
}

impl Profiler {
    /// Begins to watch, this process making system calls that do nothing.
    pub(super) fn attach_and_measure(&mut self) -> Result<(), Unavailable> {
        let mut native = [0.0; ROUNDS as usize].map(|_: f64| own_call_ns());
        let native_ns = costs::median(&mut native);
        self.kernel.attach()?;
        let (mut timed, mut counted) = (Vec::new(), Vec::new());
        for space in (0..ROUNDS).map(|round| OWN - round) {
            timed.push(self.watched_call_ns(space)?);
            self.kernel.only_count(true)?;
            counted.push(self.watched_call_ns(space)?);
            self.kernel.only_count(false)?;
        }
        self.costs.overhead_ns = (costs::median(&mut timed) - native_ns).max(0.0);
        self.costs.counting_ns = (costs::median(&mut counted) - native_ns).max(0.0);
        let (mut gaps, mut calls) = (Vec::new(), Vec::new());
        let null = libc::SYS_getppid as u32;
        for (key, gap) in self.passages() {
            // The first of a site comes alone and takes longer.
            let is_null = key.call == null && key.next == null;
            if is_own(key.space) && is_null && gap.count > 1 {
                gaps.push(gap.gap_ns as f64 / gap.count as f64);
                calls.push(gap.call_ns as f64 / gap.count as f64);
            }
        }
        self.costs.empty_gap_ns = costs::median(&mut gaps);
        self.costs.empty_call_ns = costs::median(&mut calls);
        Ok(())
    }

    /// Nanoseconds for a call of this process that does nothing, watched as one of the address
    /// space `space`.
    fn watched_call_ns(&mut self, space: u32) -> Result<f64, Unavailable> {
        let tid = nix::unistd::gettid().as_raw().cast_unsigned();
        let thread = Thread { space, call: NO_CALL, ..Thread::default() };
        self.kernel.threads.insert(tid, thread, 0)?;
        // They have a caller each, as calls of most programs have: the first word of the
        // stack passes for it.
        for resume in null_calls_of_two_sites(1) {
            self.kernel.sites.insert(SiteKey { resume, space, padding: 0 }, 0, 0)?;
        }
        let ns = own_call_ns();
        self.kernel.threads.remove(&tid)?;
        Ok(ns)
    }
}

fn own_call_ns() -> f64 {
    let start = cpu_ns();
    null_calls_of_two_sites(CALLS / 2);
    (cpu_ns() - start) / f64::from(CALLS)
}

/// Makes twice `count` system calls that do nothing, at two sites in turn: the profiler
/// finds it easier to see the same one again. Where they resume: the same for every caller.
#[inline(never)]
fn null_calls_of_two_sites(count: u32) -> [u64; 2] {
    let (first, second): (u64, u64);
    // SAFETY: getppid has no arguments and changes nothing; the clobbered
    // registers are those that the instruction clobbers.
    unsafe {
        asm!(
            "2:",
            "mov eax, {call}",
            "syscall",
            "3:",
            "mov eax, {call}",
            "syscall",
            "4:",
            "dec {count:e}",
            "jnz 2b",
            "lea {first}, [rip + 3b]",
            "lea {second}, [rip + 4b]",
            call = const libc::SYS_getppid,
            count = inout(reg) count.max(1) => _,
            first = out(reg) first,
            second = out(reg) second,
            out("rax") _,
            out("rcx") _,
            out("r11") _,
        );
    }
    [first, second]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sites_are_two_and_near() {
        let [first, second] = null_calls_of_two_sites(1);
        assert_eq!(second - first, 7, "a move and a system call");
    }
}

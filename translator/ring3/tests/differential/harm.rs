//! Runs a fragment that nobody trusts, and sees what it does to whom.
//!
//! Harm is what ring 0 must never have:
//!
//! * a signal without a fixup (an oops), or an exit that does not exist;
//! * a page fault at a kernel address (the access would have succeeded there;
//!   a non-canonical address reports no address, as #GP does), or in memory
//!   that stands for the kernel's: frame, poll words, code;
//! * an address of that memory in a register, a vector or the guest's memory;
//! * a change of the frame beyond what is the fragment's;
//! * going on although work is pending: the worker's alarm ends it.

use crate::case::bad_pointer;
use crate::oracle::leak;
use crate::rng::Rng;
use iced_x86::{Decoder, DecoderOptions, Mnemonic, Register};
use std::ops::Range;
use std::sync::atomic::Ordering;
use ub_ring3::state::gpr;
use ub_ring3::{CpuState, GuestMemory, Loaded, PollWords, Runner};
use ub_translator::fragment::Fragment;

/// The top of the address space is a hole that small negative displacements
/// may reach.
const TOP_HOLE: u64 = 0u64.wrapping_sub(2 << 20);
/// So much around the host's stack pointer is private.
const HOST_STACK: u64 = 16 << 10;
const KERNEL: u64 = 0xffff_8000_0000_0000;

/// Registers full of what a hostile program would try.
pub fn hostile_state(rng: &mut Rng, state: &CpuState, memory: &GuestMemory) -> CpuState {
    let mut state = state.clone();
    let style = rng.below(4);
    for (i, r) in state.gpr.iter_mut().enumerate() {
        let data = memory.data() + 4096 + (8 * (rng.next() % 4096));
        if i != gpr::RSP {
            *r = match style {
                0 => KERNEL | 0x880_0000_0000 | rng.next() & 0xfff_fff8,
                1 => bad_pointer(rng, memory.data()),
                2 => rng.pick(&[data, *r, data & 0xff]),
                // Sums of these are kernel addresses, or wrap to small ones.
                _ => rng.pick(&[1 << 62, 3 << 62, KERNEL >> 1, 1 << 32, u64::from(u32::MAX), data]),
            };
        }
    }
    state
}

/// Whether running the code could write to this thread's own TLS, which the
/// test itself lives on, and which is a user's by right.
pub fn uses_fs(code: &[u8]) -> bool {
    Decoder::with_ip(64, code, 0, DecoderOptions::NONE)
        .iter()
        .any(|i| i.segment_prefix() == Register::FS || i.mnemonic() == Mnemonic::Rdfsbase)
}

fn leak_in_memory(memory: &GuestMemory, private: &[Range<u64>]) -> Option<u64> {
    memory.snapshot().words().find(|v| private.iter().any(|r| r.contains(v)))
}

/// Runs it once, with work pending. Err says what harm it did.
///
/// # Errors
/// The harm done.
pub fn run<State>(
    fragment: &Fragment<State>,
    state: &CpuState,
    memory: &GuestMemory,
    runner: &mut Runner,
) -> Result<(), String> {
    let loaded = Loaded::new(fragment).expect("mapping a fragment");
    let code = loaded.address()..loaded.address() + fragment.parts().code.len() as u64;
    let mut private = runner.private_ranges().to_vec();
    private.push(code.clone());
    // The frame of this call stands for the kernel's stack.
    let here = &raw const private as u64;
    private.push(here - HOST_STACK..here + HOST_STACK);
    let mut state = state.clone();
    // Every loop has to end at its first poll.
    runner.poison_frame();
    runner.poll_words().flags.store(PollWords::MASK, Ordering::SeqCst);
    // SAFETY: its pointers lead into the guest or, being random, to nothing.
    // That is what is tested, in a process that may be lost.
    let left = unsafe { runner.enter(&loaded, &mut state) }.map_err(|error| error.to_string())?;
    if let Some(fault) = left.fault.filter(|f| matches!(f.signo, libc::SIGSEGV | libc::SIGBUS)) {
        let kernel = (KERNEL..TOP_HOLE).contains(&fault.address);
        if kernel || private.iter().any(|r| r.contains(&fault.address)) {
            return Err(format!("{:#x}: reached for {fault:x?}", fault.ip - code.start));
        }
    }
    if !runner.frame_is_intact() {
        return Err("the frame, or what is around it, was written".into());
    }
    if private.iter().any(|r| r.contains(&left.next_ip())) {
        return Err(format!("goes on at {:#x}", left.next_ip()));
    }
    if let Some(value) = leak(&state, &loaded, &private) {
        return Err(format!("{value:#x} leaked into a register"));
    }
    if let Some(value) = leak_in_memory(memory, &private) {
        return Err(format!("{value:#x} leaked into memory"));
    }
    Ok(())
}

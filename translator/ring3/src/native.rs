//! The reference: guest code executed as it is.

use crate::signals::{self, Fault, greg};
use crate::state::{CpuState, USER_FLAGS};
use crate::xsave::Layout;
use crate::{Error, GuestMemory};
use std::cell::Cell;

/// How native guest code stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NativeStop {
    /// It reached an `int3` at this address, or with [`step_native`] this
    /// address.
    Trap(u64),
    /// It raised a signal; the state is that before the instruction.
    Signal(Fault),
}

unsafe extern "C" {
    /// `int3; ret`: the handler leaves for the guest from here and comes back.
    fn ub_ring3_gate();
}

std::arch::global_asm!(
    ".text",
    ".globl ub_ring3_gate",
    ".type ub_ring3_gate, @function",
    "ub_ring3_gate:",
    "int3",
    "ret",
    ".size ub_ring3_gate, . - ub_ring3_gate",
);

/// Largest signal-frame vector state that is put aside: AMX included.
const FP_BYTES: usize = 16 << 10;
/// Where the kernel describes the vector state in the frame, and the mark
/// that it does (`struct _fpx_sw_bytes`).
const SW_BYTES: usize = 464;
const SW_XSTATE_SIZE: usize = SW_BYTES + 16;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
/// Trap flag: one instruction, then SIGTRAP with this `si_code`.
const TF: u64 = 1 << 8;
const TRAP_TRACE: i32 = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Entering,
    Running,
    Stopped,
}

struct Context {
    phase: Phase,
    start: u64,
    step: bool,
    state: *mut CpuState,
    stop: Option<NativeStop>,
    layout: Layout,
    host_gregs: [i64; 23],
    host_fp: Vec<u8>,
    no_xsave: bool,
}

thread_local! {
    static CONTEXT: Cell<*mut Context> = const { Cell::new(std::ptr::null_mut()) };
}

/// Executes guest code from `start` with `state` until it reaches an `int3`
/// or faults, and puts the state at that point into `state`.
///
/// The state is installed and read by the kernel's signal return, so that all
/// of it is exact, the flags and vector registers included.
///
/// # Errors
/// If signals cannot be set up or do not carry the vector state.
///
/// # Safety
/// The code runs with this process's rights: it must reach an `int3` or fault
/// eventually, make no system call, and touch only memory that the caller
/// lets it use, or none.
pub unsafe fn run_native(start: u64, state: &mut CpuState) -> Result<NativeStop, Error> {
    // SAFETY: passed on to the caller.
    unsafe { run(start, state, false) }
}

/// Executes one instruction, or one iteration of a repeated one, and reports
/// where the program goes on.
///
/// # Errors
/// As [`run_native`].
///
/// # Safety
/// As [`run_native`], of the one instruction.
pub unsafe fn step_native(start: u64, state: &mut CpuState) -> Result<NativeStop, Error> {
    // SAFETY: passed on to the caller.
    unsafe { run(start, state, true) }
}

/// # Safety
/// As [`run_native`] or [`step_native`].
unsafe fn run(start: u64, state: &mut CpuState, step: bool) -> Result<NativeStop, Error> {
    signals::install()?;
    let mut context = Context {
        phase: Phase::Entering,
        start,
        step,
        state,
        stop: None,
        layout: Layout::get()?,
        host_gregs: [0; 23],
        host_fp: vec![0; FP_BYTES],
        no_xsave: false,
    };
    let pointer = &raw mut context;
    CONTEXT.set(pointer);
    // SAFETY: the gate traps; the handler finds `pointer`, which is alive
    // until this function returns, and comes back here with the host's
    // registers restored. What the guest does is the caller's promise.
    unsafe { ub_ring3_gate() };
    CONTEXT.set(std::ptr::null_mut());
    // SAFETY: the handler is done with it; read through the same pointer.
    let context = unsafe { &*pointer };
    if context.no_xsave {
        return Err(Error::NoXsave);
    }
    Ok(context.stop.expect("the handler comes back only with a stop or without XSAVE"))
}

/// As [`run_native`], with `int3` in place of the first byte of each address
/// of `stops` meanwhile: a program that ends with `syscall` stops there.
///
/// # Errors
/// As [`run_native`], or if a stop is outside the code area.
///
/// # Safety
/// As [`run_native`].
pub unsafe fn run_native_until(
    memory: &mut GuestMemory,
    start: u64,
    stops: &[u64],
    state: &mut CpuState,
) -> Result<NativeStop, Error> {
    let mut saved = Vec::new();
    for &stop in stops {
        let offset = stop.wrapping_sub(memory.code()) as usize;
        let original = memory.read_code(stop, 1);
        memory.write_code(offset, &[0xcc])?;
        saved.push((offset, original));
    }
    // SAFETY: passed on to the caller.
    let result = unsafe { run_native(start, state) };
    for (offset, original) in saved.iter().rev() {
        memory.write_code(*offset, original)?;
    }
    result
}

/// Handles a signal of the gate or of running guest code.
///
/// # Safety
/// Only to be called by the signal handler, with the context it was given.
pub(crate) unsafe fn on_signal(fault: Fault, uc: &mut libc::ucontext_t) -> bool {
    let context = CONTEXT.get();
    if context.is_null() {
        return false;
    }
    // SAFETY: non-null only while `run_native` is on this thread's stack,
    // waiting in the gate; so both objects are alive and not otherwise used.
    let (context, state) = unsafe { (&mut *context, &mut *(*context).state) };
    // SAFETY: the pointer is the kernel's, for this signal frame.
    let Some(fp) = (unsafe { fp_area(uc.uc_mcontext.fpregs.cast()) }) else {
        context.no_xsave = true;
        if context.phase == Phase::Running {
            uc.uc_mcontext.gregs = context.host_gregs;
        }
        context.phase = Phase::Stopped;
        return true;
    };
    let gregs = &mut uc.uc_mcontext.gregs;
    match context.phase {
        Phase::Entering => {
            context.host_gregs = *gregs;
            context.host_fp[..fp.len()].copy_from_slice(fp);
            for (value, index) in state.gpr.iter().zip(greg::GPR) {
                gregs[index] = *value as i64;
            }
            let trap = if context.step { TF } else { 0 };
            gregs[greg::EFL] = (state.rflags & USER_FLAGS | 0x202 | trap) as i64;
            gregs[greg::RIP] = context.start as i64;
            context.layout.store(&state.vectors, fp);
            context.phase = Phase::Running;
        }
        Phase::Running => {
            for (value, index) in state.gpr.iter_mut().zip(greg::GPR) {
                *value = gregs[index] as u64;
            }
            state.rflags = gregs[greg::EFL] as u64 & USER_FLAGS;
            context.layout.load(fp, &mut state.vectors);
            context.stop = Some(match fault.signo {
                libc::SIGTRAP if fault.code == TRAP_TRACE => NativeStop::Trap(fault.ip),
                // The trap is reported behind the one-byte instruction.
                libc::SIGTRAP => NativeStop::Trap(fault.ip - 1),
                _ => NativeStop::Signal(fault),
            });
            *gregs = context.host_gregs;
            fp.copy_from_slice(&context.host_fp[..fp.len()]);
            context.phase = Phase::Stopped;
        }
        Phase::Stopped => return false,
    }
    true
}

/// The XSAVE image in the signal frame.
///
/// # Safety
/// `base` is null or the `fpregs` of a signal frame that is alive and not
/// otherwise used for `'frame`.
unsafe fn fp_area<'frame>(base: *mut u8) -> Option<&'frame mut [u8]> {
    if base.is_null() {
        return None;
    }
    // SAFETY: the legacy region of 512 bytes is always there; where the mark
    // is, the kernel vouches for the size that follows it.
    unsafe {
        let word = |at: usize| base.add(at).cast::<u32>().read_unaligned();
        if word(SW_BYTES) != FP_XSTATE_MAGIC1 {
            return None;
        }
        let size = word(SW_XSTATE_SIZE) as usize;
        (size <= FP_BYTES).then(|| std::slice::from_raw_parts_mut(base, size))
    }
}

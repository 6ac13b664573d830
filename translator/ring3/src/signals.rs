//! Faults of guest code and of fragments arrive here.

use crate::{Error, native, runner};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

/// Indices into `uc_mcontext.gregs`.
pub(crate) mod greg {
    /// In the order of [`crate::CpuState::gpr`].
    pub const GPR: [usize; 16] = [
        libc::REG_RAX as usize,
        libc::REG_RCX as usize,
        libc::REG_RDX as usize,
        libc::REG_RBX as usize,
        libc::REG_RSP as usize,
        libc::REG_RBP as usize,
        libc::REG_RSI as usize,
        libc::REG_RDI as usize,
        libc::REG_R8 as usize,
        libc::REG_R9 as usize,
        libc::REG_R10 as usize,
        libc::REG_R11 as usize,
        libc::REG_R12 as usize,
        libc::REG_R13 as usize,
        libc::REG_R14 as usize,
        libc::REG_R15 as usize,
    ];
    pub const RSP: usize = libc::REG_RSP as usize;
    pub const RIP: usize = libc::REG_RIP as usize;
    pub const EFL: usize = libc::REG_EFL as usize;
}

/// A fault as the kernel reports it to a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// `si_signo`.
    pub signo: i32,
    /// `si_code`; SI_KERNEL (0x80) for a non-canonical address.
    pub code: i32,
    /// `si_addr`; 0 for a non-canonical address.
    pub address: u64,
    /// Instruction pointer of the signal context.
    pub ip: u64,
}

const SIGNALS: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP];

/// What was installed before, to hand over what is not ours.
static PREVIOUS: OnceLock<Vec<(i32, libc::sigaction)>> = OnceLock::new();

/// The alternate stack of one thread. AVX-512 signal frames take some 4 KiB;
/// the rest is for the handler, unoptimised.
struct SignalStack {
    bytes: *mut libc::c_void,
}

const STACK_BYTES: usize = 128 << 10;

impl Drop for SignalStack {
    fn drop(&mut self) {
        let disable =
            libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: the thread is ending outside any handler, so the stack is
        // not in use; it is unmapped only after the kernel let go of it.
        unsafe {
            libc::sigaltstack(&disable, std::ptr::null_mut());
            libc::munmap(self.bytes, STACK_BYTES);
        }
    }
}

thread_local! {
    static STACK: Cell<Option<SignalStack>> = const { Cell::new(None) };
    static READY: Cell<bool> = const { Cell::new(false) };
}

/// Installs the handlers, once per process, and this thread's signal stack.
pub(crate) fn install() -> Result<(), Error> {
    if READY.get() {
        return Ok(());
    }
    // SAFETY: a fresh private mapping, handed to the kernel until the
    // thread's end, when `SignalStack` takes it back.
    unsafe {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let bytes = libc::mmap(std::ptr::null_mut(), STACK_BYTES, rw, flags, -1, 0);
        if bytes == libc::MAP_FAILED {
            return Err(Error::system("mmap of a signal stack"));
        }
        let stack = libc::stack_t { ss_sp: bytes, ss_flags: 0, ss_size: STACK_BYTES };
        if libc::sigaltstack(&stack, std::ptr::null_mut()) != 0 {
            let error = Error::system("sigaltstack");
            libc::munmap(bytes, STACK_BYTES);
            return Err(error);
        }
        STACK.set(Some(SignalStack { bytes }));
    }
    let mut failed = None;
    PREVIOUS.get_or_init(|| {
        let mut previous = Vec::new();
        for signo in SIGNALS {
            let mut old = MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: both structures are valid; the handler is
            // async-signal-safe: it touches only const-initialised
            // thread-locals and memory prepared beforehand.
            let rc = unsafe {
                let mut new: libc::sigaction = std::mem::zeroed();
                new.sa_sigaction = handler as *const () as usize;
                new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigemptyset(&mut new.sa_mask);
                libc::sigaction(signo, &new, old.as_mut_ptr())
            };
            if rc == 0 {
                // SAFETY: filled in by the successful call.
                previous.push((signo, unsafe { old.assume_init() }));
            } else {
                failed = Some(Error::system("sigaction"));
            }
        }
        previous
    });
    if let Some(error) = failed {
        return Err(error);
    }
    READY.set(true);
    Ok(())
}

extern "C" fn handler(signo: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes valid pointers to its signal frame, which is
    // this handler's alone until it returns.
    let (info, context) = unsafe { (&*info, &mut *context.cast::<libc::ucontext_t>()) };
    let fault = Fault {
        signo,
        code: info.si_code,
        // SAFETY: SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGTRAP carry si_addr.
        address: unsafe { info.si_addr() } as u64,
        ip: context.uc_mcontext.gregs[greg::RIP] as u64,
    };
    // SAFETY: this is the signal handler, with its own context.
    if unsafe { native::on_signal(fault, context) || runner::on_signal(fault, context) } {
        return;
    }
    // Not ours: put back what was there and let the instruction fault again
    // (a trap is raised anew, its instruction being already done).
    let previous = PREVIOUS.get().and_then(|p| p.iter().find(|(s, _)| *s == signo));
    // SAFETY: restoring an action that the kernel reported; raise is
    // async-signal-safe.
    unsafe {
        match previous {
            Some((_, action)) => libc::sigaction(signo, action, std::ptr::null_mut()),
            None => libc::abort(),
        };
        if signo == libc::SIGTRAP {
            libc::raise(signo);
        }
    }
}

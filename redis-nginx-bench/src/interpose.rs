//! A null call that something else gets hold of first, and passes on: what
//! other ways of meddling with the system calls of unmodified programs cost.
//!
//! None of them saves a call; each is the price at which one can be seen. All
//! go through the same stub, `mov eax, getppid; syscall; ret`, in memory of its
//! own, so that it alone is interposed and this program's other calls are not.

use std::arch::naked_asm;
use std::fmt;
use std::io;
use std::mem;
use std::ptr;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;

/// A way of getting hold of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Interposer {
    /// The `syscall` instruction is replaced by `call *%rax`, which lands on a
    /// page at address 0 that leads to the handler: as zpoline does. Stays in
    /// user mode; needs the right to map that page (CAP_SYS_RAWIO).
    Rewrite,
    /// The kernel sends SIGSYS for calls from outside a range of code
    /// (PR_SET_SYSCALL_USER_DISPATCH).
    Dispatch,
    /// A seccomp filter sends SIGSYS for calls from the stub
    /// (SECCOMP_RET_TRAP).
    Seccomp,
}

impl Interposer {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rewrite, Self::Dispatch, Self::Seccomp];

    /// The name in reports and on command lines.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Rewrite => "rewrite",
            Self::Dispatch => "dispatch",
            Self::Seccomp => "seccomp",
        }
    }
}

impl fmt::Display for Interposer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for Interposer {
    type Err = Error;

    fn from_str(word: &str) -> crate::Result<Self> {
        Self::ALL
            .into_iter()
            .find(|interposer| interposer.word() == word)
            .ok_or_else(|| Error::Plan(format!("\"{word}\" is not rewrite, dispatch or seccomp")))
    }
}

/// `mov eax, SYS_getppid; syscall; ret`, and where in it the `syscall` is.
const STUB: [u8; 8] = [0xb8, 110, 0, 0, 0, 0x0f, 0x05, 0xc3];
const SYSCALL_AT: usize = 5;
/// `call *%rax`: as long as `syscall`.
const CALL_RAX: [u8; 2] = [0xff, 0xd0];
/// Where the stub is: below every mapping of a position-independent program,
/// so that the rest of the address space is one range.
const STUB_ADDRESS: usize = 0x1000_0000;
const PAGE: usize = 4096;
/// More than there are system calls: a call lands at the address that is its
/// number.
const NUMBERS: usize = 512;
/// `mov r11, HANDLER; jmp *%r11`. A system call destroys r11 as well.
const MOV_R11: [u8; 2] = [0x49, 0xbb];
const JMP_R11: [u8; 3] = [0x41, 0xff, 0xe3];

/// How many calls the handlers have passed on.
static PASSED_ON: AtomicU64 = AtomicU64::new(0);

/// The interposed stub.
#[derive(Debug)]
pub struct Stub {
    call: extern "C" fn() -> libc::c_long,
}

impl Stub {
    /// Sets it up, for the calling thread alone and for good.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(by: Interposer) -> io::Result<Self> {
        let mut code = STUB;
        if by == Interposer::Rewrite {
            code[SYSCALL_AT..][..CALL_RAX.len()].copy_from_slice(&CALL_RAX);
        }
        map_code(STUB_ADDRESS, &code)?;
        match by {
            Interposer::Rewrite => map_code(0, &landing())?,
            Interposer::Dispatch => {
                on_sigsys()?;
                dispatch()?;
            }
            Interposer::Seccomp => {
                on_sigsys()?;
                filter()?;
            }
        }
        // SAFETY: a whole function of this signature was just put there, and
        // nothing unmaps it.
        let call =
            unsafe { mem::transmute::<usize, extern "C" fn() -> libc::c_long>(STUB_ADDRESS) };
        Ok(Self { call })
    }

    /// `calls` times getppid, as [`null`](crate::micro::null) does it.
    ///
    /// # Errors
    /// A call that nobody had got hold of.
    #[inline(never)]
    pub fn run(&self, calls: u64, parent: u32) -> io::Result<u64> {
        let before = PASSED_ON.load(Ordering::Relaxed);
        let checksum = crate::micro::fold_answers(calls, parent, || (self.call)());
        let seen = PASSED_ON.load(Ordering::Relaxed) - before;
        if seen != calls {
            return Err(io::Error::other(format!("{seen} of {calls} calls were interposed")));
        }
        Ok(checksum)
    }
}

/// What is at address 0: whatever number is called, it slides to the jump.
fn landing() -> Vec<u8> {
    const NOP: u8 = 0x90;
    let mut code = vec![NOP; NUMBERS];
    code.extend(MOV_R11);
    code.extend((rewritten as *const () as usize).to_le_bytes());
    code.extend(JMP_R11);
    code
}

/// Where rewritten calls arrive. Keeps every register that a system call
/// keeps, passes the number and the first arguments on as a function takes
/// them, and returns behind the call.
#[unsafe(naked)]
extern "C" fn rewritten() {
    naked_asm!(
        "push rdi", "push rsi", "push rdx", "push r8", "push r9", "push r10", "push rbp",
        "mov rbp, rsp",
        // The stub's caller may have left the stack as it likes.
        "and rsp, -16",
        "mov rcx, rdx",
        "mov rdx, rsi",
        "mov rsi, rdi",
        "mov rdi, rax",
        "call {pass_on}",
        "mov rsp, rbp",
        "pop rbp", "pop r10", "pop r9", "pop r8", "pop rdx", "pop rsi", "pop rdi",
        "ret",
        pass_on = sym pass_on,
    )
}

/// Makes the call in the program's name. getppid has no arguments; these are
/// those of calls that have three.
extern "C" fn pass_on(
    number: libc::c_long,
    first: libc::c_long,
    second: libc::c_long,
    third: libc::c_long,
) -> libc::c_long {
    PASSED_ON.fetch_add(1, Ordering::Relaxed);
    // SAFETY: what the program asked for, with its own arguments.
    unsafe { libc::syscall(number, first, second, third) }
}

/// Where SIGSYS arrives: passes the call on and puts its result where the
/// program expects it.
extern "C" fn trapped(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the third argument is the interrupted context.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    let argument = |register: libc::c_int| registers[register as usize];
    let result = pass_on(
        argument(libc::REG_RAX),
        argument(libc::REG_RDI),
        argument(libc::REG_RSI),
        argument(libc::REG_RDX),
    );
    registers[libc::REG_RAX as usize] = result;
}

fn on_sigsys() -> io::Result<()> {
    // SAFETY: sigaction is plain data for which zeros are a valid value.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = trapped as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and calls
    // nothing but a system call.
    check(unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) }.into())
}

/// Lets the kernel send SIGSYS for calls from below and in the stub's page.
fn dispatch() -> io::Result<()> {
    /// `linux/prctl.h`.
    const PR_SET_SYSCALL_USER_DISPATCH: libc::c_int = 59;
    const PR_SYS_DISPATCH_ON: libc::c_ulong = 1;
    const SYSCALL_DISPATCH_FILTER_BLOCK: u8 = 1;
    /// The end of the user half with four levels of page tables.
    const USER_END: usize = 1 << 47;
    static BLOCKED: u8 = SYSCALL_DISPATCH_FILTER_BLOCK;
    let allowed = STUB_ADDRESS + PAGE;
    // SAFETY: the kernel reads the byte, which is static.
    check(libc::c_long::from(unsafe {
        libc::prctl(
            PR_SET_SYSCALL_USER_DISPATCH,
            PR_SYS_DISPATCH_ON,
            allowed as libc::c_ulong,
            (USER_END - allowed) as libc::c_ulong,
            &raw const BLOCKED,
        )
    }))
}

/// Installs a filter that traps calls from the stub.
fn filter() -> io::Result<()> {
    let words = [
        // The address behind the call: its upper half, then its lower one.
        load(mem::offset_of!(libc::seccomp_data, instruction_pointer) + 4),
        unless_equal(0, 3),
        load(mem::offset_of!(libc::seccomp_data, instruction_pointer)),
        unless_equal((STUB_ADDRESS + SYSCALL_AT + 2) as u32, 1),
        result(libc::SECCOMP_RET_TRAP),
        result(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: words.len() as u16, filter: words.as_ptr().cast_mut() };
    // SAFETY: the first has no pointers; the second reads the program, which
    // lives through the call and which the kernel checks.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
        check(libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        ))
    }
}

fn instruction(code: u32, if_false: u8, operand: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: if_false, k: operand }
}

fn load(offset: usize) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, offset as u32)
}

/// Skips `skipped` instructions unless what was loaded is `value`.
fn unless_equal(value: u32, skipped: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, skipped, value)
}

fn result(value: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, value)
}

/// Puts `code` on a page of its own at `address`.
fn map_code(address: usize, code: &[u8]) -> io::Result<()> {
    assert!(code.len() <= PAGE, "longer than a page: bug");
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    let wanted = ptr::without_provenance_mut(address);
    // SAFETY: a new mapping, which replaces none.
    let page = unsafe { libc::mmap(wanted, PAGE, writable, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        let error = io::Error::last_os_error();
        return Err(io::Error::new(error.kind(), format!("mapping {address:#x}: {error}")));
    }
    // Not through Rust's own copies: for them address 0 is no memory.
    // SAFETY: the page is writable, as long as a page, and nobody else's; the
    // assembly writes code.len() bytes there and reads as many from `code`.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rdi") address => _,
            inout("rsi") code.as_ptr() => _,
            inout("rcx") code.len() => _,
            options(nostack, preserves_flags),
        );
    }
    // SAFETY: the page is this function's own.
    check(unsafe { libc::mprotect(wanted, PAGE, libc::PROT_READ | libc::PROT_EXEC) }.into())
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_leads_to_the_handler() {
        let code = landing();
        assert!(code[..NUMBERS].iter().all(|byte| *byte == 0x90));
        assert!(code.len() <= PAGE && code.ends_with(&JMP_R11));
    }

    #[test]
    fn words_parse_back() {
        for interposer in Interposer::ALL {
            assert_eq!(interposer.to_string().parse::<Interposer>().unwrap(), interposer);
        }
        assert!("ptrace".parse::<Interposer>().is_err());
    }
}

//! The assembly between Rust and a fragment, and the frame it lives on.

use crate::table::{Entry, HASH_FACTOR, Lookup, Slot, VIA_TARGET};
use ub_translator::frame;

/// `struct ub_frame` followed by what the stubs keep beside it. While a
/// fragment runs, the hardware stack pointer points here.
#[repr(C, align(64))]
pub struct RunFrame {
    pub user_rsp: u64,
    pub target: u64,
    pub spill: [u64; frame::SPILL_SLOTS],
    pub user_r11: u64,
    pub poll_flags: u64,
    pub poll_softirq: u64,
    pub poll_mask: u32,
    pub exit_id: u32,
    pub budget: i32,
    pub host_rsp: u64,
    pub code: u64,
    /// Components to load and store around the fragment; 0 leaves the vector
    /// registers as they are.
    pub xsave_mask: u64,
    pub xsave_area: u64,
    pub rflags: u64,
    pub gpr: [u64; 16],
    /// The [`Lookup`](crate::table::Lookup) that the exit stub goes on with;
    /// null makes every exit return to the host.
    pub lookup: *const Lookup,
    /// With `lookup`: the fragment that runs.
    pub current: *const Entry,
    /// With `lookup`: how many fragments were entered behind the first one.
    pub followed: u64,
}

const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(RunFrame, user_rsp) as i32 == frame::USER_RSP);
    assert!(offset_of!(RunFrame, target) as i32 == frame::TARGET);
    assert!(offset_of!(RunFrame, spill) as i32 == frame::SPILL);
    assert!(offset_of!(RunFrame, user_r11) as i32 == frame::USER_R11);
    assert!(offset_of!(RunFrame, poll_flags) as i32 == frame::POLL_FLAGS);
    assert!(offset_of!(RunFrame, poll_softirq) as i32 == frame::POLL_SOFTIRQ);
    assert!(offset_of!(RunFrame, poll_mask) as i32 == frame::POLL_MASK);
    assert!(offset_of!(RunFrame, exit_id) as i32 == frame::EXIT_ID);
    assert!(offset_of!(RunFrame, budget) as i32 == frame::BUDGET);
    assert!(offset_of!(RunFrame, host_rsp) == frame::SIZE);
};

unsafe extern "C" {
    /// Loads the state of the frame, jumps to `code` and returns when the
    /// fragment reaches [`ub_ring3_exit`] and nothing follows it.
    pub fn ub_ring3_enter(frame: *mut RunFrame);
    /// Where a fragment's exit jumps lead: stores the state into the frame
    /// that `rsp` points at, enters the next fragment if the frame has a
    /// table with one, and else returns from [`ub_ring3_enter`].
    pub fn ub_ring3_exit();
}

// The callee-saved registers and MXCSR are kept on the host's stack, the
// host's stack pointer in the frame. `pushfq` and `popfq` use the eight bytes
// below the frame, which belong to its allocation.
std::arch::global_asm!(
    ".text",
    ".p2align 6",
    ".globl ub_ring3_enter",
    ".type ub_ring3_enter, @function",
    "ub_ring3_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "stmxcsr [rsp]",
    "mov [rdi + {host_rsp}], rsp",
    "mov rax, [rdi + {xsave_mask}]",
    "test rax, rax",
    "jz 2f",
    "mov rdx, rax",
    "shr rdx, 32",
    "mov rcx, [rdi + {xsave_area}]",
    "xrstor64 [rcx]",
    "2:",
    "3:",
    "mov rsp, rdi",
    "push qword ptr [rsp + {rflags}]",
    "popfq",
    "mov rax, [rsp + {gpr} + 0x00]",
    "mov rcx, [rsp + {gpr} + 0x08]",
    "mov rdx, [rsp + {gpr} + 0x10]",
    "mov rbx, [rsp + {gpr} + 0x18]",
    "mov rbp, [rsp + {gpr} + 0x28]",
    "mov rsi, [rsp + {gpr} + 0x30]",
    "mov rdi, [rsp + {gpr} + 0x38]",
    "mov r8, [rsp + {gpr} + 0x40]",
    "mov r9, [rsp + {gpr} + 0x48]",
    "mov r10, [rsp + {gpr} + 0x50]",
    "mov r12, [rsp + {gpr} + 0x60]",
    "mov r13, [rsp + {gpr} + 0x68]",
    "mov r14, [rsp + {gpr} + 0x70]",
    "mov r15, [rsp + {gpr} + 0x78]",
    "mov r11, [rsp + {code}]",
    "jmp r11",
    ".size ub_ring3_enter, . - ub_ring3_enter",
    "",
    ".p2align 6",
    ".globl ub_ring3_exit",
    ".type ub_ring3_exit, @function",
    "ub_ring3_exit:",
    "mov [rsp + {gpr} + 0x00], rax",
    "mov [rsp + {gpr} + 0x08], rcx",
    "mov [rsp + {gpr} + 0x10], rdx",
    "mov [rsp + {gpr} + 0x18], rbx",
    "mov [rsp + {gpr} + 0x28], rbp",
    "mov [rsp + {gpr} + 0x30], rsi",
    "mov [rsp + {gpr} + 0x38], rdi",
    "mov [rsp + {gpr} + 0x40], r8",
    "mov [rsp + {gpr} + 0x48], r9",
    "mov [rsp + {gpr} + 0x50], r10",
    "mov [rsp + {gpr} + 0x58], r11",
    "mov [rsp + {gpr} + 0x60], r12",
    "mov [rsp + {gpr} + 0x68], r13",
    "mov [rsp + {gpr} + 0x70], r14",
    "mov [rsp + {gpr} + 0x78], r15",
    "pushfq",
    "pop qword ptr [rsp + {rflags}]",
    "cld",
    "mov rdi, rsp",
    "mov rsi, [rdi + {lookup}]",
    "test rsi, rsi",
    "jnz 4f",
    // Back to the host.
    "1:",
    "mov rsp, [rdi + {host_rsp}]",
    "mov rax, [rdi + {xsave_mask}]",
    "test rax, rax",
    "jz 2f",
    "mov rdx, rax",
    "shr rdx, 32",
    "mov rcx, [rdi + {xsave_area}]",
    "xsave64 [rcx]",
    "2:",
    "ldmxcsr [rsp]",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    // On to the next fragment, if the table has one; vector registers are
    // not touched, so this is what a ride costs beside the kernel's checks.
    "4:",
    "mov eax, [rdi + {exit_id}]",
    "mov rdx, [rdi + {current}]",
    "cmp rax, [rdx + {exit_count}]",
    "jae 1b",
    "mov rcx, [rdx + {exits}]",
    "mov rax, [rcx + rax * 8]",
    "cmp rax, {via_target}",
    "jb 1b",
    "ja 5f",
    "mov rax, [rdi + {target}]",
    "5:",
    // The contract: the user's stack pointer is in the user half at entry.
    // Compared for the program's sake and masked for the verifier's, as the
    // kernel module does.
    "cmp qword ptr [rdi + {user_rsp}], 0",
    "jl 1b",
    "btr qword ptr [rdi + {user_rsp}], 63",
    "mov rcx, {hash_factor}",
    "imul rcx, rax",
    "shr rcx, 32",
    "6:",
    "and rcx, [rsi + {mask}]",
    "mov rdx, rcx",
    "shl rdx, {slot_shift}",
    "add rdx, [rsi + {slots}]",
    "mov r8, [rdx + {slot_address}]",
    "test r8, r8",
    "jz 1b",
    "inc rcx",
    "cmp r8, rax",
    "jne 6b",
    "mov rdx, [rdx + {slot_entry}]",
    "mov [rdi + {current}], rdx",
    "inc qword ptr [rdi + {followed}]",
    "mov rax, [rdx + {entry_code}]",
    "mov [rdi + {code}], rax",
    "mov rax, [rdi + {gpr} + 0x58]",
    "mov [rdi + {user_r11}], rax",
    "jmp 3b",
    ".size ub_ring3_exit, . - ub_ring3_exit",
    host_rsp = const std::mem::offset_of!(RunFrame, host_rsp),
    code = const std::mem::offset_of!(RunFrame, code),
    xsave_mask = const std::mem::offset_of!(RunFrame, xsave_mask),
    xsave_area = const std::mem::offset_of!(RunFrame, xsave_area),
    rflags = const std::mem::offset_of!(RunFrame, rflags),
    gpr = const std::mem::offset_of!(RunFrame, gpr),
    user_rsp = const frame::USER_RSP,
    user_r11 = const frame::USER_R11,
    target = const frame::TARGET,
    exit_id = const frame::EXIT_ID,
    lookup = const std::mem::offset_of!(RunFrame, lookup),
    current = const std::mem::offset_of!(RunFrame, current),
    followed = const std::mem::offset_of!(RunFrame, followed),
    exit_count = const std::mem::offset_of!(Entry, exit_count),
    exits = const std::mem::offset_of!(Entry, exits),
    entry_code = const std::mem::offset_of!(Entry, code),
    mask = const std::mem::offset_of!(Lookup, mask),
    slots = const std::mem::offset_of!(Lookup, slots),
    slot_address = const std::mem::offset_of!(Slot, address),
    slot_entry = const std::mem::offset_of!(Slot, entry),
    slot_shift = const size_of::<Slot>().ilog2(),
    hash_factor = const HASH_FACTOR,
    via_target = const VIA_TARGET,
);

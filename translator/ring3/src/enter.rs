//! The assembly between Rust and a fragment, and the frame it lives on.

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
    pub host_rsp: u64,
    pub code: u64,
    /// Components to load and store around the fragment; 0 leaves the vector
    /// registers as they are.
    pub xsave_mask: u64,
    pub xsave_area: u64,
    pub rflags: u64,
    pub gpr: [u64; 16],
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
    assert!(offset_of!(RunFrame, host_rsp) == frame::SIZE);
};

unsafe extern "C" {
    /// Loads the state of the frame, jumps to `code` and returns when the
    /// fragment reaches [`ub_ring3_exit`].
    pub fn ub_ring3_enter(frame: *mut RunFrame);
    /// Where a fragment's exit jumps lead: stores the state into the frame
    /// that `rsp` points at and returns from [`ub_ring3_enter`].
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
    ".size ub_ring3_exit, . - ub_ring3_exit",
    host_rsp = const std::mem::offset_of!(RunFrame, host_rsp),
    code = const std::mem::offset_of!(RunFrame, code),
    xsave_mask = const std::mem::offset_of!(RunFrame, xsave_mask),
    xsave_area = const std::mem::offset_of!(RunFrame, xsave_area),
    rflags = const std::mem::offset_of!(RunFrame, rflags),
    gpr = const std::mem::offset_of!(RunFrame, gpr),
);

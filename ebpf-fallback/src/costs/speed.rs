//! How fast this machine executes code like that of a ride, and copies.

use std::arch::asm;

use super::ns_each;

/// Instructions of one turn of the loop, those of its function included.
const INSTRUCTIONS: u32 = 27;
/// Bytes of a copy, and copies in a batch.
const COPIED: usize = 4096;
const COPIES: u32 = 8;
/// Turns in a batch.
const TURNS: u32 = 2000;

/// Nanoseconds for one instruction of a mixture like the kernel's on the way
/// from call to call: a function call, loads and stores, tests and branches,
/// pointers that are followed. A stand-in: a ride itself cannot be timed where
/// there is no module.
#[must_use]
pub fn instruction_ns() -> f64 {
    ns_each(TURNS * INSTRUCTIONS, || turns(TURNS))
}

/// Nanoseconds for a byte that is copied as the kernel does it.
#[must_use]
pub fn copied_byte_ns() -> f64 {
    let from = [1u8; COPIED];
    let mut to = [0u8; COPIED];
    let copied = COPIED as u32;
    let ns = ns_each(copied * COPIES, || {
        for _ in 0..COPIES {
            let (from, to) = (from.as_ptr(), std::hint::black_box(&mut to).as_mut_ptr());
            // SAFETY: both arrays have so many bytes, and the direction flag is
            // clear in Rust code.
            unsafe {
                asm!(
                    "rep movsb",
                    inout("rcx") COPIED => _,
                    inout("rsi") from => _,
                    inout("rdi") to => _,
                    options(nostack, preserves_flags),
                );
            }
        }
    });
    std::hint::black_box(to[0]);
    ns
}

/// Executes [`INSTRUCTIONS`] `count` times.
pub(super) fn turns(count: u32) {
    let mut memory = [1u64, 2, 3, 0];
    memory[3] = memory.as_ptr().addr() as u64;
    // SAFETY: touches the array that `memory` points to and whose last element
    // is its address, the stack below its
    // pointer, which an asm block without `nostack` may use, and registers that
    // are declared.
    unsafe {
        asm!(
            "2:",
            // 18 instructions here.
            "mov rax, [{memory}]",
            "add rax, 1",
            "mov [{memory}], rax",
            "test rax, rax",
            "jz 4f",
            "call 3f",
            "mov rdx, [{memory} + 8]",
            "cmp rdx, rax",
            "je 4f",
            "mov [{memory} + 16], rdx",
            "lea rdx, [rdx + rax]",
            "test edx, edx",
            "js 5f",
            "5:",
            // Pointers to follow, as there are in the kernel: each takes the
            // latency of a load, and the processor cannot run ahead of it.
            "mov {memory}, [{memory} + 24]",
            "mov {memory}, [{memory} + 24]",
            "mov {memory}, [{memory} + 24]",
            "4:",
            "dec {count:e}",
            "jnz 2b",
            "jmp 6f",
            // 9 instructions.
            "3:",
            "push rdx",
            "mov rdx, [{memory} + 16]",
            "test rdx, rdx",
            "jz 7f",
            "mov rax, rdx",
            "add rax, 5",
            "7:",
            "mov [{memory} + 8], rdx",
            "pop rdx",
            "ret",
            "6:",
            memory = inout(reg) memory.as_mut_ptr() => _,
            count = inout(reg) count.max(1) => _,
            out("rax") _,
            out("rdx") _,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_take_time() {
        let ns = copied_byte_ns();
        assert!(ns > 0.0 && ns < 1000.0, "{ns}");
    }

    #[test]
    fn instructions_take_time() {
        let ns = instruction_ns();
        assert!(ns > 0.0 && ns < 1000.0, "{ns}");
    }
}

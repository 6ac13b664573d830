//! Bad pointers: the fragment leaves before the instruction, with the very
//! registers that a native signal handler sees.

use crate::case::random_state;
use crate::harness::fragment_at;
use crate::rng::Rng;
use iced_x86::code_asm::*;
use ub_ring3::state::{USER_FLAGS, gpr};
use ub_ring3::{CpuState, GuestMemory, Loaded, NativeStop, Runner, run_native};
use ub_translator::fragment::ExitKind;

/// Null, the kernel's direct map, non-canonical ones, the top of both halves
/// and of the address space.
fn bad_pointers(memory: &GuestMemory) -> Vec<u64> {
    let data = memory.data();
    vec![
        0,
        8,
        data - 4096,
        0x0000_7fff_ffff_f000,
        0x0000_8000_0000_0000,
        0x00ff_ffff_ffff_ff00,
        0x4000_0000_0000_0000,
        0x7fff_ffff_ffff_fff0,
        0x8000_0000_0000_0000,
        0x8000_0000_0000_0000 | data,
        0xff00_0000_0000_0000,
        0xffff_8880_0000_0000,
        0xffff_ffff_8100_0000,
        0xffff_ffff_ff60_0000,
        0xffff_ffff_ffff_ff00,
    ]
}

struct Case {
    name: &'static str,
    /// Which register holds the pointer.
    pointer: usize,
    /// Flags that this instruction or the next overwrites unread may differ
    /// at the exit; the others may not.
    flags: u64,
    code: fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
}

const CASES: &[Case] = &[
    Case {
        name: "load",
        pointer: gpr::RBX,
        flags: USER_FLAGS,
        code: |a| a.mov(rax, qword_ptr(rbx)),
    },
    Case {
        name: "load with displacement",
        pointer: gpr::R9,
        flags: USER_FLAGS,
        code: |a| a.mov(eax, dword_ptr(r9 + 0x10)),
    },
    Case {
        name: "load with index",
        pointer: gpr::R13,
        flags: USER_FLAGS,
        code: |a| a.movzx(eax, byte_ptr(r13 + rcx * 4)),
    },
    Case {
        name: "store",
        pointer: gpr::RDI,
        flags: USER_FLAGS,
        code: |a| a.mov(word_ptr(rdi), ax),
    },
    Case {
        name: "store immediate",
        pointer: gpr::R12,
        flags: USER_FLAGS,
        code: |a| a.mov(qword_ptr(r12 + 8), 1),
    },
    Case {
        name: "read and write",
        pointer: gpr::RBP,
        flags: 0,
        code: |a| a.add(dword_ptr(rbp), 7),
    },
    Case { name: "locked", pointer: gpr::R8, flags: 0, code: |a| a.lock().add(qword_ptr(r8), 1) },
    Case {
        name: "exchange",
        pointer: gpr::R14,
        flags: 0,
        code: |a| {
            a.xchg(qword_ptr(r14), rdx)?;
            // Or the flags would be alive, and the exchange not translated.
            a.cmp(rax, rdx)
        },
    },
    Case {
        name: "vector load",
        pointer: gpr::RSI,
        flags: USER_FLAGS,
        code: |a| a.movdqu(xmm3, xmmword_ptr(rsi)),
    },
    Case {
        name: "vector store",
        pointer: gpr::R15,
        flags: USER_FLAGS,
        code: |a| a.movups(xmmword_ptr(r15), xmm3),
    },
    Case {
        name: "push of memory",
        pointer: gpr::RDX,
        flags: USER_FLAGS,
        code: |a| a.push(qword_ptr(rdx)),
    },
    Case {
        name: "call through memory",
        pointer: gpr::R10,
        flags: USER_FLAGS,
        code: |a| a.call(qword_ptr(r10)),
    },
    Case {
        name: "jump through memory",
        pointer: gpr::R11,
        flags: USER_FLAGS,
        code: |a| a.jmp(qword_ptr(r11)),
    },
    Case { name: "push", pointer: gpr::RSP, flags: USER_FLAGS, code: |a| a.push(rax) },
    Case { name: "pop", pointer: gpr::RSP, flags: USER_FLAGS, code: |a| a.pop(rax) },
    Case { name: "ret", pointer: gpr::RSP, flags: USER_FLAGS, code: |a| a.ret() },
    Case {
        name: "load from the stack",
        pointer: gpr::RSP,
        flags: USER_FLAGS,
        code: |a| a.mov(rax, qword_ptr(rsp + 8)),
    },
    Case { name: "leave", pointer: gpr::RBP, flags: USER_FLAGS, code: |a| a.leave() },
    Case { name: "lods", pointer: gpr::RSI, flags: USER_FLAGS, code: |a| a.lodsb() },
    Case { name: "stos", pointer: gpr::RDI, flags: USER_FLAGS, code: |a| a.stosq() },
    Case { name: "compare", pointer: gpr::RAX, flags: 0, code: |a| a.cmp(byte_ptr(rax), 0) },
];

/// Runs one program on one state, translated and natively. The first
/// instruction changes flags, so that a FAULT must give their new value.
fn same_fault(
    memory: &mut GuestMemory,
    runner: &mut Runner,
    name: &str,
    start: &CpuState,
    flags: u64,
) {
    let ip = memory.code();
    let mut native = start.clone();
    // SAFETY: the program's only access is to an address that cannot be used.
    let stop = unsafe { run_native(ip, &mut native) }.unwrap();
    let NativeStop::Signal(signal) = stop else { panic!("{name}: no fault natively: {stop:?}") };

    let fragment = fragment_at(memory, ip, name).expect("translatable");
    let loaded = Loaded::new(&fragment).unwrap();
    let mut state = start.clone();
    // SAFETY: a verified fragment of the same program.
    let left = unsafe { runner.enter(&loaded, &mut state) }.unwrap();
    let kind = left.exit.kind;
    assert!(matches!(kind, ExitKind::Fault | ExitKind::Guard), "{name}: {left:?}\n{start:?}");
    assert_eq!(left.exit.user_ip, signal.ip, "{name}: {left:?}\n{start:?}");
    assert_eq!(state.differences(&native, flags), Vec::<String>::new(), "{name}: {left:?}");
    if let Some(fault) = left.fault {
        // Whatever was touched, it was not the kernel's half.
        assert!(fault.address >> 63 == 0 || fault.address >= 0u64.wrapping_sub(2 << 20), "{name}");
    }
}

#[test]
fn bad_pointers_leave_as_natively() {
    let _guests = crate::beside_others();
    let mut memory = GuestMemory::new().unwrap();
    let mut runner = Runner::new().unwrap();
    let mut rng = Rng(1);
    for case in CASES {
        let mut a = CodeAssembler::new(64).unwrap();
        a.add(rcx, 3).unwrap();
        (case.code)(&mut a).unwrap();
        a.syscall().unwrap();
        memory.write_code(0, &a.assemble(memory.code()).unwrap()).unwrap();
        for pointer in bad_pointers(&memory) {
            // The runner does not enter with such a stack pointer.
            if case.pointer == gpr::RSP && pointer >= 1 << 47 {
                continue;
            }
            let mut state = random_state(&mut rng, &memory);
            state.gpr[gpr::RCX] = 5;
            state.gpr[case.pointer] = pointer;
            let name = format!("{} at {pointer:#x}", case.name);
            same_fault(&mut memory, &mut runner, &name, &state, case.flags);
        }
    }
}

#[test]
fn stack_pointers_made_bad_by_the_program_leave_as_natively() {
    let _guests = crate::beside_others();
    let mut memory = GuestMemory::new().unwrap();
    let mut runner = Runner::new().unwrap();
    let mut rng = Rng(2);
    for pointer in bad_pointers(&memory) {
        let mut a = CodeAssembler::new(64).unwrap();
        a.mov(rsp, rbx).unwrap();
        a.push(rax).unwrap();
        a.syscall().unwrap();
        memory.write_code(0, &a.assemble(memory.code()).unwrap()).unwrap();
        let mut state = random_state(&mut rng, &memory);
        state.gpr[gpr::RBX] = pointer;
        // A guard may already refuse the move itself, which natively does not
        // fault; so go on natively from wherever the fragment left.
        let ip = memory.code();
        let mut native = state.clone();
        // SAFETY: the push faults.
        let expected = unsafe { run_native(ip, &mut native) }.unwrap();
        let fragment = fragment_at(&memory, ip, "mov rsp; push").expect("translatable");
        let loaded = Loaded::new(&fragment).unwrap();
        // SAFETY: a verified fragment of the same program.
        let left = unsafe { runner.enter(&loaded, &mut state) }.unwrap();
        // SAFETY: as the native run above.
        let stop = unsafe { run_native(left.next_ip(), &mut state) }.unwrap();
        assert_eq!(stop, expected, "{pointer:#x}: {left:?}");
        assert_eq!(state.differences(&native, USER_FLAGS), Vec::<String>::new(), "{pointer:#x}");
    }
}

#[test]
fn a_repeated_store_that_hits_a_guard_page_stops_where_natively() {
    let _guests = crate::beside_others();
    let mut memory = GuestMemory::new().unwrap();
    let mut runner = Runner::new().unwrap();
    let mut a = CodeAssembler::new(64).unwrap();
    a.rep().stosb().unwrap();
    a.syscall().unwrap();
    memory.write_code(0, &a.assemble(memory.code()).unwrap()).unwrap();
    let end = memory.data() + ub_ring3::memory::DATA_BYTES as u64;
    for before in [1, 15, 64, 1000] {
        let mut state = random_state(&mut Rng(before), &memory);
        state.gpr[gpr::RCX] = ub_translator::frame::REP_LIMIT as u64;
        state.gpr[gpr::RDI] = end - before;
        same_fault(&mut memory, &mut runner, "rep stosb", &state, USER_FLAGS);
    }
}

#[test]
fn division_errors_leave_before_the_division() {
    let _guests = crate::beside_others();
    let mut memory = GuestMemory::new().unwrap();
    let mut runner = Runner::new().unwrap();
    let mut a = CodeAssembler::new(64).unwrap();
    a.idiv(rbx).unwrap();
    a.syscall().unwrap();
    memory.write_code(0, &a.assemble(memory.code()).unwrap()).unwrap();
    for (divisor, high) in [(0, 0), (1, 5)] {
        let mut state = random_state(&mut Rng(3), &memory);
        state.gpr[gpr::RBX] = divisor;
        state.gpr[gpr::RDX] = high;
        same_fault(&mut memory, &mut runner, "idiv", &state, 0);
    }
}

#[test]
fn unmasked_float_errors_leave_before_the_instruction() {
    let _guests = crate::beside_others();
    let mut memory = GuestMemory::new().unwrap();
    let mut runner = Runner::new().unwrap();
    let mut a = CodeAssembler::new(64).unwrap();
    a.divsd(xmm0, xmm1).unwrap();
    a.syscall().unwrap();
    memory.write_code(0, &a.assemble(memory.code()).unwrap()).unwrap();
    let mut state = random_state(&mut Rng(4), &memory);
    state.vectors.mxcsr = 0x1f80 & !(1 << 9); // division by zero traps
    state.vectors.zmm[0][..8].copy_from_slice(&1.0f64.to_le_bytes());
    state.vectors.zmm[1][..8].copy_from_slice(&0.0f64.to_le_bytes());
    same_fault(&mut memory, &mut runner, "divsd", &state, USER_FLAGS);
}

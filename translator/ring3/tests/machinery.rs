//! The machinery itself, on hand-written guest code and a hand-written
//! fragment: if these fail, no other ring-3 result means anything.
#![allow(clippy::single_range_in_vec_init, reason = "a list of sources may have one range")]

use iced_x86::code_asm::*;
use std::rc::Rc;
use ub_ring3::state::{ARITHMETIC_FLAGS, USER_FLAGS, gpr};
use ub_ring3::{
    CpuState, GuestMemory, Loaded, NativeStop, Runner, UncaughtFault, run_native, run_native_until,
};
use ub_translator::fragment::{
    Exit, ExitId, ExitKind, Fixup, Fragment, Parts, Translated, Unsupported,
};
use ub_translator::frame;

/// A state in which every register has a value of its own.
fn distinct_state() -> CpuState {
    let mut state = CpuState::default();
    for (i, r) in state.gpr.iter_mut().enumerate() {
        *r = 0x0101_0101_0101_0101 * (i as u64 + 1);
    }
    for (i, z) in state.vectors.zmm.iter_mut().enumerate() {
        for (j, b) in z.iter_mut().take(if i < 16 { 16 } else { 0 }).enumerate() {
            *b = (i * 16 + j) as u8;
        }
    }
    state.vectors.mxcsr = 0x1fa0;
    state.rflags = ARITHMETIC_FLAGS;
    state
}

#[test]
fn native_state_goes_in_and_comes_out_exactly() {
    let mut memory = GuestMemory::new().unwrap();
    memory.write_code(0, &[0x90, 0xcc]).unwrap();
    let mut state = distinct_state();
    let before = state.clone();
    // SAFETY: a nop and a trap.
    let stop = unsafe { run_native(memory.code(), &mut state) }.unwrap();
    assert_eq!(stop, NativeStop::Trap(memory.code() + 1));
    assert_eq!(state.differences(&before, USER_FLAGS), Vec::<String>::new());
}

#[test]
fn native_runs_to_the_syscall_and_leaves_the_bytes_alone() {
    let mut memory = GuestMemory::new().unwrap();
    let code = [0x48, 0xff, 0xc0, 0x0f, 0x05]; // inc rax; syscall
    memory.write_code(0, &code).unwrap();
    let mut state = CpuState::default();
    let (start, stop) = (memory.code(), memory.code() + 3);
    // SAFETY: stops at the syscall.
    let end = unsafe { run_native_until(&mut memory, start, &[stop], &mut state) }.unwrap();
    assert_eq!(end, NativeStop::Trap(stop));
    assert_eq!(state.gpr[gpr::RAX], 1);
    assert_eq!(memory.read_code(start, 5), code);
}

#[test]
fn native_fault_reports_what_a_program_would_see() {
    let mut memory = GuestMemory::new().unwrap();
    memory.write_code(0, &[0x48, 0x8b, 0x18]).unwrap(); // mov rbx,[rax]
    for (address, si_code, si_addr) in [
        (0, 1, 0),
        (0xffff_8880_0000_0000, 1, 0xffff_8880_0000_0000),
        (0x8000_0000_0000_0000, 0x80, 0),
        (memory.data() - 8, 2, memory.data() - 8),
    ] {
        let mut state = distinct_state();
        state.gpr[gpr::RAX] = address;
        let before = state.clone();
        // SAFETY: one load, of an address that cannot be read.
        let stop = unsafe { run_native(memory.code(), &mut state) }.unwrap();
        let NativeStop::Signal(fault) = stop else { panic!("{stop:?}") };
        assert_eq!((fault.signo, fault.ip), (libc::SIGSEGV, memory.code()));
        // Which of MAPERR (1) and ACCERR (2) a guard page gives is the kernel's choice.
        if si_code == 0x80 {
            assert_eq!(fault.code, 0x80);
        } else {
            assert_eq!(fault.address, si_addr);
        }
        assert_eq!(state.differences(&before, USER_FLAGS), Vec::<String>::new());
    }
}

/// endbr64; [body]; exit 0 of kind `kind`; landing: exit 1 FAULT.
fn fragment(kind: ExitKind, body: impl FnOnce(&mut CodeAssembler)) -> Fragment<Translated> {
    let mut a = CodeAssembler::new(64).unwrap();
    a.endbr64().unwrap();
    body(&mut a);
    let mut code = a.assemble(0).unwrap();
    let fault = 4;
    let mut relocations = Vec::new();
    let mut landing = 0;
    for id in 0..2u32 {
        landing = code.len() as u32;
        code.extend([0xc7, 0x44, 0x24, frame::EXIT_ID as u8]);
        code.extend(id.to_le_bytes());
        // mov r11,[rsp+user_r11]
        code.extend([0x4c, 0x8b, 0x5c, 0x24, frame::USER_R11 as u8]);
        code.push(0xe9);
        relocations.push(code.len() as u32);
        code.extend([0; 4]);
    }
    let exit = |user_ip, kind| Exit { user_ip, kind, reason: Unsupported::None };
    Fragment::new(Parts {
        entry: 0x1000,
        code,
        exits: vec![exit(0x2000, kind), exit(0x1000, ExitKind::Fault)],
        fixups: vec![Fixup { fault, landing }],
        relocations,
        sources: vec![0x1000..0x1010],
        guest_instructions: 1,
        work: frame::WORK_LIMIT,
        map: vec![],
    })
}

#[test]
fn fragment_state_goes_in_and_comes_out_exactly() {
    let loaded = Loaded::new(&fragment(ExitKind::Syscall, |_| ())).unwrap();
    let mut runner = Runner::new().unwrap();
    let mut state = distinct_state();
    let before = state.clone();
    // SAFETY: touches no memory.
    let out = unsafe { runner.enter(&loaded, &mut state) }.unwrap();
    assert_eq!((out.id, out.exit.kind, out.next_ip()), (ExitId(0), ExitKind::Syscall, 0x2000));
    assert_eq!(out.fault, None);
    assert_eq!(state.differences(&before, USER_FLAGS), Vec::<String>::new());
}

#[test]
fn fragment_starts_with_the_frame_and_r11_of_the_contract() {
    let loaded = Loaded::new(&fragment(ExitKind::Syscall, |a| {
        a.mov(rax, qword_ptr(rsp + frame::USER_RSP)).unwrap();
        a.mov(rbx, r11).unwrap();
        a.mov(qword_ptr(rsp + frame::USER_RSP), rcx).unwrap();
    }))
    .unwrap();
    let mut runner = Runner::new().unwrap();
    let mut state = distinct_state();
    let before = state.clone();
    // SAFETY: touches the frame only.
    unsafe { runner.enter(&loaded, &mut state) }.unwrap();
    assert_eq!(state.gpr[gpr::RAX], before.gpr[gpr::RSP]);
    assert_eq!(state.gpr[gpr::RBX], loaded.address());
    assert_eq!(state.gpr[gpr::RSP], before.gpr[gpr::RCX]);
    assert_eq!(state.gpr[gpr::R11], before.gpr[gpr::R11]);
}

#[test]
fn fixups_catch_listed_faults_and_nothing_else() {
    let mut runner = Runner::new().unwrap();
    for address in [8, 0xffff_8880_0000_0000, 0x8000_0000_0000_0000] {
        let mut state = distinct_state();
        state.gpr[gpr::RAX] = address;
        let before = state.clone();
        let listed = Loaded::new(&fragment(ExitKind::Syscall, |a| {
            a.mov(rbx, qword_ptr(rax)).unwrap();
        }))
        .unwrap();
        // SAFETY: one load, of an address that cannot be read.
        let out = unsafe { runner.enter(&listed, &mut state) }.unwrap();
        assert_eq!((out.id, out.exit.kind), (ExitId(1), ExitKind::Fault));
        assert_eq!(out.fault.map(|f| f.ip), Some(listed.address() + 4));
        assert_eq!(state.differences(&before, USER_FLAGS), Vec::<String>::new());

        let unlisted = Loaded::new(&fragment(ExitKind::Syscall, |a| {
            a.nop().unwrap();
            a.mov(rbx, qword_ptr(rax)).unwrap();
        }))
        .unwrap();
        // SAFETY: as above.
        let error = unsafe { runner.enter(&unlisted, &mut state) }.unwrap_err();
        let UncaughtFault::Signal(fault) = error else { panic!("{error}") };
        assert_eq!(fault.ip, unlisted.address() + 5);
    }
}

#[test]
fn chains_follow_branches_until_there_is_no_fragment() {
    let first =
        Rc::new(Loaded::new(&fragment(ExitKind::Branch, |a| a.add(rax, 1).unwrap())).unwrap());
    let second =
        Rc::new(Loaded::new(&fragment(ExitKind::Syscall, |a| a.add(rax, 2).unwrap())).unwrap());
    let mut runner = Runner::new().unwrap();
    let mut state = CpuState::default();
    let mut lookup = |ip| match ip {
        0x1000 => Some(Rc::clone(&first)),
        0x2000 => Some(Rc::clone(&second)),
        _ => None,
    };
    // SAFETY: neither touches memory.
    let chain = unsafe { runner.run_chain(0x1000, &mut state, 10, &mut lookup) }.unwrap().unwrap();
    assert_eq!((chain.entered, chain.last.exit.kind), (2, ExitKind::Syscall));
    assert_eq!(state.gpr[gpr::RAX], 3);
    // SAFETY: nothing is run.
    assert!(unsafe { runner.run_chain(0x9, &mut state, 10, &mut lookup) }.unwrap().is_none());
}

#[test]
fn guest_memory_is_put_back_and_bounded() {
    let mut memory = GuestMemory::new().unwrap();
    memory.write_data(8, &[1, 2, 3]).unwrap();
    let before = memory.snapshot();
    memory.write_data(9, &[7]).unwrap();
    assert_eq!(memory.snapshot().first_difference(&before), Some(("data", 9, 7, 2)));
    memory.restore(&before);
    assert_eq!(memory.snapshot().first_difference(&before), None);
    assert!(memory.write_data(ub_ring3::memory::DATA_BYTES - 1, &[0, 0]).is_err());
    assert!(memory.write_code(usize::MAX, &[0]).is_err());
    assert!(memory.read_code(memory.code() - 1, 4).is_empty());
    assert!(memory.read_code(u64::MAX, 4).is_empty());
}

#[test]
fn two_guests_do_not_share_addresses() {
    let (a, b) = (GuestMemory::new().unwrap(), GuestMemory::new().unwrap());
    assert_ne!(a.code(), b.code());
}

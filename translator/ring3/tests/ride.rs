//! Rides: fragments that follow each other without returning to the host.

use std::rc::Rc;

use iced_x86::code_asm::*;
use ub_ring3::state::gpr;
use ub_ring3::{CpuState, FragmentTable, GuestMemory, Loaded, Runner};
use ub_translator::fragment::ExitKind;
use ub_translator::verifier::{Features, Policy, verify};
use ub_translator::{CpuFeatures, Options, SliceSource, translate};

/// Where no fragment is: a canonical address without a mapping.
const OUTSIDE: u64 = 0x1000;

/// Assembles at the start of the guest's code and translates each of the
/// instructions `entries` (by number).
fn fragments(
    memory: &mut GuestMemory,
    entries: &[usize],
    assemble: impl FnOnce(&mut CodeAssembler),
) -> Vec<Rc<Loaded>> {
    let mut options = Options::new(CpuFeatures::host());
    options.max_instructions = 1;
    fragments_with(&options, memory, entries, assemble)
}

/// As [`fragments`], of as many instructions as `options` allow.
fn fragments_with(
    options: &Options,
    memory: &mut GuestMemory,
    entries: &[usize],
    assemble: impl FnOnce(&mut CodeAssembler),
) -> Vec<Rc<Loaded>> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    assemble(&mut assembler);
    let base = memory.code();
    let code = assembler.assemble(base).unwrap();
    memory.write_code(0, &code).unwrap();
    let addresses: Vec<u64> =
        iced_x86::Decoder::with_ip(64, &code, base, 0).iter().map(|i| i.ip()).collect();
    let policy = Policy::new(Features::host());
    entries
        .iter()
        .map(|&entry| {
            let mut source = SliceSource { address: base, bytes: &code };
            let fragment = translate(addresses[entry], &mut source, options).unwrap();
            Rc::new(Loaded::new(&verify(fragment, &policy).unwrap()).unwrap())
        })
        .collect()
}

fn state(memory: &GuestMemory) -> CpuState {
    let mut state = CpuState::default();
    for (number, register) in state.gpr.iter_mut().enumerate() {
        *register = 0x0101_0101 * (number as u64 + 1);
    }
    state.gpr[gpr::RSP] = memory.stack_end() - 64;
    state
}

#[test]
fn registers_vectors_and_stack_pass_from_fragment_to_fragment() {
    let mut memory = GuestMemory::new().unwrap();
    let all = fragments(&mut memory, &[0, 1, 2, 3, 4, 5, 6], |a| {
        a.push(rdi).unwrap();
        a.movq(xmm15, r11).unwrap();
        a.add(r11, rbx).unwrap();
        a.movq(rdx, xmm15).unwrap();
        a.sbb(r15, r15).unwrap();
        a.mov(r14, qword_ptr(rsp)).unwrap();
        a.ret().unwrap();
    });
    let table = FragmentTable::new(all);
    assert_eq!(table.len(), 7);
    let mut runner = Runner::new().unwrap();
    let mut after = state(&memory);
    after.gpr[gpr::RDI] = OUTSIDE;
    after.gpr[gpr::R11] = u64::MAX;
    let before = after.clone();
    // SAFETY: verified, and only the guest's stack is used.
    let chain = unsafe { runner.ride(&table, memory.code(), &mut after) }.unwrap().unwrap();
    assert_eq!(chain.entered, 7);
    assert_eq!((chain.last.exit.kind, chain.last.target), (ExitKind::Indirect, OUTSIDE));
    let mut expected = before;
    expected.gpr[gpr::R11] = expected.gpr[gpr::RBX] - 1;
    expected.gpr[gpr::RDX] = u64::MAX;
    expected.gpr[gpr::R15] = u64::MAX; // the carry of the addition
    expected.gpr[gpr::R14] = OUTSIDE;
    assert_eq!(after.differences(&expected, 0), Vec::<String>::new());
}

#[test]
fn what_is_called_by_copies_returns_to_each_of_them() {
    // As many as a return is compared with.
    const CALLS: u64 = 16;
    let mut memory = GuestMemory::new().unwrap();
    let options = Options::new(CpuFeatures::host());
    let loaded = fragments_with(&options, &mut memory, &[0], |a| {
        let (mut small, mut large) = (a.create_label(), a.create_label());
        for _ in 0..CALLS {
            a.call(small).unwrap();
        }
        a.syscall().unwrap();
        // Copied to each call of it.
        a.set_label(&mut small).unwrap();
        a.call(large).unwrap();
        a.inc(rcx).unwrap();
        a.ret().unwrap();
        // Too large for that.
        a.set_label(&mut large).unwrap();
        for _ in 0..50 {
            a.inc(rbx).unwrap();
        }
        a.ret().unwrap();
    });
    let mut runner = Runner::new().unwrap();
    let mut state = state(&memory);
    state.gpr[gpr::RBX] = 0;
    state.gpr[gpr::RCX] = 0;
    // SAFETY: verified, and only the guest's stack is used.
    let left = unsafe { runner.enter(&loaded[0], &mut state) }.unwrap();
    assert_eq!(left.exit.kind, ExitKind::Syscall);
    assert_eq!((state.gpr[gpr::RBX], state.gpr[gpr::RCX]), (50 * CALLS, CALLS));
}

#[test]
fn a_fault_takes_the_fixup_of_the_fragment_that_runs() {
    let mut memory = GuestMemory::new().unwrap();
    let all = fragments(&mut memory, &[0, 1, 2], |a| {
        a.mov(rax, qword_ptr(rsp)).unwrap();
        a.inc(rbx).unwrap();
        a.mov(rcx, qword_ptr(rdi)).unwrap();
        a.ret().unwrap();
    });
    let at = all[2].parts().entry;
    let table = FragmentTable::new(all);
    let mut runner = Runner::new().unwrap();
    let mut state = state(&memory);
    state.gpr[gpr::RDI] = OUTSIDE;
    // SAFETY: verified; the address is in no mapping.
    let chain = unsafe { runner.ride(&table, memory.code(), &mut state) }.unwrap().unwrap();
    assert_eq!((chain.entered, chain.last.exit.kind), (3, ExitKind::Fault));
    assert_eq!(chain.last.exit.user_ip, at);
    assert_eq!(chain.last.fault.map(|fault| fault.address), Some(OUTSIDE));
    // The runner is as before: what it does without a table is not affected.
    let loaded = fragments(&mut memory, &[0], |a| {
        a.mov(rcx, qword_ptr(rdi)).unwrap();
        a.ret().unwrap();
    });
    // SAFETY: as above.
    let left = unsafe { runner.enter(&loaded[0], &mut state) }.unwrap();
    assert_eq!(left.exit.kind, ExitKind::Fault);
}

#[test]
fn a_ride_ends_where_no_fragment_is() {
    let mut memory = GuestMemory::new().unwrap();
    let all = fragments(&mut memory, &[0, 2], |a| {
        a.inc(rax).unwrap();
        a.inc(rbx).unwrap();
        a.inc(rcx).unwrap();
        a.ret().unwrap();
    });
    let table = FragmentTable::new(all);
    let mut runner = Runner::new().unwrap();
    let mut state = state(&memory);
    let before = state.clone();
    // SAFETY: verified; no memory is used.
    unsafe {
        assert_eq!(runner.ride(&table, OUTSIDE, &mut state), Ok(None));
        let chain = runner.ride(&table, memory.code(), &mut state).unwrap().unwrap();
        assert_eq!((chain.entered, chain.last.exit.kind), (1, ExitKind::Branch));
    }
    assert_eq!(state.gpr[gpr::RAX], before.gpr[gpr::RAX] + 1);
    assert_eq!(state.gpr[gpr::RBX], before.gpr[gpr::RBX]);
}

#[test]
fn a_stack_pointer_outside_the_user_half_ends_it() {
    let mut memory = GuestMemory::new().unwrap();
    let all = fragments(&mut memory, &[0, 1], |a| {
        a.lea(rsp, qword_ptr(rdi)).unwrap();
        a.inc(rbx).unwrap();
        a.ret().unwrap();
    });
    let table = FragmentTable::new(all);
    let mut runner = Runner::new().unwrap();
    let mut state = state(&memory);
    state.gpr[gpr::RDI] = 1 << 63;
    // SAFETY: verified; no memory is used.
    let chain = unsafe { runner.ride(&table, memory.code(), &mut state) }.unwrap().unwrap();
    assert_eq!(chain.entered, 1, "{chain:?}");
}

#[test]
fn every_fragment_of_a_large_table_is_found() {
    const COUNT: usize = 300;
    let mut memory = GuestMemory::new().unwrap();
    let entries: Vec<usize> = (0..COUNT).collect();
    let all = fragments(&mut memory, &entries, |a| {
        for _ in 0..COUNT {
            a.inc(rax).unwrap();
        }
        a.ret().unwrap();
    });
    let table = FragmentTable::new(all);
    let mut runner = Runner::new().unwrap();
    let mut state = state(&memory);
    let before = state.gpr[gpr::RAX];
    // SAFETY: verified; no memory is used.
    let chain = unsafe { runner.ride(&table, memory.code(), &mut state) }.unwrap().unwrap();
    assert_eq!(chain.entered, COUNT as u64);
    assert_eq!(state.gpr[gpr::RAX] - before, COUNT as u64);
}

//! Loops end when work is pending, or when they have executed enough.

use crate::case::random_state;
use crate::harness::fragment_at;
use crate::rng::Rng;
use iced_x86::code_asm::*;
use std::sync::atomic::Ordering;
use std::time::Duration;
use ub_ring3::state::ARITHMETIC_FLAGS;
use ub_ring3::{GuestMemory, Loaded, PollWords, Runner};
use ub_translator::fragment::ExitKind;

type Body = fn(&mut CodeAssembler, CodeLabel) -> Result<(), iced_x86::IcedError>;

/// Runs `body`, which jumps back to its start for ever, until another thread
/// raises `raise`.
fn endless(body: Body, raise: fn(&PollWords)) {
    let mut memory = GuestMemory::new().unwrap();
    let mut a = CodeAssembler::new(64).unwrap();
    let mut top = a.create_label();
    a.set_label(&mut top).unwrap();
    body(&mut a, top).unwrap();
    memory.write_code(0, &a.assemble(memory.code()).unwrap()).unwrap();
    let fragment = fragment_at(&memory, memory.code(), "endless loop").expect("translatable");
    let loaded = Loaded::new(&fragment).unwrap();
    let mut runner = Runner::new().unwrap();
    let words = runner.poll_words();
    let setter = std::thread::spawn(move || {
        // Long enough that the loop is usually running; correct in any case.
        std::thread::sleep(Duration::from_millis(5));
        raise(&words);
    });
    let mut state = random_state(&mut Rng(7), &memory);
    let before = state.clone();
    // SAFETY: a verified fragment that touches no memory.
    let left = unsafe { runner.enter(&loaded, &mut state) }.unwrap();
    setter.join().unwrap();
    assert_eq!(left.exit.kind, ExitKind::Poll);
    assert_eq!(left.exit.user_ip, memory.code(), "goes on at the loop's start");
    // Everything but the counter and its flags is the user's still.
    let counter = ub_ring3::state::gpr::RAX;
    state.gpr[counter] = before.gpr[counter];
    assert_eq!(state.differences(&before, 0), Vec::<String>::new());
}

#[test]
fn pending_work_ends_an_endless_jump() {
    let _guests = crate::beside_others();
    endless(|a, top| a.jmp(top), |words| words.flags.store(PollWords::MASK, Ordering::SeqCst));
}

#[test]
fn any_single_flag_of_the_mask_is_enough() {
    let _guests = crate::beside_others();
    endless(|a, top| a.jmp(top), |words| words.flags.store(0x8, Ordering::SeqCst));
}

#[test]
fn a_pending_softirq_ends_a_loop_with_live_flags() {
    let _guests = crate::beside_others();
    endless(
        |a, top| {
            a.inc(rax)?;
            a.jmp(top)
        },
        |words| words.softirq.store(1 << 9, Ordering::SeqCst),
    );
}

#[test]
fn flags_outside_the_mask_do_not_end_a_loop() {
    let _guests = crate::beside_others();
    let mut memory = GuestMemory::new().unwrap();
    let mut a = CodeAssembler::new(64).unwrap();
    let mut top = a.create_label();
    a.mov(ecx, 1000).unwrap();
    a.set_label(&mut top).unwrap();
    a.dec(rcx).unwrap();
    a.jne(top).unwrap();
    a.syscall().unwrap();
    memory.write_code(0, &a.assemble(memory.code()).unwrap()).unwrap();
    let fragment = fragment_at(&memory, memory.code(), "loop").expect("translatable");
    let loaded = Loaded::new(&fragment).unwrap();
    let mut runner = Runner::new().unwrap();
    runner.poll_words().flags.store(!PollWords::MASK, Ordering::SeqCst);
    let mut state = random_state(&mut Rng(8), &memory);
    // SAFETY: a verified fragment that touches no memory.
    let left = unsafe { runner.enter(&loaded, &mut state) }.unwrap();
    assert_eq!(left.exit.kind, ExitKind::Syscall);
}

/// A loop that is left again and again computes what it does natively.
#[test]
fn a_loop_ends_when_its_budget_is_used_up() {
    let _guests = crate::beside_others();
    let mut memory = GuestMemory::new().unwrap();
    let mut a = CodeAssembler::new(64).unwrap();
    let mut top = a.create_label();
    // More than is unrolled by far, and with flags that live on.
    a.mov(ecx, 10_000).unwrap();
    a.set_label(&mut top).unwrap();
    a.adc(rax, rbx).unwrap();
    a.dec(rcx).unwrap();
    a.jne(top).unwrap();
    a.syscall().unwrap();
    let code = a.assemble(memory.code()).unwrap();
    memory.write_code(0, &code).unwrap();
    let (start, end) = (memory.code(), memory.code() + code.len() as u64 - 2);
    let mut before = 0;
    for budget in [1 << 30, 20_000, 2000, 0] {
        let mut expected = random_state(&mut Rng(9), &memory);
        let mut state = expected.clone();
        crate::harness::run_reference(&mut memory, start, end, &mut expected);
        let mut runner = Runner::new().unwrap();
        runner.limit_budget(budget);
        let chain =
            crate::harness::run_translated(&memory, &mut runner, start, &mut state, "counted loop")
                .expect("translatable");
        assert_eq!(chain.last.exit.kind, ExitKind::Syscall);
        assert_eq!(state.differences(&expected, ARITHMETIC_FLAGS), Vec::<String>::new());
        assert!(chain.entered > before, "{budget}: {} fragments", chain.entered);
        before = chain.entered;
    }
}

#[test]
fn flags_survive_a_poll_on_the_way_back_and_on_the_way_out() {
    let _guests = crate::beside_others();
    let mut memory = GuestMemory::new().unwrap();
    let mut a = CodeAssembler::new(64).unwrap();
    let (mut top, mut done) = (a.create_label(), a.create_label());
    // The jump back carries live flags: adc at the top reads the carry.
    a.xor(eax, eax).unwrap();
    a.mov(ecx, 200).unwrap();
    a.set_label(&mut top).unwrap();
    a.adc(rax, rbx).unwrap();
    a.lea(rcx, qword_ptr(rcx - 1)).unwrap();
    a.jrcxz(done).unwrap();
    a.jmp(top).unwrap();
    a.set_label(&mut done).unwrap();
    a.syscall().unwrap();
    let code = a.assemble(memory.code()).unwrap();
    memory.write_code(0, &code).unwrap();
    let end = memory.code() + code.len() as u64 - 2;
    let start = memory.code();
    for seed in 0..20 {
        let mut expected = random_state(&mut Rng(seed), &memory);
        let mut state = expected.clone();
        crate::harness::run_reference(&mut memory, start, end, &mut expected);
        let mut runner = Runner::new().unwrap();
        if seed % 2 == 0 {
            runner.poll_words().softirq.store(1, Ordering::SeqCst);
        }
        let chain =
            crate::harness::run_translated(&memory, &mut runner, start, &mut state, "adc loop")
                .expect("translatable");
        assert_eq!(chain.last.exit.kind, ExitKind::Syscall);
        assert_eq!(chain.entered > 1, seed % 2 == 0, "the poll exit was taken");
        assert_eq!(state.differences(&expected, ARITHMETIC_FLAGS), Vec::<String>::new());
    }
}

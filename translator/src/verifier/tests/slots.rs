//! The frame, and kernel data.

use super::*;

#[test]
fn stack_pointer() {
    refused(Rule::StackPointer, |b| b.a.mov(rax, rsp));
    refused(Rule::StackPointer, |b| b.a.mov(rsp, rax));
    refused(Rule::StackPointer, |b| b.a.add(rsp, 8));
    refused(Rule::StackPointer, |b| b.a.mov(spl, al));
    refused(Rule::StackPointer, |b| b.a.lea(rax, qword_ptr(rsp + 8)));
    refused(Rule::StackPointer, |b| b.a.xchg(rsp, rax));
    refused(Rule::StackPointer, |b| b.a.mov(qword_ptr(rsp + spill(0)), rsp));
    refused(Rule::StackPointer, |b| b.a.vmovq(xmm0, rsp));
}

#[test]
fn frame_fields() {
    accepted(|b| {
        b.a.mov(qword_ptr(rsp + spill(6)), rax)?;
        b.a.add(rbx, qword_ptr(rsp + spill(6)))?;
        b.a.mov(qword_ptr(rsp + frame::USER_RSP), rbx)?;
        b.a.mov(rcx, qword_ptr(rsp + frame::USER_RSP))
    });
    refused(Rule::Frame, |b| b.a.mov(rax, qword_ptr(rsp - 8)));
    refused(Rule::Frame, |b| b.a.mov(rax, qword_ptr(rsp + frame::SIZE as i32)));
    refused(Rule::Frame, |b| b.a.mov(qword_ptr(rsp + 0x14), rax));
    refused(Rule::Frame, |b| b.a.mov(dword_ptr(rsp + spill(0)), eax));
    refused(Rule::Frame, |b| b.a.mov(byte_ptr(rsp + frame::USER_RSP), al));
    refused(Rule::Frame, |b| b.a.movdqu(xmmword_ptr(rsp + spill(0)), xmm0));
    refused(Rule::Frame, |b| b.a.mov(qword_ptr(rsp + frame::USER_R11), rax));
    refused(Rule::Frame, |b| b.a.mov(qword_ptr(rsp + frame::POLL_FLAGS), rax));
    refused(Rule::Frame, |b| b.a.mov(rax, qword_ptr(rsp + frame::POLL_FLAGS)));
    refused(Rule::Frame, |b| b.a.mov(eax, dword_ptr(rsp + frame::POLL_MASK)));
    refused(Rule::Frame, |b| b.a.mov(dword_ptr(rsp + frame::POLL_MASK), 0));
    refused(Rule::Frame, |b| b.a.mov(dword_ptr(rsp + frame::BUDGET), 1000));
    refused(Rule::Frame, |b| b.a.mov(qword_ptr(rsp + frame::BUDGET), rax));
    refused(Rule::Frame, |b| b.a.sub(dword_ptr(rsp + frame::BUDGET), 1000));
    refused(Rule::Frame, |b| b.a.mov(eax, dword_ptr(rsp + frame::EXIT_ID)));
    refused(Rule::Frame, |b| b.a.mov(dword_ptr(rsp + frame::EXIT_ID), eax));
    refused(Rule::MemoryForm, |b| b.a.mov(rax, qword_ptr(rsp + rbx)));
}

#[test]
fn slot_read() {
    accepted(|b| {
        b.a.mov(qword_ptr(rsp + spill(2)), rax)?;
        b.a.mov(rbx, qword_ptr(rsp + spill(2)))
    });
    refused(Rule::SlotRead, |b| b.a.mov(rbx, qword_ptr(rsp + spill(2))));
    refused(Rule::SlotRead, |b| b.a.mov(rbx, qword_ptr(rsp + frame::TARGET)));
    // On one of two paths only.
    refused(Rule::SlotRead, |b| {
        let mut join = b.a.create_label();
        b.a.je(join)?;
        b.a.mov(qword_ptr(rsp + spill(2)), rax)?;
        b.a.set_label(&mut join)?;
        b.a.mov(rbx, qword_ptr(rsp + spill(2)))
    });
    // A masked store may leave the slot as it was.
    refused(Rule::SlotRead, |b| {
        use iced_x86::{Code, Instruction, MemoryOperand, Register};
        let slot = MemoryOperand::with_base_displ(Register::RSP, i64::from(spill(2)));
        let mut store = Instruction::with2(Code::EVEX_Vmovsd_m64_k1_xmm, slot, Register::XMM0)?;
        store.set_op_mask(Register::K1);
        b.a.add_instruction(store)
    });
}

#[test]
fn kernel_data() {
    let entry = |body: fn(&mut Build) -> Asm| {
        raw(move |b| {
            b.a.endbr64()?;
            body(b)?;
            b.leave(SYSCALL)
        })
    };
    accepted_parts(entry(|b| b.a.mov(r11, qword_ptr(rsp + frame::USER_R11))));
    refused_parts(Rule::KernelData, entry(|_| Ok(())));
    for leak in [
        (|b| b.a.mov(rax, r11)) as fn(&mut Build) -> Asm,
        |b| b.a.mov(qword_ptr(rsp + spill(0)), r11),
        |b| b.a.lea(rax, qword_ptr(r11 + rax)),
        |b| b.a.movq(xmm0, r11),
        |b| b.a.test(r11, r11),
        |b| b.a.mov(al, r11b),
        |b| b.a.mov(r11b, al),
        |b| b.a.cmove(r11, rax),
        |b| b.a.btr(r11, 63),
        |b| {
            b.confine(rbx)?;
            b.faulting()?;
            b.a.mov(qword_ptr(rbx), r11)
        },
    ] {
        refused_parts(Rule::KernelData, entry(leak));
    }
    // What a poll loaded, at the exit of its loop.
    refused(Rule::KernelData, |b| {
        let (mut top, mut done) = (b.a.create_label(), b.a.create_label());
        b.a.set_label(&mut top)?;
        b.a.dec(rcx)?;
        b.a.je(done)?;
        b.poll(top)?;
        b.a.set_label(&mut done)
    });
}

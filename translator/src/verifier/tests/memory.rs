//! Operands in user memory.

use super::*;

#[test]
fn memory_form() {
    accepted(|b| {
        b.faulting()?;
        b.a.mov(rax, qword_ptr(0x28).fs())
    });
    let confined = |access: fn(&mut CodeAssembler) -> Asm| {
        move |b: &mut Build| {
            b.confine(rbx)?;
            b.faulting()?;
            access(&mut b.a)
        }
    };
    accepted(confined(|a| a.mov(rax, qword_ptr(rbx + 8))));
    refused(Rule::MemoryForm, confined(|a| a.mov(rax, qword_ptr(ebx + ecx))));
    refused(Rule::MemoryForm, confined(|a| a.mov(rax, qword_ptr(rcx * 8))));
    refused(Rule::MemoryForm, confined(|a| a.mov(rax, qword_ptr(rcx).fs())));
    refused(Rule::MemoryForm, confined(|a| a.mov(rax, qword_ptr(rbx).gs())));
    refused(Rule::MemoryForm, confined(|a| a.mov(rax, qword_ptr(rbx).fs())));
    refused(Rule::MemoryForm, confined(|a| a.mov(rax, qword_ptr(0x1000))));
    refused(Rule::MemoryForm, confined(|a| a.mov(rax, qword_ptr(0x28).gs())));
    refused(Rule::MemoryForm, confined(|a| a.mov(rax, qword_ptr(ebx))));
    refused(Rule::MemoryForm, confined(|a| a.bt(qword_ptr(rbx), rcx)));
    accepted(confined(|a| a.bt(qword_ptr(rbx), 3)));
    // mov rax,[rip+0x10]; lea rax,[rip+0x10]; fs: with 32-bit addressing
    refused(Rule::MemoryForm, bytes(&[0x48, 0x8b, 0x05, 0x10, 0, 0, 0]));
    refused(Rule::MemoryForm, bytes(&[0x48, 0x8d, 0x05, 0x10, 0, 0, 0]));
    refused(Rule::MemoryForm, bytes(&[0x64, 0x67, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0]));
    // mov rax,fs:[0xffff888000000000], with a displacement of 64 bits
    refused(Rule::MemoryForm, bytes(&[0x64, 0x48, 0xa1, 0, 0, 0, 0, 0x80, 0x88, 0xff, 0xff]));
    // lodsb fs:[rsi]; lodsb [esi]
    refused(Rule::MemoryForm, bytes(&[0x64, 0xac]));
    refused(Rule::MemoryForm, bytes(&[0x67, 0xac]));
}

#[test]
fn confinement() {
    let load = |prepare: fn(&mut CodeAssembler) -> Asm| {
        move |b: &mut Build| {
            prepare(&mut b.a)?;
            b.faulting()?;
            b.a.mov(rax, qword_ptr(rbx + 8))
        }
    };
    accepted(load(|a| a.btr(rbx, 63)));
    accepted(load(|a| a.mov(rbx, 0x7fff_ffff_f000_u64)));
    accepted(load(|a| a.mov(rbx, qword_ptr(rsp + frame::USER_RSP))));
    accepted(load(|a| {
        a.btr(rcx, 63)?;
        a.mov(rbx, rcx)
    }));
    refused(Rule::Confinement, load(|a| a.nop()));
    refused(Rule::Confinement, load(|a| a.btr(rbx, 62)));
    refused(Rule::Confinement, load(|a| a.btr(ebx, 31)));
    refused(Rule::Confinement, load(|a| a.mov(rbx, 0xffff_8880_0000_0000_u64)));
    refused(Rule::Confinement, load(|a| a.mov(rbx, 1_u64 << 47)));
    refused(Rule::Confinement, load(|a| a.mov(rbx, -1_i64)));
    // A slot gives nothing back: the load may bypass the store.
    refused(
        Rule::Confinement,
        load(|a| {
            a.btr(rbx, 63)?;
            a.mov(qword_ptr(rsp + spill(0)), rbx)?;
            a.mov(rbx, qword_ptr(rsp + spill(0)))
        }),
    );
    refused(
        Rule::Confinement,
        load(|a| {
            a.mov(qword_ptr(rsp + frame::USER_RSP), rcx)?;
            a.mov(rbx, qword_ptr(rsp + frame::USER_RSP))
        }),
    );
    // On one of two paths only.
    refused(
        Rule::Confinement,
        load(|a| {
            let mut join = a.create_label();
            a.je(join)?;
            a.btr(rbx, 63)?;
            a.set_label(&mut join)?;
            a.nop()
        }),
    );
    // The branch after a comparison proves nothing: it can be mispredicted.
    refused(Rule::Confinement, |b| {
        b.a.bt(rbx, 63)?;
        b.jc_guard()?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rbx))
    });
}

#[test]
fn confinement_window() {
    let load = |displacement: i32| {
        move |b: &mut Build| {
            b.confine(rbx)?;
            b.faulting()?;
            b.a.mov(rax, qword_ptr(rbx + displacement))
        }
    };
    accepted(load(i32::MAX));
    accepted(load(frame::WINDOW_LOW as i32));
    refused(Rule::Confinement, load(frame::WINDOW_LOW as i32 - 1));
    refused(Rule::Confinement, load(i32::MIN));
}

#[test]
fn string_operands() {
    let copy = |prepare: fn(&mut Build) -> Asm| {
        move |b: &mut Build| {
            prepare(b)?;
            b.faulting()?;
            b.a.movsb()
        }
    };
    accepted(copy(|b| {
        b.confine(rsi)?;
        b.confine(rdi)
    }));
    refused(Rule::Confinement, copy(|b| b.confine(rsi)));
    refused(Rule::Confinement, copy(|b| b.confine(rdi)));
    // They have moved since.
    refused(Rule::Confinement, |b| {
        b.confine(rsi)?;
        b.confine(rdi)?;
        b.faulting()?;
        b.a.movsb()?;
        b.faulting()?;
        b.a.movsb()
    });
}

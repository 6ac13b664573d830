//! Where one of two values holds: conditional moves, joins and loops.

use super::*;

#[test]
fn conditional_moves() {
    index_bits(32, |a| {
        a.mov(ecx, ecx)?;
        a.movzx(edx, dl)?;
        a.cmove(rcx, rdx)
    });
    no_index(|b| b.a.mov(ecx, ecx).and_then(|()| b.a.cmove(rcx, rdx)));
    no_index(|b| b.a.mov(edx, edx).and_then(|()| b.a.cmove(rcx, rdx)));
    no_index(|b| {
        b.a.mov(ecx, ecx)?;
        b.faulting()?;
        b.a.cmove(rcx, qword_ptr(rbx))
    });
}

#[test]
fn joins() {
    let joined = |narrow: fn(&mut CodeAssembler) -> Asm, wide: fn(&mut CodeAssembler) -> Asm| {
        move |b: &mut Build| {
            let (mut other, mut join) = (b.a.create_label(), b.a.create_label());
            b.confine(rbx)?;
            b.a.je(other)?;
            narrow(&mut b.a)?;
            b.a.jmp(join)?;
            b.a.set_label(&mut other)?;
            wide(&mut b.a)?;
            b.a.set_label(&mut join)?;
            b.a.nop()?;
            b.faulting()?;
            b.a.mov(rax, qword_ptr(rbx + rcx * 8))
        }
    };
    accepted(joined(|a| a.movzx(ecx, cl), |a| a.mov(ecx, ecx)));
    accepted(joined(|a| a.movzx(ecx, cl), |a| a.shr(rcx, 12)));
    refused(Rule::Index, joined(|a| a.movzx(ecx, cl), |a| a.shr(rcx, 11)));
    refused(Rule::Index, joined(|a| a.movzx(ecx, cl), |a| a.nop()));
    refused(Rule::Index, joined(|a| a.nop(), |a| a.movzx(ecx, cl)));
    // One negative, one soft.
    refused(
        Rule::Index,
        joined(|a| a.mov(ecx, ecx), |a| a.mov(ecx, ecx).and_then(|()| a.dec(rcx))),
    );
}

/// A loop around `body` with a poll, its pointer in rbx.
fn looped(body: impl Fn(&mut Build) -> Asm) -> impl FnOnce(&mut Build) -> Asm {
    move |b| {
        let (mut top, mut done) = (b.a.create_label(), b.a.create_label());
        b.confine(rbx)?;
        access(b, 0)?;
        b.a.mov(esi, 0)?;
        b.a.set_label(&mut top)?;
        b.a.mov(r9, qword_ptr(rsp + frame::USER_R11))?;
        body(b)?;
        b.a.dec(rdi)?;
        b.a.je(done)?;
        b.poll(top)?;
        b.a.set_label(&mut done)?;
        b.a.mov(r9, qword_ptr(rsp + frame::USER_R11))
    }
}

#[test]
fn loops() {
    // Walking with an access each round, up and down.
    for step in [8, -8, 64, -256] {
        accepted(looped(|b| access(b, 0).and_then(|()| b.a.add(rbx, step))));
        accepted(looped(|b| access(b, step).and_then(|()| b.a.add(rbx, step))));
    }
    // Pushes without any access on one of the ways around.
    refused(
        Rule::Confinement,
        looped(|b| {
            let mut skip = b.a.create_label();
            b.a.sub(rbx, 8)?;
            b.a.jne(skip)?;
            access(b, 0)?;
            b.a.set_label(&mut skip)?;
            b.a.nop()
        }),
    );
    // Up without an access; the last round has one.
    refused(
        Rule::Confinement,
        looped(|b| {
            let mut skip = b.a.create_label();
            b.a.add(rbx, 8)?;
            b.a.jne(skip)?;
            access(b, 0)?;
            b.a.set_label(&mut skip)?;
            b.a.nop()
        }),
    );
    let counted = |next: fn(&mut CodeAssembler) -> Asm| {
        looped(move |b| {
            b.faulting()?;
            b.a.mov(rax, qword_ptr(rbx + rsi * 8))?;
            next(&mut b.a)
        })
    };
    accepted(counted(|a| a.inc(esi)));
    accepted(counted(|a| a.inc(rsi).and_then(|()| a.and(rsi, 0xff))));
    refused(Rule::Index, counted(|a| a.inc(rsi)));
    refused(Rule::Index, counted(|a| a.lea(rsi, qword_ptr(rsi + rsi))));
}

//! Bases: how far they move, what an access shows of them, and what must not
//! be made of that.

use super::*;

#[test]
fn moves_of_a_base() {
    // Down by 2048 in all, and no further without an access.
    let down = |by: i32| base(move |b| b.confine(rbx).and_then(|()| b.a.sub(rbx, by)));
    accepted(down(2048));
    refused(Rule::Confinement, down(2049));
    let twice = |by: i32| {
        base(move |b| {
            b.confine(rbx)?;
            b.a.lea(rbx, qword_ptr(rbx - 2047))?;
            b.a.lea(rbx, qword_ptr(rbx - by))
        })
    };
    accepted(twice(1));
    refused(Rule::Confinement, twice(2));
    // Moving up does not make up for it: the bound is cut off at 0.
    refused(
        Rule::Confinement,
        base(|b| {
            b.confine(rbx)?;
            access(b, 0)?;
            b.a.add(rbx, 2048)?;
            b.a.sub(rbx, 2048)?;
            b.a.dec(rbx)
        }),
    );
    // Up not at all from 2^63, by six steps from a user address.
    refused(Rule::Confinement, base(|b| b.confine(rbx).and_then(|()| b.a.inc(rbx))));
    let up = |times: usize| {
        soft(move |b| (0..times).try_for_each(|_| b.a.lea(rbx, qword_ptr(rbx + i32::MAX))))
    };
    accepted(up(6));
    refused(Rule::Confinement, up(7));
    // By registers never.
    refused(Rule::Confinement, soft(|b| b.a.add(rbx, rcx)));
    refused(Rule::Confinement, soft(|b| b.a.sub(rbx, rcx)));
}

#[test]
fn accesses_narrow() {
    // Through the register with what displacement, and how far down then.
    let narrowed = |displacement: i32, down: i32| {
        base(move |b| {
            b.confine(rbx)?;
            b.a.sub(rbx, 2048)?;
            access(b, displacement)?;
            b.a.sub(rbx, down)
        })
    };
    accepted(narrowed(0, 2048));
    refused(Rule::Confinement, narrowed(0, 2049));
    accepted(narrowed(-8, 2048));
    refused(Rule::Confinement, narrowed(-8, 2049));
    accepted(narrowed(8, 2040));
    refused(Rule::Confinement, narrowed(8, 2041));
    accepted(narrowed(2047, 1));
    refused(Rule::Confinement, narrowed(2048, 1));
    refused(Rule::Confinement, narrowed(0x7fff_ffff, 1));
    // What does not access in any case, or not through the register alone, or
    // changes it, shows nothing.
    for other in [
        (|b| b.a.prefetcht0(byte_ptr(rbx))) as fn(&mut Build) -> Asm,
        |b| b.a.nop_1(dword_ptr(rbx)),
        |b| b.a.lea(rax, qword_ptr(rbx)),
        |b| {
            b.faulting()?;
            b.a.cmove(rax, qword_ptr(rbx))
        },
        |b| {
            b.faulting()?;
            b.a.vmovdqu64(xmm0.k1(), xmmword_ptr(rbx))
        },
        |b| {
            b.faulting()?;
            b.a.vmovdqu64(xmmword_ptr(rbx).k1(), xmm0)
        },
        |b| {
            b.a.mov(ecx, ecx)?;
            b.faulting()?;
            b.a.mov(rax, qword_ptr(rbx + rcx))
        },
        |b| {
            b.faulting()?;
            b.a.mov(rbx, qword_ptr(rbx))
        },
        |b| {
            b.faulting()?;
            b.a.xadd(qword_ptr(rbx), rbx)
        },
        |b| {
            b.faulting()?;
            b.a.mov(rax, qword_ptr(rcx))
        },
    ] {
        refused(
            Rule::Confinement,
            base(|b| {
                b.confine(rbx)?;
                b.confine(rcx)?;
                other(b)?;
                b.a.lea(rbx, qword_ptr(rbx + 8))
            }),
        );
    }
    for store in [
        (|a| a.mov(qword_ptr(rbx), rbx)) as fn(&mut CodeAssembler) -> Asm,
        |a| a.cmp(byte_ptr(rbx), 0),
        |a| a.bt(qword_ptr(rbx), 3),
        |a| a.inc(dword_ptr(rbx)),
        |a| a.vmovdqu64(xmm0, xmmword_ptr(rbx)),
    ] {
        accepted(base(|b| {
            b.confine(rbx)?;
            b.faulting()?;
            store(&mut b.a)?;
            b.a.lea(rbx, qword_ptr(rbx + 8))
        }));
    }
}

/// What rests on an access that may still fault must not be multiplied: with
/// half a kernel address in rbx, twice rbx would transiently be one.
#[test]
fn soft_ranges_are_for_bases_only() {
    for multiply in [
        (|a| a.lea(rbx, qword_ptr(rbx + rbx))) as fn(&mut CodeAssembler) -> Asm,
        |a| a.add(rbx, rbx),
        |a| a.shl(rbx, 1),
        |a| a.imul_3(rbx, rbx, 2),
        |a| a.lea(rbx, qword_ptr(rbx * 2)),
        |a| {
            a.mov(rcx, rbx)?;
            a.lea(rbx, qword_ptr(rcx + rbx))
        },
        |a| {
            a.and(rbx, -2)?;
            a.add(rbx, rbx)
        },
        |a| {
            a.cmove(rcx, rbx)?;
            a.lea(rbx, qword_ptr(rcx + rcx))
        },
    ] {
        refused(Rule::Confinement, soft(|b| b.a.mov(ecx, ecx).and_then(|()| multiply(&mut b.a))));
    }
    // Nor is it an index, however small it is made believe to be.
    no_index(|b| {
        b.confine(rcx)?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rcx))
    });
    no_index(|b| {
        b.a.mov(ecx, ecx)?;
        b.a.sub(rcx, 8)?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rcx))
    });
    // An access that says nothing new takes nothing away either.
    index_bits(32, |a| {
        a.mov(ecx, ecx)?;
        a.prefetcht0(byte_ptr(rcx))
    });
    accepted(|b| {
        b.confine(rbx)?;
        b.a.mov(ecx, ecx)?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rcx))?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rbx + rcx * 8))
    });
    // A new mask makes it hard again.
    accepted(|b| {
        b.confine(rbx)?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rbx))?;
        b.a.mov(rcx, rbx)?;
        b.a.shr(rcx, 9)?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rbx + rcx))
    });
}

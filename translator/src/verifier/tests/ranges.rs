//! What ranges registers have behind instructions: per rule of transfer the
//! last case that is good and the first that is not.
//!
//! `base` and `index` show what is left of a range at the end of `body`, in
//! rbx and rcx, by using it.

use super::*;

/// A load through rbx behind `body`.
fn base(body: impl FnOnce(&mut Build) -> Asm) -> impl FnOnce(&mut Build) -> Asm {
    |b| {
        body(b)?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rbx))
    }
}

/// The same behind `btr rbx,63` and an access to `[rbx]`: rbx is in
/// [0, 2^57), softly.
fn soft(body: impl FnOnce(&mut Build) -> Asm) -> impl FnOnce(&mut Build) -> Asm {
    base(|b| {
        b.confine(rbx)?;
        access(b, 0)?;
        body(b)
    })
}

fn access(b: &mut Build, displacement: i32) -> Asm {
    b.faulting()?;
    b.a.mov(rax, qword_ptr(rbx + displacement))
}

/// Whether rcx is of exactly `bits` bits behind `body`: as an index it may be
/// shifted until it has 55 bits, and no further.
#[track_caller]
fn index_bits(bits: i32, body: fn(&mut CodeAssembler) -> Asm) {
    let shifted = |by: i32| {
        move |b: &mut Build| {
            b.confine(rbx)?;
            body(&mut b.a)?;
            b.a.shl(rcx, by)?;
            b.faulting()?;
            b.a.mov(rax, qword_ptr(rbx + rcx))
        }
    };
    accepted(shifted(55 - bits));
    refused(Rule::Index, shifted(56 - bits));
}

/// Whether rcx is unknown, or may be negative, or is soft behind `body`.
#[track_caller]
fn no_index(body: impl FnOnce(&mut Build) -> Asm) {
    refused(Rule::Index, |b| {
        b.confine(rbx)?;
        body(b)?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rbx + rcx))
    });
}

#[test]
fn index_and_scale() {
    let scaled = |scale: i32, bits: i32| {
        move |b: &mut Build| {
            b.confine(rbx)?;
            b.a.shr(rcx, 64 - bits)?;
            b.faulting()?;
            b.a.mov(rax, qword_ptr(rbx + rcx * scale - 0x10_0000))
        }
    };
    for (scale, bits) in [(1, 55), (2, 54), (4, 53), (8, 52)] {
        accepted(scaled(scale, bits));
        refused(Rule::Index, scaled(scale, bits + 1));
    }
    accepted(scaled(8, 32));
    // The base is confined all the same, and the window is what it was.
    refused(Rule::Confinement, |b| {
        b.a.mov(ecx, ecx)?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rbx + rcx))
    });
    refused(Rule::Confinement, |b| {
        b.confine(rbx)?;
        b.a.mov(ecx, ecx)?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rbx + rcx - 0x10_0001))
    });
    // A fault needs its fixup with an index as well.
    refused(Rule::Fixup, |b| {
        b.confine(rbx)?;
        b.a.mov(ecx, ecx)?;
        b.a.mov(rax, qword_ptr(rbx + rcx))
    });
}

#[test]
fn index_of_a_load() {
    // Whatever 64 bits the user left there.
    no_index(|b| {
        b.faulting()?;
        b.a.mov(rcx, qword_ptr(rbx))
    });
    no_index(|b| {
        b.a.mov(qword_ptr(rsp + spill(0)), rax)?;
        b.a.mov(rcx, qword_ptr(rsp + spill(0)))
    });
    // user_rsp is checked, but may be anything of 63 bits.
    no_index(|b| b.a.mov(rcx, qword_ptr(rsp + frame::USER_RSP)));
    no_index(|b| b.confine(rcx));
    accepted(|b| {
        b.confine(rbx)?;
        b.faulting()?;
        b.a.mov(ecx, dword_ptr(rbx))?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rbx + rcx * 8))
    });
}

/// A branch on the index bounds it only until it is mispredicted.
#[test]
fn index_behind_a_branch() {
    no_index(|b| {
        b.a.cmp(rcx, 100)?;
        b.ja_guard()
    });
}

#[test]
fn widths() {
    index_bits(32, |a| a.mov(ecx, edx));
    index_bits(32, |a| a.movsx(ecx, dl));
    index_bits(32, |a| a.movsxd(rcx, edx).and_then(|()| a.add(ecx, 1)));
    index_bits(32, |a| a.sub(ecx, edx));
    index_bits(32, |a| a.lea(ecx, qword_ptr(rdx + rdx * 8 - 5)));
    index_bits(32, |a| a.imul_2(ecx, edx));
    index_bits(32, |a| a.imul_3(ecx, edx, -5));
    index_bits(32, |a| a.cmove(ecx, edx));
    index_bits(32, |a| a.bswap(ecx));
    index_bits(32, |a| a.rol(ecx, 8));
    index_bits(32, |a| a.shl(ecx, cl));
    index_bits(32, |a| a.popcnt(ecx, edx));
    index_bits(32, |a| a.vpmovmskb(ecx, ymm0));
    index_bits(16, |a| a.movzx(ecx, dx));
    index_bits(8, |a| a.movzx(ecx, dh));
    // They may leave the upper half alone: bsf and bsr with a zero source,
    // cmpxchg if it fails, and a 32-bit operand that is only read.
    for keeps in [
        (|a| a.bsf(ecx, edx)) as fn(&mut CodeAssembler) -> Asm,
        |a| a.bsr(ecx, edx),
        |a| a.cmpxchg(ecx, edx),
        |a| a.test(ecx, ecx),
        |a| a.cmp(ecx, 5),
        |a| a.bt(ecx, 5),
        |a| a.imul(ecx),
        |a| a.mul(ecx),
    ] {
        no_index(|b| keeps(&mut b.a));
    }
    // Signed and 64-bit results.
    for wide in [
        (|a| a.movsxd(rcx, edx)) as fn(&mut CodeAssembler) -> Asm,
        |a| a.movsx(rcx, dl),
        |a| a.neg(rcx),
        |a| a.not(rcx),
        |a| a.popcnt(rcx, rdx),
        |a| a.xchg(rcx, rdx),
        |a| a.mulx(rcx, rdx, rsi),
        |a| a.sub(rcx, rcx),
        |a| a.shr(rcx, 0),
        |a| a.shr(rcx, cl),
        |a| a.sar(rcx, 32),
    ] {
        no_index(|b| {
            b.a.mov(ecx, ecx)?;
            b.a.mov(edx, edx)?;
            wide(&mut b.a)?;
            b.a.lea(rcx, qword_ptr(rcx + rdi))
        });
        no_index(|b| wide(&mut b.a));
    }
}

#[test]
fn partial_writes() {
    index_bits(16, |a| {
        a.movzx(ecx, dl)?;
        a.mov(ch, dl)
    });
    index_bits(32, |a| {
        a.mov(ecx, ecx)?;
        a.mov(cx, 5)
    });
    index_bits(32, |a| {
        a.mov(ecx, ecx)?;
        a.setb(cl)
    });
    no_index(|b| b.a.mov(cl, 5));
    no_index(|b| b.a.mov(cx, 5));
    no_index(|b| b.a.bsf(cx, dx));
    // Replacing the lower bits of a base that is wrong by a little moves it
    // down by up to 64 KiB, again and again.
    accepted(base(|b| {
        b.confine(rbx)?;
        b.a.mov(bl, 1)
    }));
    refused(Rule::Confinement, soft(|b| b.a.mov(bl, 1)));
    refused(Rule::Confinement, soft(|b| b.a.mov(bx, 1)));
}

#[test]
fn constants() {
    accepted(base(|b| b.a.mov(rbx, 0x7fff_ffff_f000_u64)));
    refused(Rule::Confinement, base(|b| b.a.mov(rbx, 1_u64 << 47)));
    refused(Rule::Confinement, base(|b| b.a.mov(rbx, 0xffff_8880_0000_0000_u64)));
    refused(Rule::Confinement, base(|b| b.a.mov(rbx, -1_i64)));
    index_bits(32, |a| a.mov(ecx, -1));
    index_bits(7, |a| a.mov(ecx, 64));
    index_bits(6, |a| a.mov(rcx, 63_u64));
    index_bits(33, |a| a.mov(rcx, 1_u64 << 32));
    index_bits(0, |a| a.xor(ecx, ecx));
    index_bits(2, |a| {
        a.xor(ecx, ecx)?;
        a.inc(rcx)
    });
    // An absolute address, negative as well.
    index_bits(12, |a| a.db(&[0x48, 0x8d, 0x0c, 0x25, 0xff, 0x07, 0, 0])); // lea rcx,[0x7ff]
    no_index(|b| b.a.db(&[0x48, 0x8d, 0x0c, 0x25, 0, 0, 0, 0x80]));
}

#[test]
fn masks() {
    index_bits(6, |a| a.and(rcx, 63));
    index_bits(31, |a| a.and(rcx, 0x7fff_ffff));
    index_bits(32, |a| a.and(ecx, -16));
    index_bits(8, |a| {
        a.movzx(ecx, cl)?;
        a.and(rcx, 0xfff)
    });
    index_bits(8, |a| {
        a.movzx(edx, dl)?;
        a.and(rcx, rdx)
    });
    index_bits(8, |a| {
        a.movzx(ecx, cl)?;
        a.and(rcx, rdx)
    });
    no_index(|b| b.a.and(rcx, -1));
    no_index(|b| b.a.and(rcx, rdx));
    no_index(|b| b.a.and(cl, 63));
    // Alignment keeps a base that an access showed to be one.
    accepted(soft(|b| b.a.and(rbx, -2048)));
    refused(Rule::Confinement, soft(|b| b.a.and(rbx, -2049)));
    refused(Rule::Confinement, base(|b| b.a.and(rbx, -16)));
    // It may take a negative one down to the next multiple.
    let lower = |by: i32| {
        soft(move |b| {
            b.a.sub(rbx, 8)?;
            b.a.and(rbx, -16)?;
            b.a.sub(rbx, by)
        })
    };
    accepted(lower(0));
    refused(Rule::Confinement, lower(1));
}

#[test]
fn shifts_and_products() {
    index_bits(1, |a| a.shr(rcx, 63));
    index_bits(28, |a| {
        a.mov(ecx, ecx)?;
        a.shr(rcx, 4)
    });
    index_bits(28, |a| a.shr(ecx, 4));
    // 32-bit shifts take their count modulo 32.
    index_bits(32, |a| a.shr(ecx, 32));
    index_bits(31, |a| a.shr(ecx, 33));
    index_bits(32, |a| a.shl(ecx, 4));
    index_bits(12, |a| {
        a.movzx(ecx, cl)?;
        a.shl(ecx, 4)
    });
    index_bits(12, |a| {
        a.movzx(ecx, cl)?;
        a.shl(ecx, 36)
    });
    index_bits(37, |a| {
        a.mov(ecx, ecx)?;
        a.imul_3(rcx, rcx, 24)
    });
    no_index(|b| {
        b.a.mov(ecx, ecx)?;
        b.a.imul_3(rcx, rcx, -24)
    });
    no_index(|b| {
        b.a.mov(ecx, ecx)?;
        b.a.imul_2(rcx, rdx)
    });
    no_index(|b| {
        b.a.mov(ecx, ecx)?;
        b.a.shl(rcx, cl)
    });
}

#[test]
fn sums() {
    index_bits(33, |a| {
        a.mov(ecx, ecx)?;
        a.mov(edx, edx)?;
        a.add(rcx, rdx)
    });
    index_bits(36, |a| {
        a.mov(ecx, ecx)?;
        a.mov(edx, edx)?;
        a.lea(rcx, qword_ptr(rcx + rdx * 8))
    });
    index_bits(37, |a| {
        a.mov(ecx, ecx)?;
        a.mov(edx, edx)?;
        a.lea(rcx, qword_ptr(rcx + rdx * 8 + 0x7fff_ffff))
    });
    index_bits(33, |a| {
        a.mov(ecx, ecx)?;
        a.add(rcx, 1)
    });
    no_index(|b| {
        b.a.mov(ecx, ecx)?;
        b.a.add(rcx, -1)
    });
    no_index(|b| {
        b.a.mov(ecx, ecx)?;
        b.a.dec(rcx)?;
        b.a.inc(rcx)?;
        b.a.dec(rcx)
    });
    no_index(|b| {
        b.a.mov(ecx, ecx)?;
        b.a.add(rcx, rdx)
    });
    no_index(|b| {
        b.a.mov(ecx, ecx)?;
        b.a.lea(rcx, qword_ptr(rcx + rdx))
    });
}

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

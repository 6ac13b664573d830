//! Ranges that follow from an instruction and its operands alone.

use super::*;

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

//! What ranges registers have behind instructions: per rule of transfer the
//! last case that is good and the first that is not. Here: what indexes must be.
//!
//! `base` and `index` show what is left of a range at the end of `body`, in
//! rbx and rcx, by using it.

mod bases;
mod joins;
mod results;

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

//! Fixups and landings.

use super::*;

#[test]
fn fixup() {
    let divide = |b: &mut Build| b.a.div(rcx);
    refused(Rule::Fixup, divide);
    accepted(|b| {
        b.faulting()?;
        divide(b)
    });
    refused(Rule::Fixup, |b| b.a.addsd(xmm0, xmm1));
    refused(Rule::Fixup, |b| b.a.vcvttsd2si(rax, xmm1));
    accepted(|b| b.a.paddb(xmm0, xmm1));
    refused(Rule::Fixup, |b| {
        b.confine(rbx)?;
        b.a.mov(rax, qword_ptr(rbx))
    });
    refused(Rule::Fixup, |b| b.a.mov(rax, qword_ptr(0x28).fs()));
    refused(Rule::Fixup, |b| {
        b.confine(rsi)?;
        b.a.lodsb()
    });
    accepted(|b| {
        b.confine(rbx)?;
        b.a.prefetcht0(byte_ptr(rbx))
    });
}

fn one_load() -> Parts {
    parts(|b| {
        b.confine(rbx)?;
        b.faulting()?;
        b.a.mov(rax, qword_ptr(rbx))
    })
}

#[test]
fn fixup_table() {
    accepted_parts(one_load());
    let mut bad = one_load();
    bad.fixups[0].fault += 1;
    refused_parts(Rule::FixupTable, bad);
    let mut bad = one_load();
    bad.fixups[0].landing += 1;
    refused_parts(Rule::FixupTable, bad);
    let mut bad = one_load();
    bad.fixups[0].landing = u32::MAX;
    refused_parts(Rule::FixupTable, bad);
    let mut bad = one_load();
    bad.fixups.push(bad.fixups[0]);
    refused_parts(Rule::FixupTable, bad);
}

#[test]
fn landing() {
    // Instead of the FAULT exit: the entry, the access itself, what follows it.
    let good = one_load();
    for landing in [0, good.fixups[0].fault, good.fixups[0].fault + 3] {
        let mut bad = good.clone();
        // The FAULT exit stays reachable through another fixup.
        let old = std::mem::replace(&mut bad.fixups[0].landing, landing);
        bad.fixups.push(Fixup { fault: good.fixups[0].fault + 3, landing: old });
        refused_parts(Rule::Landing, bad);
    }
    // FAULT exit with the id of another kind.
    let mut bad = one_load();
    bad.exits[FAULT as usize].kind = ExitKind::Guard;
    refused_parts(Rule::Landing, bad);
}

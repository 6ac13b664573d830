//! Which bytes and instructions may appear at all.

use super::*;

#[test]
fn size() {
    let policy = Policy { max_exits: 4, ..Policy::new(Features::all()) };
    let error = verify(Fragment::new(parts(|_| Ok(()))), &policy).unwrap_err();
    assert_eq!(error.rule, Rule::Size);
    let policy = Policy { max_code_bytes: 8, ..Policy::new(Features::all()) };
    let error = verify(Fragment::new(parts(|_| Ok(()))), &policy).unwrap_err();
    assert_eq!(error.rule, Rule::Size);
}

#[test]
fn encoding() {
    accepted(bytes(&[0x48, 0x89, 0xc3])); // mov rbx,rax
    refused(Rule::Encoding, bytes(&[0x06])); // no such instruction
    refused(Rule::Encoding, bytes(&[0x2e, 0x48, 0x89, 0xc3])); // with cs:
    refused(Rule::Encoding, bytes(&[0x66, 0x48, 0x89, 0xc3])); // with an unused 66
    refused(Rule::Encoding, bytes(&[0xf2, 0x48, 0x89, 0xc3])); // with an unused f2
    let mut cut = parts(|_| Ok(()));
    cut.code.push(0x48); // half an instruction
    refused_parts(Rule::Encoding, cut);
}

#[test]
fn entry_point() {
    refused_parts(
        Rule::EntryPoint,
        raw(|b| {
            b.a.mov(r11, qword_ptr(rsp + frame::USER_R11))?;
            b.leave(SYSCALL)
        }),
    );
    refused(Rule::EntryPoint, |b| b.a.endbr64());
    refused(Rule::EntryPoint, |b| b.a.mov(eax, 0xfa1e_0ff3_u32));
    let empty = Parts { code: vec![], relocations: vec![], ..parts(|_| Ok(())) };
    refused_parts(Rule::EntryPoint, empty);
}

#[test]
fn instruction() {
    for forbidden in [
        &[0xf4][..],                           // hlt
        &[0x0f, 0x05],                         // syscall
        &[0xcd, 0x80],                         // int 0x80
        &[0xfa],                               // cli
        &[0xfb],                               // sti
        &[0xfd],                               // std
        &[0x9c],                               // pushf
        &[0x9d],                               // popf
        &[0x50],                               // push rax
        &[0x58],                               // pop rax
        &[0xc3],                               // ret
        &[0xc9],                               // leave
        &[0xc8, 0, 0, 0],                      // enter
        &[0xff, 0xe0],                         // jmp rax
        &[0xff, 0xd0],                         // call rax
        &[0xe8, 0, 0, 0, 0],                   // call
        &[0x0f, 0x30],                         // wrmsr
        &[0x0f, 0x32],                         // rdmsr
        &[0x0f, 0xa2],                         // cpuid
        &[0x0f, 0x01, 0xf8],                   // swapgs
        &[0x0f, 0x01, 0xca],                   // clac
        &[0x0f, 0x01, 0xcb],                   // stac
        &[0x0f, 0x01, 0xc1],                   // vmcall
        &[0x0f, 0x01, 0xd0],                   // xgetbv
        &[0xe4, 0x10],                         // in
        &[0xe6, 0x10],                         // out
        &[0x48, 0xcf],                         // iretq
        &[0xd7],                               // xlat
        &[0xd9, 0xe8],                         // fld1
        &[0xf3, 0x48, 0x0f, 0xae, 0xd0],       // wrfsbase rax
        &[0xf3, 0x48, 0x0f, 0xae, 0xc8],       // rdgsbase rax
        &[0x0f, 0xae, 0x2b],                   // xrstor [rbx]
        &[0x66, 0x0f, 0xf7, 0xc1],             // maskmovdqu
        &[0xc4, 0xe2, 0x71, 0x92, 0x14, 0x43], // vgatherdps
        &[0xe2, 0xfe],                         // loop
        &[0xc7, 0xf8, 0, 0, 0, 0],             // xbegin
    ] {
        refused(Rule::Instruction, |b| b.a.db(forbidden));
    }
}

#[test]
fn feature() {
    accepted(|b| b.a.popcnt(rax, rbx));
    let without = Policy::new(Features::BASELINE);
    let error = verify(Fragment::new(parts(|b| b.a.popcnt(rax, rbx))), &without).unwrap_err();
    assert_eq!(error.rule, Rule::Feature);
    let features = Features::all().without(iced_x86::CpuidFeature::AVX2);
    let policy = Policy::new(features);
    assert!(verify(Fragment::new(parts(|b| b.a.vpaddb(xmm0, xmm1, xmm2))), &policy).is_ok());
    let error =
        verify(Fragment::new(parts(|b| b.a.vpaddb(ymm0, ymm1, ymm2))), &policy).unwrap_err();
    assert_eq!(error.rule, Rule::Feature);
}

#[test]
fn register() {
    for forbidden in [
        &[0x8e, 0xd8][..], // mov ds,eax
        &[0x8c, 0xd8],     // mov eax,ds
    ] {
        refused(Rule::Register, |b| b.a.db(forbidden));
    }
    refused(Rule::Feature, bytes(&[0x0f, 0xef, 0xc1])); // pxor mm0,mm1
    // Privileged by nature, so refused one rule earlier.
    refused(Rule::Instruction, bytes(&[0x0f, 0x20, 0xc0])); // mov rax,cr0
    refused(Rule::Instruction, bytes(&[0x0f, 0x23, 0xf8])); // mov dr7,rax
}

#[test]
fn unreachable() {
    let padded = |padding: &[u8]| {
        let mut parts = parts(|_| Ok(()));
        parts.code.extend(padding);
        parts
    };
    accepted_parts(padded(&[0xcc, 0x0f, 0x1f, 0x00, 0x90]));
    refused_parts(Rule::Unreachable, padded(&[0x48, 0x89, 0xc3]));
    refused(Rule::Unreachable, bytes(&[0xcc]));
}

/// Whatever the bytes: an answer, never a panic.
#[test]
fn noise_is_refused() {
    let mut seed = 1u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u32
    };
    for _ in 0..2000 {
        let mut noise = parts(|_| Ok(()));
        let length = 1 + next() as usize % 40;
        noise.code.truncate(9);
        noise.code.extend((0..length).map(|_| next() as u8));
        noise.relocations = vec![next() % 48];
        noise.fixups = vec![Fixup { fault: next() % 48, landing: next() % 48 }];
        assert!(check(noise).is_err());
    }
}

#[test]
fn the_user_half_ends_with_five_levels_of_page_tables_at_the_latest() {
    let policy = Policy::new(Features::all());
    assert_ne!(policy.with_user_half_end(1 << 56), policy);
    assert!(std::panic::catch_unwind(|| policy.with_user_half_end((1 << 56) + 1)).is_err());
}

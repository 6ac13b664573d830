//! The shortcuts against what they stand for: over random instructions, what
//! forms say of registers and memory is what iced says of the instruction
//! itself, and what a shape calls canonical its encoder makes again.

use super::super::effects::{Access, Effects, kinds};
use super::super::form::Form;
use super::super::{number, operands};
use super::property::Random;
use iced_x86::{
    Code, Decoder, Encoder, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic,
    OpAccess, OpKind,
};
use std::collections::HashSet;

const INSTRUCTIONS: usize = 600_000;

/// Bytes that are often an instruction, and often one that is encoded in an
/// unusual way.
fn bytes(random: &mut Random) -> [u8; 24] {
    let mut bytes = [0; 24];
    let mut at = 0;
    let mut push = |byte| {
        bytes[at] = byte;
        at += 1;
    };
    while random.below(3) == 0 {
        push(random.of(&[0x66, 0x66, 0xf2, 0xf3, 0xf3, 0xf0, 0x2e, 0x64, 0x67]));
    }
    if random.below(2) == 0 {
        push(0x40 + random.below(16) as u8);
    }
    let map: &[u8] = match random.below(10) {
        0..=3 => &[],
        4 | 5 => &[0x0f],
        6 => random.of(&[&[0x0f, 0x38][..], &[0x0f, 0x3a]]),
        7 => &[0xc4],
        8 => &[0xc5],
        _ => &[0x62],
    };
    map.iter().for_each(|byte| push(*byte));
    // Displacements and immediates that would fit into fewer bytes as well.
    while at < bytes.len() {
        let small = random.below(3) == 0;
        bytes[at] = if small { random.of(&[0, 0xff, 0x24]) } else { random.below(256) as u8 };
        at += 1;
    }
    bytes
}

/// Every instruction that the rules on operands let through.
fn for_each(mut check: impl FnMut(&Instruction, &[u8], &'static Form)) {
    let mut random = Random(11);
    let mut codes = HashSet::new();
    for _ in 0..INSTRUCTIONS {
        let bytes = bytes(&mut random);
        let mut decoder = Decoder::with_ip(64, &bytes, 0, 0);
        let instruction = decoder.decode();
        let form = Form::of(&instruction);
        if form.refused.is_none() && operands::check(&instruction, form).is_ok() {
            codes.insert(instruction.code());
            check(&instruction, &bytes[..decoder.position()], form);
        }
    }
    assert!(codes.len() > 1000, "{} kinds of instructions", codes.len());
}

/// By iced, for this very instruction.
fn effects(factory: &mut InstructionInfoFactory, instruction: &Instruction) -> Effects {
    let info = factory.info_options(instruction, InstructionInfoOptions::NO_MEMORY_USAGE);
    let keeps = matches!(instruction.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr);
    let mut effects = Effects::default();
    for used in info.used_registers() {
        let register = used.register();
        if register.is_gpr() {
            effects.add(number(register), Access::new(register, used.access(), keeps));
        }
    }
    effects
}

#[test]
fn forms_say_what_iced_says() {
    let mut factory = InstructionInfoFactory::new();
    for_each(|instruction, bytes, form| {
        assert_eq!(*form, Form::new(instruction), "{instruction} {bytes:02x?}");
        // No register matters to them.
        if form.idle {
            return;
        }
        let Ok(found) = Effects::of(instruction, form) else { return };
        let expected = effects(&mut factory, instruction);
        // Of two same registers iced knows more of some instructions; that
        // they are read may be claimed without need.
        let same = Effects { reads: found.reads & expected.reads, ..found };
        assert_eq!(same, expected, "{instruction} {bytes:02x?}");
        let two_same = super::super::transfer::same(instruction);
        assert!(two_same || found == expected, "{instruction} {bytes:02x?}: {found:?}");
    });
}

#[test]
fn forms_know_what_happens_to_memory() {
    let mut factory = InstructionInfoFactory::new();
    for_each(|instruction, bytes, form| {
        let info = factory.info_options(instruction, InstructionInfoOptions::NO_MEMORY_USAGE);
        for (operand, kind) in (0..).zip(instruction.op_kinds()) {
            if kind != OpKind::Memory || !form.touches {
                continue;
            }
            let access = info.op_access(operand);
            let (read, write, always) = kinds(access);
            let masked = instruction.has_op_mask();
            assert!(form.memory_read || masked || !read && always, "{instruction} {bytes:02x?}");
            assert_eq!(form.memory_write, write, "{instruction} {bytes:02x?}");
            let conditional = !matches!(
                access,
                OpAccess::Read | OpAccess::Write | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            );
            assert!(!form.accesses || masked || !conditional, "{instruction} {bytes:02x?}");
        }
    });
}

#[test]
fn shapes_are_canonical() {
    let mut encoder = Encoder::new(64);
    let mut certain = HashSet::new();
    let (mut canonical, mut missed) = (0, 0);
    for_each(|instruction, bytes, form| {
        let Some(shape) = form.shape else { return };
        let encoded = encoder.encode(instruction, instruction.ip()).is_ok();
        let same = encoder.take_buffer() == bytes && encoded;
        if shape.certain(bytes) {
            assert!(same, "{instruction} {bytes:02x?}");
            certain.insert(instruction.code());
        } else {
            missed += usize::from(same);
        }
        canonical += usize::from(same);
    });
    // It is of some use.
    assert!(missed * 3 < canonical, "{missed} of {canonical} need the encoder");
    assert!(certain.len() > 200 && certain.contains(&Code::Mov_r64_rm64), "{}", certain.len());
}

//! What becomes of single instructions, for measuring how much of a program
//! the translator knows.
//!
//! [`judge`] is the translator's own judgement, the one that decides what a
//! region may contain; it does not depend on the code around the instruction.

use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind};

use crate::cpu::CpuFeatures;
use crate::forms::{self, Class};
use crate::fragment::Unsupported;
use crate::operand::{Address, CONSTANT_LIMIT};
use crate::steps::hides_landing_pad;

/// What a fragment does at an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Runs it.
    Translated,
    /// Skips it: it has no effect on the state (`nop`, prefetches, landing
    /// pads).
    NoEffect,
    /// Leaves, because it is a system call.
    SystemCall,
    /// Leaves, because it traps or is privileged by nature.
    Trap,
    /// Leaves for this reason.
    Missing(Unsupported),
}

/// One instruction and what becomes of it.
#[derive(Debug, Clone, Copy)]
pub struct Judgement {
    instruction: Instruction,
    outcome: Outcome,
}

impl Judgement {
    /// What a fragment does with the instruction.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Length of the instruction in bytes; 1 where nothing decodes.
    #[must_use]
    pub fn length(&self) -> usize {
        if self.instruction.is_invalid() { 1 } else { self.instruction.len() }
    }

    /// The instruction's form as the processor manuals write it, with the
    /// prefixes that matter: `LOCK INC r/m32`.
    #[must_use]
    pub fn form(&self) -> String {
        let instruction = &self.instruction;
        if instruction.is_invalid() {
            return String::from("(bad)");
        }
        let mut form = String::new();
        if instruction.has_lock_prefix() {
            form.push_str("LOCK ");
        }
        if instruction.is_string_instruction() {
            if instruction.has_rep_prefix() {
                form.push_str("REP ");
            }
            if instruction.has_repne_prefix() {
                form.push_str("REPNE ");
            }
        }
        form.push_str(instruction.op_code().instruction_string());
        if instruction.op_kinds().any(|kind| kind == OpKind::Memory) {
            form.push_str(" [memory]");
        }
        form
    }
}

/// Decodes the first instruction of `bytes`, at the user address `ip`, and
/// judges it for a machine with the extensions `cpu`.
///
/// Nothing is emitted. What is judged [`Outcome::Translated`] may be refused
/// in a region that has no register left for it: a locked instruction, or one
/// on a string of bits, if that is where nearly all registers are operands; a
/// high byte whose register is part of the address of the same instruction.
#[must_use]
pub fn judge(bytes: &[u8], ip: u64, cpu: CpuFeatures) -> Judgement {
    let instruction = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).decode();
    let outcome = if instruction.is_invalid() {
        Outcome::Missing(Unsupported::Undecodable)
    } else if hides_landing_pad(&bytes[..instruction.len()]) {
        Outcome::Missing(Unsupported::Form)
    } else {
        match forms::classify(&instruction, cpu) {
            Ok(form) if form.class == Class::Syscall => Outcome::SystemCall,
            Ok(form) if form.class == Class::Hint => Outcome::NoEffect,
            Ok(form) if form.class != Class::Lea && names_no_user_address(&instruction) => {
                Outcome::Missing(Unsupported::Address)
            }
            Ok(_) => Outcome::Translated,
            Err(Unsupported::Trap) => Outcome::Trap,
            Err(reason) => Outcome::Missing(reason),
        }
    };
    Judgement { instruction, outcome }
}

/// Whether the memory operand, if any, has a constant address that no access
/// can be made to.
fn names_no_user_address(instruction: &Instruction) -> bool {
    if forms::memory_operand(instruction).is_none() {
        return false;
    }
    let address = Address::of(instruction);
    let reachable = if address.fs {
        i32::try_from(address.displacement).is_ok()
    } else {
        (address.displacement as u64) < CONSTANT_LIMIT
    };
    address.is_constant() && !reachable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(bytes: &[u8]) -> Outcome {
        judge(bytes, 0x40_1000, CpuFeatures::all()).outcome()
    }

    #[test]
    fn outcomes_are_told_apart() {
        use Outcome::{Missing, NoEffect, SystemCall, Translated, Trap};
        use Unsupported as U;
        let cases: &[(&[u8], Outcome)] = &[
            (&[0x48, 0x01, 0xd8], Translated),            // add rax,rbx
            (&[0x0f, 0x1f, 0x40, 0x00], NoEffect),        // nop [rax]
            (&[0xf3, 0x48, 0x0f, 0x1e, 0xc8], NoEffect),  // rdsspq rax
            (&[0x0f, 0x05], SystemCall),                  // syscall
            (&[0xcc], Trap),                              // int3
            (&[0x0f, 0xa2], Trap),                        // cpuid
            (&[0x06], Missing(U::Undecodable)),           // push es of 32-bit code
            (&[0xd9, 0xe8], Missing(U::X87)),             // fld1
            (&[0x0f, 0xef, 0xc1], Missing(U::X87)),       // pxor mm0,mm1
            (&[0xf3, 0x0f, 0xd6, 0xc1], Missing(U::X87)), // movq2dq xmm0,mm1
            (&[0x9b], Missing(U::X87)),                   // fwait
            (&[0xc4, 0xe2, 0x69, 0x90, 0x04, 0x08], Missing(U::ElementAccess)), // vpgatherdd
            (&[0xc4, 0xe2, 0x79, 0x2c, 0x00], Missing(U::ElementAccess)), // vmaskmovps
            (&[0xc7, 0xf8, 0, 0, 0, 0], Missing(U::Transaction)), // xbegin
            (&[0x0f, 0x01, 0xd0], Missing(U::KernelManaged)), // xgetbv
            (&[0x0f, 0xae, 0x08], Missing(U::KernelManaged)), // fxrstor [rax]
            (&[0xf3, 0x48, 0x0f, 0xae, 0xd0], Missing(U::KernelManaged)), // wrfsbase rax
            (&[0x65, 0x8b, 0x00], Missing(U::Segment)),   // mov eax,gs:[rax]
            (&[0x9c], Missing(U::WholeFlags)),            // pushfq
            (&[0xf0, 0x11, 0x08], Missing(U::Form)),      // lock adc [rax],ecx
            (&[0xb8, 0xf3, 0x0f, 0x1e, 0xfa], Missing(U::Form)), // mov eax,endbr64
            (&[0x8b, 0x04, 0x25, 0, 0, 0, 0x80], Missing(U::Address)), // mov eax,[-2^31]
            (&[0x64, 0x8b, 0x04, 0x25, 0, 0, 0, 0x80], Translated), // the same with fs
        ];
        for (bytes, expected) in cases {
            assert_eq!(outcome(bytes), *expected, "{bytes:02x?}");
        }
    }

    #[test]
    fn a_missing_feature_is_a_reason() {
        let vzeroupper = [0xc5, 0xf8, 0x77];
        let judgement = judge(&vzeroupper, 0, CpuFeatures::baseline());
        assert_eq!(judgement.outcome(), Outcome::Missing(Unsupported::CpuFeature));
    }

    #[test]
    fn forms_are_named_as_the_manuals_do() {
        let form = |bytes: &[u8]| judge(bytes, 0, CpuFeatures::all()).form();
        assert_eq!(form(&[0xf0, 0xff, 0x00]), "LOCK INC r/m32 [memory]");
        assert_eq!(form(&[0xf3, 0xa6]), "REP CMPSB");
        assert_eq!(form(&[0xff, 0xc0]), "INC r/m32");
        assert_eq!(form(&[0x06]), "(bad)");
    }
}

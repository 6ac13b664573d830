//! From bytes to instructions: decoding, jump targets, tables, and the fixed
//! sequences that may be entered only at their start.

use super::effects::Effects;
use super::{Policy, Rule, VerifyError, Violation, allowed, operands};
use crate::fragment::Parts;
use crate::frame;
use iced_x86::{
    Code as Op, Decoder, DecoderOptions, Encoder, Instruction, InstructionInfoFactory, Mnemonic,
    OpKind, Register,
};

/// The part an instruction plays in one of the fixed sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// None; the ordinary rules hold.
    Plain,
    /// In a poll, up to its second `jne`.
    Poll,
    /// The jump that ends a poll.
    BackEdge,
    /// A locked access behind its guard.
    Guarded,
    /// A repeated string instruction behind its bound.
    Bounded,
}

/// Where an instruction may continue, apart from the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Jump {
    None,
    /// To an instruction of this index.
    To(usize),
    /// Out of the fragment.
    Out,
}

/// A decoded fragment.
pub(super) struct Code<'a> {
    pub parts: &'a Parts,
    pub instructions: Vec<Instruction>,
    pub effects: Vec<Effects>,
    pub jumps: Vec<Jump>,
    /// Index of the instruction where a fault continues.
    pub landings: Vec<Option<usize>>,
    pub roles: Vec<Role>,
    /// Something jumps here, or a fault lands here.
    targets: Vec<bool>,
    /// Poll exits, whose way out is checked.
    pub poll_exits: Vec<usize>,
}

const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
/// Restoring flags and registers between a poll and its jump takes no more.
const MAX_RESTORES: usize = 8;

impl<'a> Code<'a> {
    pub fn new(parts: &'a Parts, policy: &Policy) -> Result<Self, Box<VerifyError>> {
        let (instructions, effects) = decode(&parts.code, policy)?;
        let count = instructions.len();
        let mut this = Self {
            parts,
            instructions,
            effects,
            jumps: vec![Jump::None; count],
            landings: vec![None; count],
            roles: vec![Role::Plain; count],
            targets: vec![false; count],
            poll_exits: Vec::new(),
        };
        this.resolve_fixups().map_err(|(rule, detail)| super::table_error(rule, detail))?;
        this.resolve_jumps()?;
        for i in 0..count {
            this.find_poll(i);
            this.find_lock_guard(i);
            this.find_rep_bound(i);
        }
        Ok(this)
    }

    pub fn error(&self, i: usize, (rule, detail): Violation) -> Box<VerifyError> {
        error(&self.instructions[i], (rule, detail))
    }

    /// Index of the instruction that starts at `offset`.
    fn index_of(&self, offset: u64) -> Option<usize> {
        self.instructions.binary_search_by_key(&offset, Instruction::ip).ok()
    }

    fn resolve_fixups(&mut self) -> Result<(), Violation> {
        let fixups = &self.parts.fixups;
        if !fixups.windows(2).all(|w| w[0].fault < w[1].fault) {
            return Err((Rule::FixupTable, "fixups are not sorted by fault, or not unique"));
        }
        for fixup in fixups {
            let fault = self.index_of(u64::from(fixup.fault));
            let landing = self.index_of(u64::from(fixup.landing));
            let (Some(fault), Some(landing)) = (fault, landing) else {
                return Err((Rule::FixupTable, "a fixup is not at an instruction start"));
            };
            self.landings[fault] = Some(landing);
            self.targets[landing] = true;
        }
        Ok(())
    }

    fn resolve_jumps(&mut self) -> Result<(), Box<VerifyError>> {
        let mut relocations = self.parts.relocations.clone();
        relocations.sort_unstable();
        let distinct = relocations.windows(2).all(|w| w[0] < w[1]);
        let mut used = 0;
        for i in 0..self.instructions.len() {
            let instruction = &self.instructions[i];
            if !operands::is_jump(instruction) {
                continue;
            }
            let field = instruction.ip() + 1;
            let out = instruction.code() == Op::Jmp_rel32_64
                && relocations.binary_search_by_key(&field, |r| u64::from(*r)).is_ok();
            if out {
                used += 1;
                self.jumps[i] = Jump::Out;
                continue;
            }
            let Some(target) = self.index_of(instruction.near_branch64()) else {
                let detail = "neither a relocated exit jump nor to an instruction start";
                return Err(self.error(i, (Rule::JumpTarget, detail)));
            };
            self.jumps[i] = Jump::To(target);
            self.targets[target] = true;
        }
        if !distinct || used != relocations.len() {
            let detail = "a relocation is not the field of a jmp rel32, or is listed twice";
            return Err(super::table_error(Rule::Relocation, detail));
        }
        Ok(())
    }

    /// Whether nothing jumps to any instruction after `first`, up to `last`.
    fn entered_only_at(&self, first: usize, last: usize) -> bool {
        !self.targets[first + 1..=last].contains(&true)
    }

    /// Marks the poll that begins at `first`, if one does.
    fn find_poll(&mut self, first: usize) {
        let is =
            |i: usize, f: &dyn Fn(&Instruction) -> bool| self.instructions.get(i).is_some_and(f);
        let Some(t) = self.instructions.get(first).and_then(|i| loads(i, frame::POLL_FLAGS)) else {
            return;
        };
        let t32 = narrow(t);
        let pointed = |i: &Instruction| plain_base(i) == Some(t) && i.memory_displacement64() == 0;
        let matched = is(first + 1, &|i| {
            i.code() == Op::Mov_r32_rm32
                && i.op0_register() == t32
                && i.op1_kind() == OpKind::Memory
                && pointed(i)
        }) && is(first + 2, &|i| {
            i.code() == Op::Test_rm32_r32
                && frame_offset(i) == Some(frame::POLL_MASK)
                && i.op1_register() == t32
        }) && is(first + 3, &|i| i.mnemonic() == Mnemonic::Jne)
            && is(first + 4, &|i| loads(i, frame::POLL_SOFTIRQ) == Some(t))
            && is(first + 5, &|i| {
                i.mnemonic() == Mnemonic::Cmp
                    && i.op0_kind() == OpKind::Memory
                    && i.memory_size() == iced_x86::MemorySize::UInt16
                    && pointed(i)
                    && immediate(i, 1) == Some(0)
            })
            && is(first + 6, &|i| i.mnemonic() == Mnemonic::Jne);
        if !matched {
            return;
        }
        let restores = self.instructions[first + 7..]
            .iter()
            .take(MAX_RESTORES)
            .take_while(|i| is_restore(i))
            .count();
        let last = first + 7 + restores;
        let ends = is(last, &|i| i.mnemonic() == Mnemonic::Jmp);
        let (Jump::To(a), Jump::To(b)) = (self.jumps[first + 3], self.jumps[first + 6]) else {
            return;
        };
        if ends && matches!(self.jumps[last], Jump::To(_)) && self.entered_only_at(first, last) {
            self.roles[first..first + 7].fill(Role::Poll);
            self.roles[last] = Role::BackEdge;
            self.poll_exits.extend([a, b]);
        }
    }

    /// Marks a locked access at `access` whose guard stands before it.
    fn find_lock_guard(&mut self, access: usize) {
        let locked = &self.instructions[access];
        if !operands::is_locked(locked) || access < 4 {
            return;
        }
        let Some(t) = plain_base(locked).filter(|_| locked.memory_displacement64() == 0) else {
            return;
        };
        let [copy, mask, compare, branch] = &self.instructions[access - 4..access] else {
            return;
        };
        let limit = i64::from(frame::CACHE_LINE) - locked.memory_size().size() as i64;
        let u = copy.op0_register();
        let wide = matches!(copy.code(), Op::Mov_r64_rm64 | Op::Mov_rm64_r64);
        let half = matches!(copy.code(), Op::Mov_r32_rm32 | Op::Mov_rm32_r32);
        let copied = (wide || half)
            && copy.op0_kind() == OpKind::Register
            && copy.op1_kind() == OpKind::Register
            && copy.op1_register() == if wide { t } else { narrow(t) };
        let u32 = narrow(u.full_register());
        let on_u = |i: &Instruction, mnemonic, value| {
            i.mnemonic() == mnemonic
                && i.op0_kind() == OpKind::Register
                && i.op0_register() == u32
                && immediate(i, 1) == Some(value)
        };
        if copied
            && u.full_register() != t
            && limit >= 0
            && on_u(mask, Mnemonic::And, i64::from(frame::CACHE_LINE) - 1)
            && on_u(compare, Mnemonic::Cmp, limit)
            && branch.mnemonic() == Mnemonic::Ja
            && self.entered_only_at(access - 4, access)
        {
            self.roles[access] = Role::Guarded;
        }
    }

    /// Marks a repeated string instruction whose bound stands before it.
    fn find_rep_bound(&mut self, access: usize) {
        if !operands::is_repeated(&self.instructions[access]) || access < 2 {
            return;
        }
        let (compare, branch) = (&self.instructions[access - 2], &self.instructions[access - 1]);
        let bounded = compare.mnemonic() == Mnemonic::Cmp
            && compare.op0_kind() == OpKind::Register
            && compare.op0_register() == Register::RCX
            && immediate(compare, 1)
                .is_some_and(|n| (0..=i64::from(frame::REP_LIMIT)).contains(&n))
            && branch.mnemonic() == Mnemonic::Ja;
        if bounded && self.entered_only_at(access - 2, access) {
            self.roles[access] = Role::Bounded;
        }
    }
}

/// Decodes all of `bytes`, and checks everything that needs no state.
fn decode(
    bytes: &[u8],
    policy: &Policy,
) -> Result<(Vec<Instruction>, Vec<Effects>), Box<VerifyError>> {
    let mut factory = InstructionInfoFactory::new();
    let mut all_effects = Vec::with_capacity(bytes.len() / 4);
    let mut instructions = Vec::with_capacity(bytes.len() / 4);
    let mut encoder = Encoder::new(64);
    let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
    while decoder.can_decode() {
        let at = decoder.position();
        let instruction = decoder.decode();
        let check = || -> Result<(), Violation> {
            if instruction.is_invalid() {
                return Err((Rule::Encoding, "does not decode"));
            }
            if !allowed::allowed(&instruction) {
                return Err((Rule::Instruction, "not on the list"));
            }
            if !policy.features.execute(&instruction) {
                return Err((Rule::Feature, "needs an extension that the policy does not name"));
            }
            operands::check(&instruction)
        };
        let effects = Effects::of(&mut factory, &instruction);
        check()
            .and_then(|()| effects.check())
            .map_err(|violation| error(&instruction, violation))?;
        let canonical = encoder.encode(&instruction, instruction.ip()).is_ok();
        let mut encoded = encoder.take_buffer();
        let canonical = canonical && encoded == bytes[at..decoder.position()];
        encoded.clear();
        encoder.set_buffer(encoded);
        if !canonical {
            return Err(error(&instruction, (Rule::Encoding, "not the canonical encoding")));
        }
        instructions.push(instruction);
        all_effects.push(effects);
    }
    let first = instructions.first().map(Instruction::mnemonic);
    if first != Some(Mnemonic::Endbr64) {
        return Err(super::table_error(Rule::EntryPoint, "the code does not start with endbr64"));
    }
    // The last byte of the four is the rarest.
    let again = |(at, byte): (usize, &u8)| *byte == ENDBR64[3] && bytes[at + 1..at + 5] == ENDBR64;
    if bytes.len() > 4 && bytes[4..].iter().enumerate().any(again) {
        return Err(super::table_error(Rule::EntryPoint, "the bytes of endbr64 appear again"));
    }
    Ok((instructions, all_effects))
}

fn error(instruction: &Instruction, (rule, detail): Violation) -> Box<VerifyError> {
    Box::new(VerifyError {
        offset: instruction.ip() as usize,
        instruction: instruction.to_string(),
        rule,
        detail,
    })
}

/// The frame offset that the instruction's memory operand names.
pub(super) fn frame_offset(instruction: &Instruction) -> Option<i32> {
    let named = instruction.memory_base() == Register::RSP
        && instruction.memory_index() == Register::None
        && instruction.segment_prefix() == Register::None;
    named.then(|| i32::try_from(instruction.memory_displacement64() as i64).ok()).flatten()
}

/// The register of a plain `[register + displacement]` operand.
pub(super) fn plain_base(instruction: &Instruction) -> Option<Register> {
    let base = instruction.memory_base();
    (base.is_gpr64()
        && instruction.memory_index() == Register::None
        && instruction.segment_prefix() == Register::None)
        .then_some(base)
}

/// The 64-bit register that `mov r64,[rsp+offset]` loads.
fn loads(instruction: &Instruction, offset: i32) -> Option<Register> {
    (instruction.code() == Op::Mov_r64_rm64
        && instruction.op1_kind() == OpKind::Memory
        && frame_offset(instruction) == Some(offset))
    .then(|| instruction.op0_register())
}

/// What may stand between a poll and its jump: it brings the flags and
/// registers back, neither faults nor takes long.
fn is_restore(instruction: &Instruction) -> bool {
    let spills = frame::SPILL..frame::spill(frame::SPILL_SLOTS - 1) + 1;
    let from_slot = || {
        frame_offset(instruction)
            .is_some_and(|offset| spills.contains(&offset) && loads(instruction, offset).is_some())
    };
    match instruction.mnemonic() {
        Mnemonic::Sahf | Mnemonic::Lea => true,
        Mnemonic::Mov if operands::has_memory(instruction) => from_slot(),
        Mnemonic::Mov
        | Mnemonic::Add
        | Mnemonic::Sub
        | Mnemonic::Xor
        | Mnemonic::Cmp
        | Mnemonic::Test => !operands::has_memory(instruction),
        _ => false,
    }
}

/// The sign-extended immediate of operand `operand`.
pub(super) fn immediate(instruction: &Instruction, operand: u32) -> Option<i64> {
    instruction.try_immediate(operand).ok().map(|value| value as i64)
}

/// The 32-bit name of a 64-bit register.
fn narrow(register: Register) -> Register {
    register.full_register32()
}

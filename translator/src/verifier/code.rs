//! From bytes to lines: decoding, and where jumps and faults lead.

use super::effects::Effects;
use super::form::Form;
use super::{Policy, Rule, VerifyError, Violation, operands, sequences, table_error};
use crate::fragment::Parts;
use iced_x86::{Code as Op, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic, Register};

/// Where an instruction may continue, apart from the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Jump {
    None,
    /// To the line of this index.
    To(usize),
    /// Out of the fragment.
    Out,
}

/// What an instruction accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    None,
    /// The frame at this offset.
    Frame(i32),
    /// User memory.
    User,
}

/// The part an instruction plays in one of the fixed sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// None; the ordinary rules hold.
    Plain,
    /// In a poll, up to its last conditional jump.
    Poll,
    /// The jump that ends a poll.
    BackEdge,
    /// A locked access behind its guard.
    Guarded,
    /// A repeated string instruction behind its bound.
    Bounded,
}

/// One instruction, and what is known of it whatever the state.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub instruction: Instruction,
    pub form: &'static Form,
    pub effects: Effects,
    pub memory: Memory,
    pub jump: Jump,
    /// The line where a fault continues.
    pub landing: Option<usize>,
    pub role: Role,
    /// Something jumps here, or a fault lands here.
    pub target: bool,
}

/// A decoded fragment.
pub(super) struct Code<'a> {
    pub parts: &'a Parts,
    pub lines: Vec<Line>,
    /// Which line starts at each offset; [`NOWHERE`] if none does.
    starts: Vec<u32>,
}

const NOWHERE: u32 = u32::MAX;
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

impl<'a> Code<'a> {
    /// Decodes all of `parts`, and checks everything that needs no state.
    pub fn new(parts: &'a Parts, policy: &Policy) -> Result<Self, Box<VerifyError>> {
        let size = parts.code.len();
        let (lines, starts) = (Vec::with_capacity(size / 4), vec![NOWHERE; size]);
        let mut this = Self { parts, lines, starts };
        this.decode(policy)?;
        this.check_entry().map_err(table_error)?;
        this.resolve_fixups().map_err(table_error)?;
        this.resolve_jumps()?;
        sequences::find(&mut this.lines);
        Ok(this)
    }

    /// `violation` at line `i`.
    pub fn error(&self, i: usize, violation: Violation) -> Box<VerifyError> {
        error(&self.lines[i].instruction, violation)
    }

    fn decode(&mut self, policy: &Policy) -> Result<(), Box<VerifyError>> {
        let bytes = &self.parts.code;
        let mut encoder = Encoder::new(64);
        let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            let start = decoder.position();
            decoder.decode_out(&mut instruction);
            self.starts[start] = self.lines.len() as u32;
            let line = Line::of(instruction, policy).map_err(|v| error(&instruction, v))?;
            let bytes = &bytes[start..decoder.position()];
            let certain = line.form.shape.is_some_and(|shape| shape.certain(bytes));
            if !certain && !encodes_to(&mut encoder, &instruction, bytes) {
                let violation = (Rule::Encoding, "not the canonical encoding");
                return Err(error(&instruction, violation));
            }
            self.lines.push(line);
        }
        Ok(())
    }

    fn check_entry(&self) -> Result<(), Violation> {
        if self.lines.first().map(|line| line.instruction.code()) != Some(Op::Endbr64) {
            return Err((Rule::EntryPoint, "the code does not start with endbr64"));
        }
        // The last byte of the four is the rarest.
        let bytes = &self.parts.code[1..];
        let ends = |at: usize| bytes[at] == ENDBR64[3] && bytes[..=at].ends_with(&ENDBR64);
        if (0..bytes.len()).any(ends) {
            return Err((Rule::EntryPoint, "the bytes of endbr64 appear again"));
        }
        Ok(())
    }

    /// The line that starts at `offset`.
    fn line_at(&self, offset: u64) -> Option<usize> {
        let start = *self.starts.get(usize::try_from(offset).ok()?)?;
        (start != NOWHERE).then_some(start as usize)
    }

    fn resolve_fixups(&mut self) -> Result<(), Violation> {
        let fixups = &self.parts.fixups;
        if !fixups.windows(2).all(|w| w[0].fault < w[1].fault) {
            return Err((Rule::FixupTable, "fixups are not sorted by fault, or not unique"));
        }
        for fixup in fixups {
            let fault = self.line_at(u64::from(fixup.fault));
            let landing = self.line_at(u64::from(fixup.landing));
            let (Some(fault), Some(landing)) = (fault, landing) else {
                return Err((Rule::FixupTable, "a fixup is not at an instruction start"));
            };
            self.lines[fault].landing = Some(landing);
            self.lines[landing].target = true;
        }
        Ok(())
    }

    fn resolve_jumps(&mut self) -> Result<(), Box<VerifyError>> {
        let mut relocations = self.parts.relocations.clone();
        relocations.sort_unstable();
        let (mut next, mut out) = (0, 0);
        for i in 0..self.lines.len() {
            let Line { instruction, form, .. } = &self.lines[i];
            if !form.jump {
                continue;
            }
            let field = instruction.ip() + 1;
            while relocations.get(next).is_some_and(|r| u64::from(*r) < field) {
                next += 1;
            }
            if instruction.code() == Op::Jmp_rel32_64
                && relocations.get(next).is_some_and(|r| u64::from(*r) == field)
            {
                (next, out) = (next + 1, out + 1);
                self.lines[i].jump = Jump::Out;
                continue;
            }
            let Some(target) = self.line_at(instruction.near_branch64()) else {
                let detail = "neither a relocated exit jump nor to an instruction start";
                return Err(self.error(i, (Rule::JumpTarget, detail)));
            };
            self.lines[i].jump = Jump::To(target);
            self.lines[target].target = true;
        }
        if out != relocations.len() {
            let detail = "a relocation is not the field of a jmp rel32, or is listed twice";
            return Err(table_error((Rule::Relocation, detail)));
        }
        Ok(())
    }
}

impl Line {
    fn of(instruction: Instruction, policy: &Policy) -> Result<Self, Violation> {
        let form = Form::of(&instruction);
        if !policy.features.include(form.needed) {
            return Err((Rule::Feature, "needs an extension that the policy does not name"));
        }
        if let Some(violation) = form.refused {
            return Err(violation);
        }
        operands::check(&instruction, form)?;
        let effects = Effects::of(&instruction, form)?;
        let memory = match instruction.memory_base() {
            _ if form.string => Memory::User,
            _ if !form.touches => Memory::None,
            Register::RSP => Memory::Frame(instruction.memory_displacement64() as i32),
            _ => Memory::User,
        };
        Ok(Self {
            instruction,
            form,
            effects,
            memory,
            jump: Jump::None,
            landing: None,
            role: Role::Plain,
            target: false,
        })
    }

    /// Whether the next line may follow it.
    pub fn falls_through(&self) -> bool {
        self.instruction.mnemonic() != Mnemonic::Jmp
    }
}

fn encodes_to(encoder: &mut Encoder, instruction: &Instruction, bytes: &[u8]) -> bool {
    let encoded = encoder.encode(instruction, instruction.ip()).is_ok();
    let mut buffer = encoder.take_buffer();
    let same = encoded && buffer == bytes;
    buffer.clear();
    encoder.set_buffer(buffer);
    same
}

fn error(instruction: &Instruction, (rule, detail): Violation) -> Box<VerifyError> {
    Box::new(VerifyError {
        offset: instruction.ip() as usize,
        instruction: instruction.to_string(),
        rule,
        detail,
    })
}

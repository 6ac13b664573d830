//! The user's instructions, each decoded and judged once per translation.

mod index;
mod known;

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, Instruction};

use crate::cpu::CpuFeatures;
use crate::flags::Effects;
use crate::forms::Class;
use crate::fragment::{ExitKind, Unsupported};
use crate::regs::GprSet;
use crate::source::{CodeCache, CodeSource, MAX_INSTRUCTION};
use crate::translate::Predictions;

use self::index::Index;
use self::known::{Judge, Traits};

/// One allowed user instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guest {
    pub instruction: Instruction,
    pub class: Class,
    /// May raise #DE or #XM without touching memory.
    pub raises: bool,
    /// What it does to the arithmetic flags.
    pub effects: Effects,
    /// General registers it writes, or may write.
    pub writes: GprSet,
    /// Its index was seen not to fit into 32 bits.
    pub wide: bool,
}

impl Guest {
    pub(crate) fn ip(&self) -> u64 {
        self.instruction.ip()
    }

    pub(crate) fn next_ip(&self) -> u64 {
        self.instruction.next_ip()
    }
}

/// What a fragment does at one user address.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Runs this instruction.
    Allowed(Guest),
    /// Leaves; the instruction that makes it do so has `length` bytes.
    Stop { kind: ExitKind, reason: Unsupported, length: usize },
}

impl Step {
    /// Bytes read as the instruction.
    pub(crate) fn length(&self) -> usize {
        match self {
            Self::Allowed(guest) => guest.instruction.len(),
            Self::Stop { length, .. } => *length,
        }
    }
}

const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// Whether an instruction of these bytes holds those of `endbr64` behind its
/// first: copied, they would make a second target of indirect branches.
pub(crate) fn hides_landing_pad(bytes: &[u8]) -> bool {
    bytes.len() > ENDBR64.len() && bytes[1..].windows(ENDBR64.len()).any(|window| window == ENDBR64)
}

/// Hashes addresses: they are close together and nobody chooses them to
/// collide for long, as a region is small.
#[derive(Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}

/// A map by user addresses.
pub(crate) type AddressMap<T> = HashMap<u64, T, BuildHasherDefault<AddressHasher>>;

/// Steps of a large region under the default limits.
const EXPECTED: usize = 512;

/// The steps known so far, numbered in the order of their decoding.
pub(crate) struct Steps<'a> {
    cache: CodeCache<'a>,
    judge: Judge,
    wide: Option<&'a BTreeSet<u64>>,
    list: Vec<(u64, Step)>,
    index: Index,
}

impl<'a> Steps<'a> {
    pub(crate) fn new(source: &'a mut dyn CodeSource, cpu: CpuFeatures) -> Self {
        Self {
            cache: CodeCache::new(source),
            judge: Judge::new(cpu),
            wide: None,
            list: Vec::with_capacity(EXPECTED),
            index: Index::new(EXPECTED),
        }
    }

    /// Takes into account what was seen to happen.
    pub(crate) fn learn(&mut self, predictions: &'a Predictions) {
        self.wide = Some(&predictions.wide_indexes);
    }

    /// Whether the index of the operand at `ip` was seen not to fit into 32 bits.
    pub(crate) fn is_wide(&self, ip: u64) -> bool {
        self.wide.is_some_and(|wide| wide.contains(&ip))
    }

    /// How many steps are known.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// The number of the step at `address`, if it is known.
    pub(crate) fn find(&self, address: u64) -> Option<usize> {
        self.index.find(address, |number| self.list[number].0)
    }

    /// The allowed instruction that is step `number`.
    ///
    /// # Panics
    /// If the step is a stop: blocks hold none.
    pub(crate) fn guest(&self, number: usize) -> &Guest {
        match &self.list[number].1 {
            Step::Allowed(guest) => guest,
            Step::Stop { .. } => unreachable!("a stop inside a block"),
        }
    }

    /// Address of step `number`.
    pub(crate) fn address(&self, number: usize) -> u64 {
        self.list[number].0
    }

    /// The bytes of step `number`.
    pub(crate) fn bytes(&self, number: usize) -> Range<u64> {
        let (address, step) = &self.list[number];
        *address..address.saturating_add(step.length() as u64)
    }

    /// Step `number`.
    pub(crate) fn get(&self, number: usize) -> &Step {
        &self.list[number].1
    }

    /// See [`CodeSource::pointer_hint`].
    pub(crate) fn pointer_hint(&mut self, address: u64) -> Option<u64> {
        self.cache.pointer_hint(address)
    }

    /// Makes the instruction at `address` a stop. False if it is one already.
    pub(crate) fn refuse(&mut self, address: u64, reason: Unsupported) -> bool {
        let Some(number) = self.find(address) else {
            return false;
        };
        let step = &mut self.list[number].1;
        let length = step.length();
        let allowed = matches!(step, Step::Allowed(_));
        if allowed {
            *step = Step::Stop { kind: ExitKind::Unsupported, reason, length };
        }
        allowed
    }

    /// Decodes the instruction at an unknown `address`, and at most `ahead`
    /// behind it as long as they are unknown and control just passes through;
    /// the first one's number, or none if nothing can be read there. Those
    /// behind it have the numbers behind its own.
    pub(crate) fn decode(&mut self, address: u64, ahead: usize) -> Option<usize> {
        let first = self.list.len();
        let run = self.cache.ahead(address);
        let mut decoder = Decoder::with_ip(64, run, address, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while self.list.len() - first <= ahead && run.len() - decoder.position() >= MAX_INSTRUCTION
        {
            let at = decoder.position();
            decoder.decode_out(&mut instruction);
            let bytes = &run[at..at + MAX_INSTRUCTION];
            let address = address + at as u64;
            let step = judge(&mut self.judge, self.wide, &instruction, address, bytes);
            let passes = matches!(&step, Step::Allowed(guest) if !guest.class.ends_block());
            note(&mut self.list, &mut self.index, address, step);
            let list = &self.list;
            let known = || self.index.find(instruction.next_ip(), |number| list[number].0);
            if !passes || known().is_some() {
                return Some(first);
            }
        }
        if self.list.len() > first { Some(first) } else { self.decode_across(address) }
    }

    /// Decodes the instruction at an unknown `address` from wherever its
    /// bytes are.
    fn decode_across(&mut self, address: u64) -> Option<usize> {
        let mut buffer = [0; MAX_INSTRUCTION];
        let length = self.cache.fetch(address, &mut buffer);
        if length == 0 {
            return None;
        }
        let bytes = &buffer[..length];
        let instruction = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode();
        let step = judge(&mut self.judge, self.wide, &instruction, address, bytes);
        note(&mut self.list, &mut self.index, address, step);
        Some(self.list.len() - 1)
    }
}

/// Adds the step at an address that is unknown so far.
#[inline]
fn note(list: &mut Vec<(u64, Step)>, index: &mut Index, address: u64, step: Step) {
    index.insert(address, list.len(), |number| list[number].0);
    list.push((address, step));
}

/// The step that is the `instruction` decoded from the front of `bytes`, which
/// are all that may belong to it.
#[inline]
fn judge(
    judge: &mut Judge,
    wide: Option<&BTreeSet<u64>>,
    instruction: &Instruction,
    address: u64,
    bytes: &[u8],
) -> Step {
    let stop = |kind, reason, length| Step::Stop { kind, reason, length };
    if instruction.is_invalid() {
        let reason = if bytes.len() < MAX_INSTRUCTION {
            Unsupported::Unreadable
        } else {
            Unsupported::Undecodable
        };
        return stop(ExitKind::Unsupported, reason, bytes.len());
    }
    let length = instruction.len();
    if hides_landing_pad(&bytes[..length]) {
        return stop(ExitKind::Unsupported, Unsupported::Form, length);
    }
    match judge.judge(instruction) {
        Ok(traits) if traits.form.class == Class::Syscall => {
            stop(ExitKind::Syscall, Unsupported::None, length)
        }
        Ok(Traits { form, effects, writes }) => Step::Allowed(Guest {
            instruction: *instruction,
            class: form.class,
            raises: form.raises,
            effects,
            writes,
            wide: wide.is_some_and(|wide| wide.contains(&address)),
        }),
        Err(reason) => stop(ExitKind::Unsupported, reason, length),
    }
}

//! From the emitter's items to bytes.
//!
//! Branches begin long and shrink in a few passes over the sizes; every
//! instruction is encoded once.

use std::ops::RangeInclusive;

use iced_x86::{Code, Encoder};

use crate::emit::{Emitter, Item, Label, Operation, SECTIONS};

/// The bytes of a fragment and the tables that go with them.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub code: Vec<u8>,
    /// (fault, landing) offsets in code order.
    pub fixups: Vec<(u32, u32)>,
    /// Offsets of the `rel32` fields of runner jumps.
    pub relocations: Vec<u32>,
    /// (user address, offset) of each mark.
    pub map: Vec<(u64, u32)>,
}

/// A direct branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Branch {
    /// `jmp`.
    Always,
    /// `jcc`, by its condition's number in the encoding.
    If(u8),
    /// `jrcxz`, which has a short form only.
    IfRcxZero,
}

/// Size of every branch's short form.
const SHORT: u8 = 2;
/// Passes over the sizes; the few branches that could still shrink then are
/// left long.
const PASSES: usize = 5;
/// A long branch further from its target than this stays long: one pass over
/// the few instructions between would not bring it near enough.
const NEARBY: RangeInclusive<i64> = 15 * -128..=15 * 127;

impl Branch {
    /// That of a near (or `jrcxz`) instruction.
    pub(crate) fn of(code: Code) -> Self {
        match code {
            Code::Jmp_rel32_64 => Self::Always,
            Code::Jrcxz_rel8_64 => Self::IfRcxZero,
            // The conditions are numbered from 1 in the order of the encoding.
            _ => Self::If((code.condition_code() as u8).wrapping_sub(1) & 15),
        }
    }

    /// The size to begin with, at least that of any form.
    fn first_size(self) -> u8 {
        match self {
            Self::Always => 6,
            Self::If(_) => 8,
            Self::IfRcxZero => 10,
        }
    }

    fn near_size(self) -> u8 {
        match self {
            Self::Always => 5,
            Self::If(_) => 6,
            Self::IfRcxZero => 9,
        }
    }
}

/// A branch that may still shrink.
struct Open {
    item: usize,
    target: usize,
    branch: Branch,
}

/// The items in their final order.
struct Assembly<'a> {
    emitter: &'a Emitter,
    /// Index of each section's first item.
    first: [usize; SECTIONS],
    sizes: Vec<u8>,
    offsets: Vec<u32>,
}

/// Encodes everything. Err is a description of a translator bug.
pub(crate) fn assemble(emitter: &Emitter) -> Result<Assembled, String> {
    let mut first = [0; SECTIONS];
    for i in 1..SECTIONS {
        first[i] = first[i - 1] + emitter.sections[i - 1].len();
    }
    let count = first[SECTIONS - 1] + emitter.sections[SECTIONS - 1].len();
    let mut assembly = Assembly {
        emitter,
        first,
        sizes: Vec::with_capacity(count),
        offsets: Vec::with_capacity(count),
    };
    let (plain, open) = assembly.encode_plain()?;
    assembly.shrink(open);
    assembly.finish(&plain)
}

impl<'a> Assembly<'a> {
    fn items(&self) -> impl Iterator<Item = &'a Item> + use<'a> {
        self.emitter.sections.iter().flatten()
    }

    fn index_of(&self, label: Label) -> Result<usize, String> {
        let (section, index) =
            self.emitter.place_of(label).ok_or_else(|| format!("{label:?} is not bound"))?;
        let index = self.first[section as usize] + index;
        let last = self.emitter.sections.iter().map(Vec::len).sum::<usize>();
        if index < last { Ok(index) } else { Err("a label behind the last instruction".into()) }
    }

    /// Encodes what is not a branch, one behind the other, and finds the sizes.
    fn encode_plain(&mut self) -> Result<(Vec<u8>, Vec<Open>), String> {
        let mut encoder = Encoder::new(64);
        let mut open = Vec::new();
        for (i, item) in self.items().enumerate() {
            let size = match &item.operation {
                Operation::Plain(instruction) => encoder
                    .encode(instruction, 0)
                    .map_err(|error| format!("encoding failed: {error}"))?
                    as u8,
                Operation::Branch(branch, label) => {
                    let target = self.index_of(*label)?;
                    open.push(Open { item: i, target, branch: *branch });
                    branch.first_size()
                }
                Operation::Leave => {
                    open.push(Open { item: i, target: usize::MAX, branch: Branch::Always });
                    Branch::Always.first_size()
                }
            };
            self.sizes.push(size);
        }
        Ok((encoder.take_buffer(), open))
    }

    /// Chooses the form of every branch and thereby all offsets.
    fn shrink(&mut self, mut open: Vec<Open>) {
        let mut at = 0;
        for &size in &self.sizes {
            self.offsets.push(at);
            at += u32::from(size);
        }
        for _ in 0..PASSES {
            if self.pass(&mut open) == 0 {
                break;
            }
        }
    }

    /// Looks at each open branch once, in order, drops those that are settled
    /// and moves what lies behind. Returns by how much the code got shorter.
    fn pass(&mut self, open: &mut Vec<Open>) -> u32 {
        let Self { sizes, offsets, .. } = self;
        let mut gained = 0;
        let mut moved = 0;
        open.retain(|&Open { item, target, branch }| {
            for offset in &mut offsets[moved..=item] {
                *offset -= gained;
            }
            moved = item + 1;
            let here = i64::from(offsets[item]) + i64::from(SHORT);
            let (size, settled) = match offsets.get(target) {
                None => (branch.near_size(), true),
                Some(&to) => {
                    // What lies ahead moves later in this pass.
                    let to = if target > item { to - gained } else { to };
                    let distance = i64::from(to) - here;
                    if i8::try_from(distance).is_ok() {
                        (SHORT, true)
                    } else {
                        (branch.near_size(), !NEARBY.contains(&distance))
                    }
                }
            };
            gained += u32::from(sizes[item] - size);
            sizes[item] = size;
            !settled
        });
        for offset in &mut offsets[moved..] {
            *offset -= gained;
        }
        gained
    }

    /// Puts the branches between the `plain` instructions and fills the tables.
    fn finish(&self, plain: &[u8]) -> Result<Assembled, String> {
        let total = self.offsets.last().map_or(0, |last| *last as usize)
            + self.sizes.last().map_or(0, |last| usize::from(*last));
        let mut code = Vec::with_capacity(total);
        let mut fixups = Vec::new();
        let mut relocations = Vec::new();
        let mut plain = plain;
        for (i, item) in self.items().enumerate() {
            let size = self.sizes[i];
            match &item.operation {
                Operation::Plain(_) => {
                    let (bytes, rest) = plain.split_at(usize::from(size));
                    code.extend_from_slice(bytes);
                    plain = rest;
                }
                Operation::Branch(branch, label) => {
                    let target = self.offsets[self.index_of(*label)?];
                    let distance = i64::from(target) - (code.len() as i64 + i64::from(size));
                    branch.encode(size, distance, &mut code)?;
                }
                Operation::Leave => {
                    Branch::Always.encode(size, 0, &mut code)?;
                    relocations.push(code.len() as u32 - 4);
                }
            }
            if let Some(landing) = item.landing {
                fixups.push((self.offsets[i], self.offsets[self.index_of(landing)?]));
            }
        }
        let mut map = Vec::with_capacity(self.emitter.marks.len());
        for &(ip, section, index) in &self.emitter.marks {
            let index = self.first[section as usize] + index;
            map.push((ip, self.offsets.get(index).copied().unwrap_or(code.len() as u32)));
        }
        Ok(Assembled { code, fixups, relocations, map })
    }
}

impl Branch {
    /// Appends the form of `size` that leads `distance` bytes behind its end.
    fn encode(self, size: u8, distance: i64, code: &mut Vec<u8>) -> Result<(), String> {
        if size == SHORT {
            let distance = i8::try_from(distance).map_err(|_| "a short branch too far")?;
            let opcode = match self {
                Self::Always => 0xeb,
                Self::If(condition) => 0x70 | condition,
                Self::IfRcxZero => 0xe3,
            };
            code.extend([opcode, distance as u8]);
            return Ok(());
        }
        let distance = i32::try_from(distance).map_err(|_| "a branch too far")?;
        match self {
            Self::Always => code.push(0xe9),
            Self::If(condition) => code.extend([0x0f, 0x80 | condition]),
            Self::IfRcxZero => return Err("jrcxz out of reach".into()),
        }
        code.extend(distance.to_le_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::Instruction;

    /// `je` forward over `between` bytes, then a `jmp` back to the start.
    fn around(between: usize) -> Vec<u8> {
        let mut emit = Emitter::new(between);
        let start = emit.here();
        let end = emit.label();
        emit.branch(Code::Je_rel32_64, end);
        for _ in 0..between {
            emit.push(Instruction::with(Code::Nopd));
        }
        emit.bind(end);
        emit.jmp(start);
        assemble(&emit).expect("it assembles").code
    }

    #[test]
    fn branches_shrink_where_that_is_enough() {
        let code = around(123);
        assert_eq!(code[..2], [0x74, 123]);
        assert_eq!(code[125..], [0xeb, 0x81]);
        // The long form itself keeps the target too far away.
        let code = around(124);
        assert_eq!(code[..6], [0x0f, 0x84, 124, 0, 0, 0]);
        assert_eq!(code[130..], [0xe9, 0x79, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn jrcxz_must_reach() {
        let mut emit = Emitter::new(200);
        let end = emit.label();
        emit.branch(Code::Jrcxz_rel8_64, end);
        for _ in 0..200 {
            emit.push(Instruction::with(Code::Nopd));
        }
        emit.bind(end);
        emit.push(Instruction::with(Code::Nopd));
        assert!(assemble(&emit).is_err());
    }

    #[test]
    fn labels_must_be_bound_before_the_end() {
        let mut emit = Emitter::new(2);
        let end = emit.label();
        emit.jmp(end);
        assert!(assemble(&emit).is_err());
        emit.bind(end);
        assert!(assemble(&emit).is_err());
    }
}

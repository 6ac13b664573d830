//! From the emitter's items to bytes.
//!
//! Branches begin long and shrink in a few passes over the sizes; every
//! instruction is encoded once.

mod encode;

use std::ops::RangeInclusive;

use iced_x86::Code;

use crate::emit::{Emitter, Item, Label, Operation, SECTIONS};

use self::encode::Encoding;

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

/// A place between instructions: how many bytes that are not branches lie
/// before it, and how many branches.
#[derive(Debug, Clone, Copy)]
struct Place {
    plain: u32,
    branches: u32,
}

/// A branch whose size is to be found.
struct Jump {
    place: Place,
    /// Where it leads; none for the runner.
    label: Option<Label>,
    /// The same, when all places are known.
    target: Option<Place>,
    branch: Branch,
    size: u8,
    /// It cannot shrink any more.
    settled: bool,
}

/// The items in their final order.
struct Assembly<'a> {
    emitter: &'a Emitter,
    /// Index of each section's first item.
    first: [usize; SECTIONS],
    /// Where each item begins.
    places: Vec<Place>,
    jumps: Vec<Jump>,
    /// What may fault, and where it continues then.
    landings: Vec<(Place, Label)>,
    /// Sum of the sizes of the branches before each, and of all.
    before: Vec<u32>,
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
        places: Vec::with_capacity(count),
        jumps: Vec::with_capacity(count / 3),
        landings: Vec::with_capacity(count / 6),
        before: Vec::new(),
    };
    let plain = assembly.encode_plain()?;
    assembly.find_targets()?;
    assembly.shrink();
    assembly.finish(&plain)
}

impl<'a> Assembly<'a> {
    fn items(&self) -> impl Iterator<Item = &'a Item> + use<'a> {
        self.emitter.sections.iter().flatten()
    }

    fn place_of(&self, label: Label) -> Result<Place, String> {
        let (section, index) =
            self.emitter.place_of(label).ok_or_else(|| format!("{label:?} is not bound"))?;
        let place = self.places.get(self.first[section as usize] + index);
        place.copied().ok_or_else(|| "a label behind the last instruction".into())
    }

    fn offset(&self, place: Place) -> u32 {
        place.plain + self.before[place.branches as usize]
    }

    /// Encodes what is not a branch, one behind the other.
    fn encode_plain(&mut self) -> Result<Vec<u8>, String> {
        // Few instructions are longer on average.
        let mut encoding = Encoding::new(6 * self.places.capacity());
        for item in self.items() {
            let place =
                Place { plain: encoding.code.len() as u32, branches: self.jumps.len() as u32 };
            self.places.push(place);
            if let Some(landing) = item.landing {
                self.landings.push((place, landing));
            }
            let (branch, label) = match &item.operation {
                Operation::Plain(instruction) => {
                    encoding.push(instruction)?;
                    continue;
                }
                Operation::Branch(branch, label) => (*branch, Some(*label)),
                Operation::Leave => (Branch::Always, None),
            };
            let size = branch.first_size();
            self.jumps.push(Jump { place, label, target: None, branch, size, settled: false });
        }
        Ok(encoding.code)
    }

    /// Finds out where the branches lead.
    fn find_targets(&mut self) -> Result<(), String> {
        let mut jumps = std::mem::take(&mut self.jumps);
        for jump in &mut jumps {
            if let Some(label) = jump.label {
                jump.target = Some(self.place_of(label)?);
            }
        }
        self.jumps = jumps;
        Ok(())
    }

    /// Chooses the form of every branch and thereby all offsets.
    fn shrink(&mut self) {
        let mut at = 0;
        self.before.reserve(self.jumps.len() + 1);
        for jump in &self.jumps {
            self.before.push(at);
            at += u32::from(jump.size);
        }
        self.before.push(at);
        for _ in 0..PASSES {
            if self.pass() == 0 {
                break;
            }
        }
    }

    /// Looks at each open branch once, in order, and moves what lies behind.
    /// Returns by how much the code got shorter.
    fn pass(&mut self) -> u32 {
        let Self { jumps, before, .. } = self;
        let mut gained = 0;
        for (i, jump) in jumps.iter_mut().enumerate() {
            before[i] -= gained;
            if jump.settled {
                continue;
            }
            let here = i64::from(jump.place.plain + before[i]) + i64::from(SHORT);
            let size = match jump.target {
                None => {
                    jump.settled = true;
                    jump.branch.near_size()
                }
                Some(target) => {
                    let to = target.plain + before[target.branches as usize];
                    // What lies ahead moves later in this pass.
                    let to = if target.branches as usize > i { to - gained } else { to };
                    let distance = i64::from(to) - here;
                    let short = i8::try_from(distance).is_ok();
                    jump.settled = short || !NEARBY.contains(&distance);
                    if short { SHORT } else { jump.branch.near_size() }
                }
            };
            gained += u32::from(jump.size - size);
            jump.size = size;
        }
        before[jumps.len()] -= gained;
        gained
    }

    /// Puts the branches between the `plain` instructions and fills the tables.
    fn finish(&self, plain: &[u8]) -> Result<Assembled, String> {
        let mut code = Vec::with_capacity(plain.len() + self.before[self.jumps.len()] as usize);
        let mut relocations = Vec::new();
        let mut done = 0;
        for jump in &self.jumps {
            let at = jump.place.plain as usize;
            code.extend_from_slice(&plain[done..at]);
            done = at;
            match jump.target {
                Some(target) => {
                    let end = code.len() as i64 + i64::from(jump.size);
                    let distance = i64::from(self.offset(target)) - end;
                    jump.branch.encode(jump.size, distance, &mut code)?;
                }
                None => {
                    jump.branch.encode(jump.size, 0, &mut code)?;
                    relocations.push(code.len() as u32 - 4);
                }
            }
        }
        code.extend_from_slice(&plain[done..]);
        let mut fixups = Vec::with_capacity(self.landings.len());
        for &(place, landing) in &self.landings {
            fixups.push((self.offset(place), self.offset(self.place_of(landing)?)));
        }
        let mut map = Vec::with_capacity(self.emitter.marks.len());
        for &(ip, section, index) in &self.emitter.marks {
            let place = self.places.get(self.first[section as usize] + index);
            map.push((ip, place.map_or(code.len() as u32, |place| self.offset(*place))));
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

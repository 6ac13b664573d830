//! All ways of a packet through a program until it asks for the next one.

use iced_x86::{Decoder, DecoderOptions};

use super::expression::{Condition, Expression};
use super::flags::ARITHMETIC;
use super::refusal::Effect;
use super::state::{FLAGS, Memory, NAMES, Piece, R11, RAX, RCX, RDI, Snapshot, State};
use super::step::{Next, step};

/// Most instructions of one way.
const LONGEST_WAY: usize = 600;
/// Most ways.
const MOST_WAYS: usize = 256;
/// How often one way may come to an instruction that depends on the packet.
const MOST_TURNS: usize = 16;
/// Longest instruction.
const INSTRUCTION_BYTES: usize = 15;

/// Which packets need not reach the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tree {
    /// The program has to see the packet.
    Keep,
    /// It would do nothing but ask for the next one.
    Drop,
    Branch {
        condition: Condition,
        then: Box<Tree>,
        otherwise: Box<Tree>,
    },
}

impl Tree {
    fn branch(condition: Condition, then: Self, otherwise: Self) -> Self {
        if then == Self::Keep && otherwise == Self::Keep {
            return Self::Keep;
        }
        Self::Branch { condition, then: Box::new(then), otherwise: Box::new(otherwise) }
    }

    fn drops(&self) -> bool {
        match self {
            Self::Keep => false,
            Self::Drop => true,
            Self::Branch { then, otherwise, .. } => then.drops() || otherwise.drops(),
        }
    }

    /// Whether `packet`, of which so much would be received, is dropped.
    pub(super) fn is_dropped(&self, packet: &[u8]) -> bool {
        match self {
            Self::Keep => false,
            Self::Drop => true,
            Self::Branch { condition, then, otherwise } => match condition.evaluate(packet) {
                Some(true) => then.is_dropped(packet),
                Some(false) => otherwise.is_dropped(packet),
                None => false,
            },
        }
    }
}

/// A region between two calls, and what it depends on besides the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    pub(super) tree: Tree,
    /// The thread for which it was found.
    pub(super) snapshot: Snapshot,
    /// Registers that must be as in the snapshot, by number; bit 16 stands
    /// for the arithmetic flags.
    pub(super) registers: u32,
    /// What must be in memory, sorted by address and disjoint.
    pub(super) memory: Vec<Piece>,
}

impl Region {
    /// Whether the program would do nothing with `packet`, of which so much
    /// would be received, but ask for the next one.
    #[must_use]
    pub fn is_dropped(&self, packet: &[u8]) -> bool {
        self.tree.is_dropped(packet)
    }

    /// Whether `bytes` are among those that must stay in memory.
    #[must_use]
    pub fn compares(&self, bytes: &[u8]) -> bool {
        self.memory.iter().any(|piece| piece.bytes.windows(bytes.len()).any(|part| part == bytes))
    }
}

/// No packet may be dropped, because of these effects.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no packet is without effect: the program {}", list(.0))]
pub struct Refused(pub Vec<Effect>);

fn list(effects: &[Effect]) -> String {
    let words: Vec<_> = effects.iter().map(ToString::to_string).collect();
    words.join("; ")
}

/// How one way ends.
enum End {
    /// At the same call; these registers and flags are not as before.
    Back { different: u32, unchanged: Vec<Piece> },
    /// With an effect, or unknown.
    Effect(Effect),
}

struct Way {
    end: End,
    used: u32,
    set: u32,
    read: Vec<Piece>,
    code: Vec<Piece>,
}

/// The tree with the numbers of ways as leaves.
enum Numbered {
    Leaf(usize),
    Branch(Condition, Box<Numbered>, Box<Numbered>),
}

struct Search<'a, M> {
    snapshot: &'a Snapshot,
    memory: &'a M,
    ways: Vec<Way>,
}

/// Follows the thread of `snapshot` from the call to the next one.
///
/// # Errors
/// If no packet is without effect; says which effects there are.
pub fn explore(snapshot: &Snapshot, memory: &impl Memory) -> Result<Region, Refused> {
    if !is_simple(snapshot) {
        return Err(Refused(vec![Effect::OtherRequest]));
    }
    let mut search = Search { snapshot, memory, ways: Vec::new() };
    let numbered = search.follow(State::after(snapshot), None);
    let ways = search.ways;
    // What differs must be set before anybody uses it, whatever packet is next.
    let is_dead = |register: u32| {
        // After a call, r11 is what the flags were before it.
        let also = if register == 1 << FLAGS { 1 << R11 } else { 0 };
        let all_set = register | also;
        ways.iter().all(|way| {
            way.used & register == 0
                && (way.set & all_set == all_set || matches!(way.end, End::Back { .. }))
        })
    };
    let live: Vec<u32> = (0..=FLAGS as u32).map(|n| 1 << n).filter(|r| !is_dead(*r)).collect();
    let live: u32 = live.iter().sum();
    let mut effects = Vec::new();
    let mut registers = 0;
    let mut memory = Vec::new();
    let dropped: Vec<bool> = ways
        .iter()
        .map(|way| match &way.end {
            End::Back { different, unchanged } if different & live == 0 => {
                // Dead ones may be anything; the others are as they were
                // because they were what they are in the snapshot.
                registers |= (way.used | way.set) & live;
                memory.extend([&way.read, &way.code, unchanged].into_iter().flatten().cloned());
                true
            }
            End::Back { different, .. } => {
                effects.push(changed(different & live));
                false
            }
            End::Effect(effect) => {
                effects.push(*effect);
                false
            }
        })
        .collect();
    let tree = numbered.resolve(&dropped);
    // What it reads there depends on which packets came before.
    let old_bytes = effects.contains(&Effect::OldBytes);
    if old_bytes {
        effects.retain(|effect| *effect == Effect::OldBytes);
    }
    if old_bytes || !tree.drops() {
        effects.sort_unstable();
        effects.dedup();
        return Err(Refused(effects));
    }
    let memory = joined(memory).map_err(|effect| Refused(vec![effect]))?;
    Ok(Region { tree, snapshot: *snapshot, registers, memory })
}

/// Whether the call does nothing but write a packet into the buffer.
fn is_simple(snapshot: &Snapshot) -> bool {
    let [_, _, length, flags, address, address_length] = snapshot.arguments();
    let plain = match snapshot.call() as i64 {
        libc::SYS_read => true,
        libc::SYS_recvfrom => flags | address | address_length == 0,
        _ => false,
    };
    plain && (1..=i32::MAX as u64).contains(&length)
}

fn changed(different: u32) -> Effect {
    match NAMES.get(different.trailing_zeros() as usize) {
        Some(name) => Effect::Register(name),
        None => Effect::Flags,
    }
}

impl Numbered {
    fn resolve(self, dropped: &[bool]) -> Tree {
        match self {
            Self::Leaf(way) if dropped[way] => Tree::Drop,
            Self::Leaf(_) => Tree::Keep,
            Self::Branch(condition, then, otherwise) => {
                Tree::branch(condition, then.resolve(dropped), otherwise.resolve(dropped))
            }
        }
    }
}

impl<M: Memory> Search<'_, M> {
    /// Follows `state`; `decided` is the answer to the question that its next
    /// instruction asks.
    fn follow(&mut self, mut state: State, mut decided: Option<bool>) -> Numbered {
        let end = loop {
            if state.code.len() >= LONGEST_WAY {
                break End::Effect(Effect::Long);
            }
            match self.advance(&mut state, decided.take()) {
                Ok(Next::Here) => {}
                Ok(Next::SystemCall) => break self.call(&state),
                Ok(Next::Fork(condition)) => {
                    // Each fork adds one way at least to those that are open.
                    if self.ways.len() >= MOST_WAYS {
                        break End::Effect(Effect::ManyWays);
                    }
                    let turns = state.forks.iter().filter(|fork| **fork == state.ip).count();
                    if turns >= MOST_TURNS {
                        break End::Effect(Effect::Long);
                    }
                    state.code.pop();
                    state.forks.push(state.ip);
                    let mut other = state.clone();
                    state.facts.add(condition.clone());
                    let then = self.follow(state, Some(true));
                    other.facts.add(condition.clone().negate());
                    let otherwise = self.follow(other, Some(false));
                    return Numbered::Branch(condition, Box::new(then), Box::new(otherwise));
                }
                Err(effect) => break End::Effect(effect),
            }
        };
        let State { used, set, read, code, .. } = state;
        self.ways.push(Way { end, used, set, read, code });
        Numbered::Leaf(self.ways.len() - 1)
    }

    fn advance(&self, state: &mut State, decided: Option<bool>) -> Result<Next, Effect> {
        let mut bytes = [0; INSTRUCTION_BYTES];
        let length = self.memory.read_code(state.ip, &mut bytes);
        let bytes = &bytes[..length];
        let instruction = Decoder::with_ip(64, bytes, state.ip, DecoderOptions::NONE).decode();
        if instruction.is_invalid() {
            return Err(Effect::NotCode(state.ip));
        }
        state.code.push(Piece { address: state.ip, bytes: bytes[..instruction.len()].to_vec() });
        step(state, self.memory, &instruction, decided)
    }

    /// The end of a way at the system call at `state.ip`.
    fn call(&self, state: &State) -> End {
        const SYSCALL_BYTES: u64 = 2;

        let number = state.peek(RAX).constant();
        let same_place = state.ip.wrapping_add(SYSCALL_BYTES) == self.snapshot.resume;
        if number != Some(self.snapshot.call()) {
            let number = number.and_then(|number| u32::try_from(number).ok());
            return End::Effect(Effect::SystemCall(number));
        }
        let is = |register: usize| {
            state.peek(register) == &Expression::Constant(self.snapshot.registers[register])
        };
        if !same_place || !is(RDI) {
            return End::Effect(Effect::OtherReceive);
        }
        // rax is the number; rcx and r11 are what the call sets.
        let mut different = (0..NAMES.len())
            .filter(|register| ![RAX, RCX, R11].contains(register) && !is(*register))
            .fold(0, |all, register| all | 1 << register);
        let flags = self.snapshot.flags & ARITHMETIC;
        if state.set & 1 << FLAGS != 0 && state.constant_flags() != Some(flags) {
            different |= 1 << FLAGS;
        }
        match state.unchanged_memory(self.memory) {
            Ok(unchanged) => End::Back { different, unchanged },
            Err(effect) => End::Effect(effect),
        }
    }
}

/// Joins what touches or overlaps.
///
/// # Errors
/// If a byte was seen to change: the ways do not belong together.
fn joined(mut pieces: Vec<Piece>) -> Result<Vec<Piece>, Effect> {
    pieces.sort_unstable_by_key(|piece| piece.address);
    let mut all: Vec<Piece> = Vec::new();
    for piece in pieces {
        if let Some(last) = all.last_mut() {
            let end = last.address + last.bytes.len() as u64;
            if piece.address <= end {
                let known = &last.bytes[(piece.address - last.address) as usize..];
                if known.iter().zip(&piece.bytes).any(|(a, b)| a != b) {
                    return Err(Effect::ChangingMemory(piece.address));
                }
                let known = known.len();
                last.bytes.extend(piece.bytes.iter().skip(known));
                continue;
            }
        }
        all.push(piece);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(address: u64, bytes: &[u8]) -> Piece {
        Piece { address, bytes: bytes.to_vec() }
    }

    #[test]
    fn memory_that_changes_while_it_is_read_is_no_ground() {
        let pieces = vec![piece(12, b"cde"), piece(10, b"abc"), piece(20, b"x"), piece(11, b"b")];
        assert_eq!(joined(pieces), Ok(vec![piece(10, b"abcde"), piece(20, b"x")]));
        let pieces = vec![piece(12, b"cde"), piece(10, b"abC")];
        assert_eq!(joined(pieces), Err(Effect::ChangingMemory(12)));
    }
}

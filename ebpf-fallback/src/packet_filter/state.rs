//! What a thread has in registers and memory on one way through the code.

use std::ops::Range;

use iced_x86::Register;

use super::expression::{Expression, Operation, mask};
use super::facts::Facts;
use super::flags::Flags;
use super::refusal::Effect;

/// Bit of the flags in a set of registers.
pub(super) const FLAGS: usize = 16;
/// Numbers of registers, as instructions have them.
pub(super) const RAX: usize = 0;
pub(super) const RCX: usize = 1;
pub(super) const RDX: usize = 2;
pub(super) const RSP: usize = 4;
pub(super) const RSI: usize = 6;
pub(super) const RDI: usize = 7;
pub(super) const R8: usize = 8;
pub(super) const R9: usize = 9;
pub(super) const R10: usize = 10;
pub(super) const R11: usize = 11;

/// Arguments of a system call.
pub(super) const ARGUMENTS: [usize; 6] = [RDI, RSI, RDX, R10, R8, R9];

/// Names by number.
pub(super) const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// A thread at the entry of the system call with which it asks for a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// General registers by number; rax is the number of the call.
    pub registers: [u64; 16],
    /// Address behind the call instruction.
    pub resume: u64,
    /// The flags register.
    pub flags: u64,
}

impl Snapshot {
    /// Number of the call.
    #[must_use]
    pub fn call(&self) -> u64 {
        self.registers[RAX]
    }

    /// The registers of the arguments that it has.
    pub(super) fn argument_registers(&self) -> &'static [usize] {
        if self.call() == libc::SYS_read as u64 { &ARGUMENTS[..3] } else { &ARGUMENTS }
    }

    /// Its arguments.
    #[must_use]
    pub fn arguments(&self) -> [u64; 6] {
        ARGUMENTS.map(|register| self.registers[register])
    }

    /// Where the packet goes.
    #[must_use]
    pub fn buffer(&self) -> Range<u64> {
        let [_, buffer, length, ..] = self.arguments();
        buffer..buffer.saturating_add(length)
    }
}

/// Memory of a process while it waits for a packet.
pub trait Memory {
    /// Reads what nothing but the process itself changes.
    ///
    /// # Errors
    /// Why it is not that.
    fn read(&self, address: u64, to: &mut [u8]) -> Result<(), Effect>;

    /// Reads constant code into the front of `to`; says how much there is.
    fn read_code(&self, address: u64, to: &mut [u8]) -> usize;

    /// Whether the process may write to `range` and nobody else has it.
    fn is_writable(&self, range: Range<u64>) -> bool;
}

/// Something written.
#[derive(Debug, Clone)]
struct Store {
    address: u64,
    bytes: u8,
    value: Expression,
}

/// Bytes at an address that a way depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) bytes: Vec<u8>,
}

/// The state after so much of a way.
#[derive(Clone)]
pub(super) struct State {
    pub(super) ip: u64,
    registers: [Expression; 16],
    flags: Flags,
    stores: Vec<Store>,
    buffer: Range<u64>,
    /// Registers used before they were set; the flags are bit [`FLAGS`].
    pub(super) used: u32,
    /// Registers that were set.
    pub(super) set: u32,
    /// What was read of memory as it was.
    pub(super) read: Vec<Piece>,
    /// The code executed.
    pub(super) code: Vec<Piece>,
    /// Where it depended on the packet how to go on.
    pub(super) forks: Vec<u64>,
    /// What is known of the packet.
    pub(super) facts: Facts,
}

impl State {
    /// After the call of `snapshot` received a packet.
    pub(super) fn after(snapshot: &Snapshot) -> Self {
        let mut registers = snapshot.registers.map(Expression::Constant);
        let buffer = snapshot.buffer();
        registers[RAX] = Expression::Length { limit: buffer.end - buffer.start };
        registers[RCX] = Expression::Constant(snapshot.resume);
        registers[R11] = Expression::Constant(snapshot.flags);
        Self {
            ip: snapshot.resume,
            registers,
            flags: Flags::Unknown,
            stores: Vec::new(),
            buffer,
            used: 0,
            // The call sets these.
            set: 1 << RAX | 1 << RCX,
            read: Vec::new(),
            code: Vec::new(),
            forks: Vec::new(),
            facts: Facts::default(),
        }
    }

    fn place(register: Register) -> Option<(usize, u32, u32)> {
        let bits = register.size() as u32 * 8;
        let full = register.full_register();
        if !full.is_gpr64() {
            return None;
        }
        let high = matches!(register, Register::AH | Register::BH | Register::CH | Register::DH);
        Some((full.number(), if high { 8 } else { 0 }, bits))
    }

    /// The whole register, by number.
    pub(super) fn whole(&mut self, number: usize) -> Expression {
        if self.set & 1 << number == 0 {
            // After a call, r11 is what the flags were before it.
            self.used |= if number == R11 { 1 << FLAGS } else { 1 << number };
        }
        self.registers[number].clone()
    }

    /// The register by number, as it is, which is not a use of it.
    pub(super) fn peek(&self, number: usize) -> &Expression {
        &self.registers[number]
    }

    /// A register extended by zeros; `None` if it is no general one.
    pub(super) fn register(&mut self, register: Register) -> Option<Expression> {
        let (number, shift, bits) = Self::place(register)?;
        let shift = Expression::Constant(u64::from(shift));
        let whole = self.whole(number);
        Some(Expression::binary(Operation::ShiftRight, whole, shift).truncated(bits))
    }

    /// Sets a register to the lowest bits of `value`; `None` if it is no
    /// general one.
    pub(super) fn set_register(&mut self, register: Register, value: Expression) -> Option<()> {
        let (number, shift, bits) = Self::place(register)?;
        let value = value.truncated(bits);
        self.registers[number] = if bits >= 32 {
            value
        } else {
            let keep = Expression::Constant(!(mask(bits) << shift));
            let shift = Expression::Constant(u64::from(shift));
            let rest = Expression::binary(Operation::And, self.whole(number), keep);
            let value = Expression::binary(Operation::ShiftLeft, value, shift);
            Expression::binary(Operation::Or, rest, value)
        };
        self.set |= 1 << number;
        Some(())
    }

    pub(super) fn flags(&mut self) -> &Flags {
        if self.set & 1 << FLAGS == 0 {
            self.used |= 1 << FLAGS;
        }
        &self.flags
    }

    pub(super) fn set_flags(&mut self, flags: Flags) {
        self.flags = flags;
        self.set |= 1 << FLAGS;
    }

    /// Sets some of the flags; the others keep what they were.
    pub(super) fn set_some_flags(&mut self, flags: Flags) {
        self.flags = flags;
    }

    /// The arithmetic flags if they are constant, which is not a use of them.
    pub(super) fn constant_flags(&self) -> Option<u64> {
        self.flags.constant()
    }

    fn packet(&self, offset: Expression, bytes: u8) -> Result<Expression, Effect> {
        if self.facts.are_received(&offset, bytes) {
            Ok(Expression::packet(offset, bytes))
        } else {
            Err(Effect::OldBytes)
        }
    }

    /// Reads `bytes` of memory, extended by zeros.
    ///
    /// # Errors
    /// If what is there may change, or is not known.
    pub(super) fn load(
        &mut self,
        memory: &impl Memory,
        address: Expression,
        bytes: u8,
    ) -> Result<Expression, Effect> {
        let Some(fixed) = address.constant() else {
            let (varying, constant) = address.split_constant();
            if !self.buffer.contains(&constant) {
                return Err(Effect::ComputedAddress);
            }
            let start = Expression::Constant(constant - self.buffer.start);
            return self.packet(Expression::binary(Operation::Add, varying, start), bytes);
        };
        let end = fixed.checked_add(u64::from(bytes)).ok_or(Effect::NoMemory(fixed))?;
        if fixed < self.buffer.end && self.buffer.start < end {
            if fixed < self.buffer.start || self.buffer.end < end {
                return Err(Effect::OldBytes);
            }
            return self.packet(Expression::Constant(fixed - self.buffer.start), bytes);
        }
        let touches =
            |store: &&Store| store.address < end && fixed < store.address + u64::from(store.bytes);
        if let Some(last) = self.stores.iter().rev().find(touches)
            && (last.address, last.bytes) == (fixed, bytes)
        {
            return Ok(last.value.clone());
        }
        let mut content = vec![0; usize::from(bytes)];
        memory.read(fixed, &mut content)?;
        let original = content.clone();
        for store in self.stores.iter().filter(touches) {
            let value = store.value.constant().ok_or(Effect::Memory(store.address))?;
            for (at, byte) in (store.address..).zip(value.to_le_bytes()).take(store.bytes.into()) {
                if (fixed..end).contains(&at) {
                    content[(at - fixed) as usize] = byte;
                }
            }
        }
        self.read.push(Piece { address: fixed, bytes: original });
        let mut value = [0; 8];
        value[..content.len()].copy_from_slice(&content);
        Ok(Expression::Constant(u64::from_le_bytes(value)))
    }

    /// Writes the lowest `bytes` of `value`.
    ///
    /// # Errors
    /// If that is not simply private memory.
    pub(super) fn store(
        &mut self,
        memory: &impl Memory,
        address: &Expression,
        bytes: u8,
        value: Expression,
    ) -> Result<(), Effect> {
        let address = address.constant().ok_or(Effect::ComputedStore)?;
        let end = address.checked_add(u64::from(bytes)).ok_or(Effect::NoMemory(address))?;
        if address < self.buffer.end && self.buffer.start < end {
            return Err(Effect::Buffer);
        }
        if !memory.is_writable(address..end) {
            return Err(Effect::NoMemory(address));
        }
        let value = value.truncated(8 * u32::from(bytes));
        self.stores.push(Store { address, bytes, value });
        Ok(())
    }

    /// What the memory written held before, if it holds the same now.
    ///
    /// # Errors
    /// The first address where it does not.
    pub(super) fn unchanged_memory(&self, memory: &impl Memory) -> Result<Vec<Piece>, Effect> {
        let mut pieces = Vec::new();
        for store in &self.stores {
            let mut before = vec![0; usize::from(store.bytes)];
            memory.read(store.address, &mut before)?;
            for (index, byte) in before.iter().enumerate() {
                let at = store.address + index as u64;
                let last = self.stores.iter().rev().find(|store| {
                    (store.address..store.address + u64::from(store.bytes)).contains(&at)
                });
                let now = last.and_then(|last| {
                    Some(last.value.constant()?.to_le_bytes()[(at - last.address) as usize])
                });
                if now != Some(*byte) {
                    return Err(Effect::Memory(at));
                }
            }
            pieces.push(Piece { address: store.address, bytes: before });
        }
        Ok(pieces)
    }
}

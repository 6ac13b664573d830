//! The memory of another process, as `/proc` has it.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::refusal::Effect;
use super::state::Memory;

/// A process and what it has mapped.
#[derive(Debug)]
pub struct ProcessMemory {
    memory: File,
    mappings: Vec<Mapping>,
}

#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    range: Range<u64>,
    readable: bool,
    writable: bool,
    executable: bool,
    /// Only this process has what it writes there, and nobody writes to it.
    private: bool,
}

impl ProcessMemory {
    /// Looks at the process `pid`.
    ///
    /// # Errors
    /// If it is not there or may not be looked at.
    pub fn of(pid: u32) -> io::Result<Self> {
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        Ok(Self { memory, mappings: maps.lines().filter_map(Mapping::parse).collect() })
    }

    fn mapping(&self, range: Range<u64>) -> Option<&Mapping> {
        let around = |m: &&Mapping| m.range.start <= range.start && range.end <= m.range.end;
        self.mappings.iter().find(around)
    }
}

impl Mapping {
    /// Reads a line of `/proc/PID/maps`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let access = words.next()?.as_bytes();
        // The kernel writes the time into what it calls private here.
        let name = words.nth(3).unwrap_or_default();
        let is_clock = name.starts_with("[vvar") || name == "[vdso]" || name == "[vsyscall]";
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(Self {
            range: number(start)?..number(end)?,
            readable: access.first() == Some(&b'r'),
            writable: access.get(1) == Some(&b'w'),
            executable: access.get(2) == Some(&b'x'),
            private: access.get(3) == Some(&b'p') && !is_clock,
        })
    }
}

impl Memory for ProcessMemory {
    fn read(&self, address: u64, to: &mut [u8]) -> Result<(), Effect> {
        let end = address.checked_add(to.len() as u64).ok_or(Effect::NoMemory(address))?;
        let mapping = self.mapping(address..end).ok_or(Effect::NoMemory(address))?;
        if !mapping.private {
            return Err(Effect::SharedMemory(address));
        }
        if !mapping.readable {
            return Err(Effect::NoMemory(address));
        }
        self.memory.read_exact_at(to, address).map_err(|_| Effect::NoMemory(address))
    }

    fn read_code(&self, address: u64, to: &mut [u8]) -> usize {
        let Some(mapping) = self.mapping(address..address.saturating_add(1)) else {
            return 0;
        };
        if !mapping.executable || mapping.writable || !mapping.private {
            return 0;
        }
        let length = to.len().min((mapping.range.end - address) as usize);
        self.memory.read_at(&mut to[..length], address).unwrap_or(0)
    }

    fn is_writable(&self, range: Range<u64>) -> bool {
        self.mapping(range).is_some_and(|mapping| mapping.writable && mapping.private)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_memory_is_read() {
        let line = "7ffd1000-7ffd3000 r--p 00000000 00:00 0                  [vvar]";
        assert!(!Mapping::parse(line).unwrap().private);
        assert!(!Mapping::parse("1000-2000 rw-s 00000000 00:01 9 /dev/zero").unwrap().private);
        let code = Mapping::parse("1000-2000 r-xp 00000000 fe:00 9 /bin/a b").unwrap();
        assert!(code.private && code.executable && !code.writable);
        assert_eq!(Mapping::parse("nothing"), None);
    }

    #[test]
    fn this_process_can_be_read() {
        static CONSTANT: u64 = 0x1122_3344_5566_7788;
        let memory = ProcessMemory::of(std::process::id()).unwrap();
        let address = &raw const CONSTANT as u64;
        let mut bytes = [0; 8];
        memory.read(address, &mut bytes).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), CONSTANT);
        assert!(!memory.is_writable(address..address + 8));
        assert_eq!(memory.read_code(address, &mut bytes), 0);
        // SAFETY: only the address is used.
        let function = libc::getppid as *const () as u64;
        assert_eq!(memory.read_code(function, &mut bytes), 8);
        assert_eq!(memory.read(8, &mut bytes), Err(Effect::NoMemory(8)));
    }
}

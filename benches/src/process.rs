//! This process's own code as input for the translator.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result};
use ub_translator::CodeSource;

const PAGE: u64 = 4096;

/// What is executable in this process when this is made, read through
/// `/proc/self/mem`, so that no address can fault. Pages are read once: code
/// does not change.
#[derive(Debug)]
pub struct ProcessCode {
    memory: File,
    executable: Vec<Range<u64>>,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl ProcessCode {
    /// A view of the present mappings.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub fn new() -> Result<Self> {
        let maps = fs::read_to_string("/proc/self/maps").context("reading /proc/self/maps")?;
        let memory = File::open("/proc/self/mem").context("opening /proc/self/mem")?;
        let executable = maps.lines().filter_map(executable_range).collect();
        Ok(Self { memory, executable, pages: BTreeMap::new() })
    }
}

/// The addresses of a line of `/proc/PID/maps`, if one may execute and nobody
/// may write there.
pub(crate) fn executable_range(line: &str) -> Option<Range<u64>> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?.as_bytes();
    let hex = |text| u64::from_str_radix(text, 16).ok();
    (permissions.get(1..3)? == b"-x").then_some(hex(start)?..hex(end)?)
}

impl CodeSource for ProcessCode {
    fn read_code(&mut self, address: u64, buf: &mut [u8]) -> usize {
        if !self.executable.iter().any(|range| range.contains(&address)) {
            return 0;
        }
        let page = address & !(PAGE - 1);
        let memory = &self.memory;
        let bytes = self.pages.entry(page).or_insert_with(|| {
            let mut bytes = vec![0; PAGE as usize];
            let length = memory.read_at(&mut bytes, page).unwrap_or(0);
            bytes.truncate(length);
            bytes
        });
        let rest = bytes.get((address - page) as usize..).unwrap_or_default();
        let length = rest.len().min(buf.len());
        buf[..length].copy_from_slice(&rest[..length]);
        length
    }

    fn pointer_hint(&mut self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.memory.read_exact_at(&mut bytes, address).ok()?;
        Some(u64::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_readable_as_code() {
        let mut source = ProcessCode::new().unwrap();
        let mut buf = [0; 16];
        let function = libc::getpid as *const () as u64;
        assert_eq!(source.read_code(function, &mut buf), 16);
        // SAFETY: the machine code of a function of the C library.
        let code = unsafe { std::slice::from_raw_parts(function as *const u8, 16) };
        assert_eq!(buf, code);
        let data = Box::new(0x1234_5678_9abc_def0_u64);
        let address = &raw const *data as u64;
        assert_eq!(source.read_code(address, &mut buf), 0);
        assert_eq!(source.pointer_hint(address), Some(*data));
        assert_eq!(source.read_code(8, &mut buf), 0);
        assert_eq!(source.pointer_hint(8), None);
    }

    #[test]
    fn writable_code_is_left_out() {
        let range = |line| executable_range(line);
        assert_eq!(range("1000-3000 r-xp 0 00:00 0 /x"), Some(0x1000..0x3000));
        assert_eq!(range("1000-3000 rwxp 0 00:00 0 /x"), None);
        assert_eq!(range("1000-3000 r--p 0 00:00 0 /x"), None);
    }
}

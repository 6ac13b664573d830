//! Programs and libraries as input for the translator.

#![allow(dead_code, reason = "each test file uses its part of this module")]

use std::path::{Path, PathBuf};

use goblin::elf::Elf;
use goblin::elf::program_header::PT_LOAD;
use ub_translator::CodeSource;

/// Added to all addresses, so that constants take the bits they take in PIEs.
const BIAS: u64 = 0x7f12_3400_0000;

/// Which functions of a file to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Functions {
    /// Those that it exports.
    Exported,
    /// Also those that only the unwind tables tell of.
    Unwound,
}

/// The code of an ELF file.
pub struct Image {
    /// (address, bytes) of each executable segment.
    segments: Vec<(u64, Vec<u8>)>,
    /// Where functions start.
    pub functions: Vec<u64>,
}

impl CodeSource for Image {
    fn read_code(&mut self, address: u64, buf: &mut [u8]) -> usize {
        for (start, bytes) in &self.segments {
            let Some(offset) = address.checked_sub(*start) else { continue };
            if let Some(rest) = bytes.get(offset as usize..)
                && !rest.is_empty()
            {
                let length = rest.len().min(buf.len());
                buf[..length].copy_from_slice(&rest[..length]);
                return length;
            }
        }
        0
    }
}

impl Image {
    pub fn load(path: &Path, which: Functions) -> Self {
        let bytes = std::fs::read(path).expect("the file is readable");
        let elf = Elf::parse(&bytes).expect("the file is ELF");
        let segments = elf
            .program_headers
            .iter()
            .filter(|header| header.p_type == PT_LOAD && header.is_executable())
            .map(|header| (BIAS + header.p_vaddr, bytes[header.file_range()].to_vec()))
            .collect();
        let mut functions: Vec<u64> = elf
            .dynsyms
            .iter()
            .filter(|symbol| symbol.is_function() && symbol.st_value != 0)
            .map(|symbol| symbol.st_value)
            .collect();
        if which == Functions::Unwound {
            functions.extend(unwind_starts(&elf, &bytes));
        }
        functions.iter_mut().for_each(|address| *address = address.wrapping_add(BIAS));
        functions.sort_unstable();
        functions.dedup();
        Self { segments, functions }
    }
}

/// The start addresses in the binary search table of `.eh_frame_hdr`, which
/// stripped programs keep too.
fn unwind_starts(elf: &Elf, bytes: &[u8]) -> Vec<u64> {
    const UDATA4: u8 = 0x03;
    const DATAREL_SDATA4: u8 = 0x3b;
    let header = elf
        .section_headers
        .iter()
        .find(|section| elf.shdr_strtab.get_at(section.sh_name) == Some(".eh_frame_hdr"));
    let Some(header) = header else { return Vec::new() };
    let table = &bytes[header.file_range().expect("the table is in the file")];
    assert_eq!([table[0], table[2], table[3]], [1, UDATA4, DATAREL_SDATA4], "unknown encoding");
    let word = |at: usize| i32::from_le_bytes(table[at..at + 4].try_into().expect("four bytes"));
    let count = word(8) as usize;
    (0..count).map(|i| header.sh_addr.wrapping_add(word(12 + 8 * i) as u64)).collect()
}

/// The C library mapped into this process.
pub fn libc_path() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("proc is mounted");
    maps.lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.ends_with("/libc.so.6"))
        .map(PathBuf::from)
}

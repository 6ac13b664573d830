//! Functions of this machine's C library as input for the translator.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use goblin::elf::Elf;
use goblin::elf::program_header::{PF_X, PT_LOAD};
use goblin::elf::sym::STT_FUNC;
use ub_translator::CodeSource;

/// Where the library is taken to be loaded: any page in the user half does.
const BASE: u64 = 0x7f00_0000_0000;

/// Functions that programs call between system calls: wrappers of system
/// calls, allocation, number conversion, sorting, searching.
pub const FUNCTIONS: [&str; 12] = [
    "read",
    "pread",
    "epoll_wait",
    "clock_gettime",
    "malloc",
    "free",
    "strtol",
    "qsort",
    "bsearch",
    "memmem",
    "inet_ntop",
    "gmtime_r",
];

/// The executable part of a shared library.
#[derive(Debug, Clone)]
pub struct Library {
    data: Vec<u8>,
    /// Address of each executable segment and where its bytes are in the file.
    segments: Vec<(u64, Range<usize>)>,
}

/// One function of a [`Library`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// Where it begins, as seen by [`CodeSource`].
    pub address: u64,
}

impl Library {
    /// The C library that this program runs with, and those of [`FUNCTIONS`]
    /// that it has.
    ///
    /// # Errors
    /// If this program is not linked with a shared C library, or that is
    /// not an ELF file that can be read.
    pub fn libc() -> Result<(Self, Vec<Function>)> {
        let path = path_of_libc()?;
        Self::open(&path).with_context(|| path.display().to_string())
    }

    fn open(path: &Path) -> Result<(Self, Vec<Function>)> {
        let data = fs::read(path)?;
        let elf = Elf::parse(&data)?;
        let segments: Vec<_> = elf
            .program_headers
            .iter()
            .filter(|header| header.p_type == PT_LOAD && header.p_flags & PF_X != 0)
            .map(|header| (BASE + header.p_vaddr, header.file_range()))
            .collect();
        ensure!(
            !segments.is_empty() && segments.iter().all(|(_, range)| range.end <= data.len()),
            "no executable segment inside the file"
        );
        let address_of = |name: &str| {
            elf.dynsyms
                .iter()
                .find(|symbol| {
                    // Indirect functions (STT_GNU_IFUNC) only choose the real one.
                    symbol.st_type() == STT_FUNC
                        && symbol.st_value != 0
                        && elf.dynstrtab.get_at(symbol.st_name) == Some(name)
                })
                .map(|symbol| BASE + symbol.st_value)
        };
        let functions: Vec<Function> = FUNCTIONS
            .iter()
            .filter_map(|name| Some(Function { name, address: address_of(name)? }))
            .collect();
        Ok((Self { data, segments }, functions))
    }
}

impl CodeSource for Library {
    fn read_code(&mut self, address: u64, buf: &mut [u8]) -> usize {
        for (start, range) in &self.segments {
            let bytes = &self.data[range.clone()];
            let Some(offset) = address.checked_sub(*start).map(|offset| offset as usize) else {
                continue;
            };
            if offset < bytes.len() {
                let length = buf.len().min(bytes.len() - offset);
                buf[..length].copy_from_slice(&bytes[offset..offset + length]);
                return length;
            }
        }
        0
    }
}

fn path_of_libc() -> Result<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").context("reading /proc/self/maps")?;
    maps.lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .map(PathBuf::from)
        .find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libc.so"))
        })
        .context("this program is not linked with a shared libc.so")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_and_readable() {
        let (mut library, functions) = Library::libc().unwrap();
        assert_eq!(functions.len(), FUNCTIONS.len(), "{functions:?}");
        for function in functions {
            let mut code = [0; 16];
            assert_eq!(library.read_code(function.address, &mut code), 16, "{function:?}");
            assert_ne!(code, [0; 16]);
        }
        assert_eq!(library.read_code(0x1000, &mut [0; 16]), 0);
    }
}

//! Functions of the C library and of servers as input for the translator.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use goblin::elf::Elf;
use goblin::elf::program_header::{PF_X, PT_LOAD};
use goblin::elf::sym::STT_FUNC;
use ub_translator::CodeSource;

/// Where the file is taken to be loaded: any page in the user half does.
const BASE: u64 = 0x7f00_0000_0000;

/// Functions of the C library that programs call between system calls:
/// wrappers of system calls, allocation, number conversion, sorting, searching.
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

/// The executable part of a program or shared library, as it is in the file.
#[derive(Debug, Clone)]
pub struct Library {
    data: Rc<[u8]>,
    /// Address of each executable segment and where its bytes are in the file.
    segments: Vec<(u64, Range<usize>)>,
}

/// One function of a [`Library`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its names: at least one.
    pub names: Vec<String>,
    /// Where it begins, as seen by [`CodeSource`].
    pub address: u64,
}

impl Function {
    /// The first of its names.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.names[0]
    }

    /// Whether it is one of [`FUNCTIONS`].
    #[must_use]
    pub fn is_selected(&self) -> bool {
        self.names.iter().any(|name| FUNCTIONS.contains(&name.as_str()))
    }
}

impl Library {
    /// Reads the file at `path`; also returns the functions that it exports,
    /// each address once, in the order of addresses.
    ///
    /// # Errors
    /// If it is not an ELF file with executable segments.
    pub fn open(path: &Path) -> Result<(Self, Vec<Function>)> {
        Self::try_open(path).with_context(|| format!("reading {}", path.display()))
    }

    fn try_open(path: &Path) -> Result<(Self, Vec<Function>)> {
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
        // Indirect functions (STT_GNU_IFUNC) only choose the real one.
        let mut functions: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for symbol in elf.dynsyms.iter().filter(|s| s.st_type() == STT_FUNC && s.st_value != 0) {
            if let Some(name) = elf.dynstrtab.get_at(symbol.st_name) {
                functions.entry(BASE + symbol.st_value).or_default().push(name.to_owned());
            }
        }
        let functions =
            functions.into_iter().map(|(address, names)| Function { names, address }).collect();
        Ok((Self { data: data.into(), segments }, functions))
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

/// The file of the shared library that this program runs with whose name
/// starts with `name`.
///
/// # Errors
/// If it runs with none.
pub fn path_of(name: &str) -> Result<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").context("reading /proc/self/maps")?;
    maps.lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .map(PathBuf::from)
        .find(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)))
        .with_context(|| format!("this program is not linked with a shared {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_and_readable() {
        let (mut library, functions) = Library::open(&path_of("libc.so").unwrap()).unwrap();
        assert!(functions.len() > 1000, "{}", functions.len());
        assert!(functions.is_sorted_by(|a, b| a.address < b.address));
        let mut code = [0; 16];
        assert_eq!(library.read_code(functions[0].address, &mut code), 16);
        assert_ne!(code, [0; 16]);
        assert_eq!(library.read_code(0x1000, &mut [0; 16]), 0);
    }
}

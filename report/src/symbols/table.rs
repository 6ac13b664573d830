//! The functions of one ELF file.

use std::fmt::{self, Write};
use std::io;
use std::path::{Path, PathBuf};

use cpp_demangle::DemangleOptions;
use goblin::elf::program_header::PT_LOAD;
use goblin::elf::sym::{STT_FUNC, STT_GNU_IFUNC};
use goblin::elf::{Elf, Symtab};
use goblin::strtab::Strtab;

use super::content::{open_regular, read_whole};

/// Where distributions put what they strip from their files.
const DEBUG_FILES: &str = "/usr/lib/debug/.build-id";
/// Bytes given to a function whose size the table does not tell; beyond
/// that a name would mislead.
const UNKNOWN_SIZE: u64 = 4096;
/// Longest name, in bytes. Who wrote the file decides how long its names are,
/// and a short mangled one can stand for one that fills the memory.
const LONGEST_NAME: usize = 512;

/// Functions by address.
#[derive(Debug, Default)]
pub(super) struct SymbolTable {
    /// Loaded parts of the file.
    segments: Vec<Segment>,
    /// Sorted by address, one of each.
    functions: Vec<Function>,
}

#[derive(Debug)]
struct Segment {
    file_offset: u64,
    size: u64,
    address: u64,
}

#[derive(Debug)]
struct Function {
    address: u64,
    size: u64,
    name: String,
}

impl SymbolTable {
    /// Reads the tables in the content of a file, and those of the file with
    /// its debugging information where that is installed.
    pub(super) fn read(bytes: &[u8]) -> io::Result<Self> {
        let mut table = Self::default();
        let elf = parse(bytes)?;
        table.segments = segments(&elf);
        table.add(&elf.dynsyms, &elf.dynstrtab);
        table.add(&elf.syms, &elf.strtab);
        if let Some(path) = debug_file(&elf, bytes) {
            // It is optional, so its absence is no failure.
            let _ = table.add_file(&path);
        }
        table.sort();
        Ok(table)
    }

    fn add_file(&mut self, path: &Path) -> io::Result<()> {
        let bytes = read_whole(open_regular(path)?.0)?;
        let elf = parse(&bytes)?;
        self.add(&elf.syms, &elf.strtab);
        Ok(())
    }

    fn add(&mut self, symbols: &Symtab<'_>, names: &Strtab<'_>) {
        for symbol in symbols {
            let function = matches!(symbol.st_type(), STT_FUNC | STT_GNU_IFUNC);
            if !function || symbol.st_shndx == 0 {
                continue;
            }
            if let Some(name) = names.get_at(symbol.st_name).filter(|name| !name.is_empty()) {
                let (address, size) = (symbol.st_value, symbol.st_size);
                self.functions.push(Function { address, size, name: name.to_owned() });
            }
        }
    }

    /// Of several names of one address keeps the one that people use: `write`
    /// rather than `__write`.
    fn sort(&mut self) {
        fn order(function: &Function) -> (u64, usize, usize, &str) {
            let name = function.name.as_str();
            (function.address, name.len() - name.trim_start_matches('_').len(), name.len(), name)
        }
        self.functions.sort_by(|a, b| order(a).cmp(&order(b)));
        self.functions.dedup_by(|later, first| {
            let same = later.address == first.address;
            if same {
                first.size = first.size.max(later.size);
            }
            same
        });
    }

    /// The function around a file offset, readable, and the distance from
    /// its start.
    pub(super) fn find(&self, file_offset: u64) -> Option<(String, u64)> {
        let segment = self
            .segments
            .iter()
            .find(|s| file_offset.checked_sub(s.file_offset).is_some_and(|at| at < s.size))?;
        // The file says what it likes.
        let address = (file_offset - segment.file_offset).wrapping_add(segment.address);
        let after = self.functions.partition_point(|function| function.address <= address);
        let function = &self.functions[after.checked_sub(1)?];
        let offset = address - function.address;
        let size = if function.size == 0 { UNKNOWN_SIZE } else { function.size };
        (offset < size).then(|| (demangled(&function.name), offset))
    }
}

fn parse(bytes: &[u8]) -> io::Result<Elf<'_>> {
    Elf::parse(bytes).map_err(io::Error::other)
}

fn segments(elf: &Elf<'_>) -> Vec<Segment> {
    elf.program_headers
        .iter()
        .filter(|header| header.p_type == PT_LOAD)
        .map(|header| Segment {
            file_offset: header.p_offset,
            size: header.p_filesz,
            address: header.p_vaddr,
        })
        .collect()
}

fn debug_file(elf: &Elf<'_>, bytes: &[u8]) -> Option<PathBuf> {
    let notes = elf.iter_note_headers(bytes)?;
    let id = notes
        .filter_map(Result::ok)
        .find(|note| note.n_type == goblin::elf::note::NT_GNU_BUILD_ID && note.name == "GNU")?
        .desc;
    let (first, rest) = id.split_first()?;
    let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(Path::new(DEBUG_FILES).join(format!("{first:02x}")).join(format!("{rest}.debug")))
}

/// A name that is being written, cut where it becomes too long.
#[derive(Default)]
struct ShortName {
    text: String,
    is_cut: bool,
}

impl Write for ShortName {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if self.is_cut {
            return Err(fmt::Error);
        }
        let left = LONGEST_NAME - self.text.len();
        if part.len() <= left {
            self.text.push_str(part);
            return Ok(());
        }
        self.text.push_str(&part[..part.floor_char_boundary(left)]);
        self.text.push('…');
        self.is_cut = true;
        Err(fmt::Error)
    }
}

impl ShortName {
    /// What `write` writes; `None` if it fails before the name is too long.
    fn of(write: impl FnOnce(&mut Self) -> fmt::Result) -> Option<String> {
        let mut name = Self::default();
        (write(&mut name).is_ok() || name.is_cut).then_some(name.text)
    }
}

fn demangled(name: &str) -> String {
    if let Ok(rust) = rustc_demangle::try_demangle(name)
        // Without the hash.
        && let Some(short) = ShortName::of(|out| write!(out, "{rust:#}"))
    {
        return short;
    }
    if name.starts_with("_Z")
        && let Ok(symbol) = cpp_demangle::Symbol::new(name)
        && let Some(short) =
            ShortName::of(|out| symbol.structured_demangle(out, &DemangleOptions::default()))
    {
        return short;
    }
    ShortName::of(|out| out.write_str(name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(functions: &[(u64, u64, &str)]) -> SymbolTable {
        let functions = functions
            .iter()
            .map(|(address, size, name)| Function {
                address: *address,
                size: *size,
                name: (*name).to_owned(),
            })
            .collect();
        let segments = vec![Segment { file_offset: 0x100, size: 0x1000, address: 0x2100 }];
        let mut table = SymbolTable { segments, functions };
        table.sort();
        table
    }

    #[test]
    fn a_function_ends_where_its_size_says() {
        let table = table(&[(0x2200, 0x10, "a"), (0x2300, 0, "b")]);
        assert_eq!(table.find(0x200), Some(("a".into(), 0)));
        assert_eq!(table.find(0x20f), Some(("a".into(), 0xf)));
        assert_eq!(table.find(0x210), None);
        assert_eq!(table.find(0x1fe), None);
        assert_eq!(table.find(0x400), Some(("b".into(), 0x100)));
        assert_eq!(table.find(0x2000), None, "outside every segment");
    }

    #[test]
    fn of_several_names_the_common_one_is_kept() {
        let table = table(&[(0x2200, 0, "__write"), (0x2200, 9, "write"), (0x2200, 9, "__libc_w")]);
        assert_eq!(table.find(0x205), Some(("write".into(), 5)));
        assert_eq!(table.find(0x209), None);
    }

    #[test]
    fn mangled_names_are_made_readable() {
        assert_eq!(demangled("_ZN4core3fmt5write17h0123456789abcdefE"), "core::fmt::write");
        assert_eq!(demangled("_ZN3foo3barEv"), "foo::bar()");
        assert_eq!(demangled("_Z"), "_Z");
        assert_eq!(demangled("writeToClient"), "writeToClient");
    }

    #[test]
    fn names_have_an_end() {
        let long = "x".repeat(10_000);
        let cut = demangled(&long);
        assert!(cut.len() < 600 && cut.ends_with('…'), "{cut}");
        // Each parameter is a pair of the one before: 2^40 times `A<int, int>`.
        let mut bomb = "_Z1f1AIiiE".to_owned();
        for number in 0..40 {
            let before = format!("S{}_", base36(number));
            bomb += &format!("S_I{before}{before}E");
        }
        let cut = demangled(&bomb);
        assert!(cut.starts_with("f(A<int, int>, A<A<int, int>, A<int, int>"), "{cut}");
        assert!(cut.len() < 600 && cut.ends_with('…'), "{cut}");
    }

    fn base36(number: u32) -> String {
        let digit = |digit| char::from_digit(digit, 36).unwrap().to_ascii_uppercase();
        match number {
            0..36 => digit(number).to_string(),
            _ => format!("{}{}", digit(number / 36), digit(number % 36)),
        }
    }

    #[test]
    fn a_file_that_is_not_elf_is_an_error() {
        assert!(SymbolTable::read(b"#!/bin/sh").is_err());
    }
}

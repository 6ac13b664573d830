//! Translates at every function of the C library that this test runs with,
//! and has the verifier look at each fragment. No emitted shape that real
//! code leads to may be refused, and no translation may end in a bug.

use std::collections::BTreeMap;
use std::path::PathBuf;

use goblin::elf::Elf;
use goblin::elf::program_header::PT_LOAD;
use ub_translator::fragment::ExitKind;
use ub_translator::verifier::{Features, Policy, verify};
use ub_translator::{CodeSource, CpuFeatures, Options, TranslateError, translate};

struct Image {
    /// (address, bytes) of each executable segment.
    segments: Vec<(u64, Vec<u8>)>,
    functions: Vec<u64>,
}

impl CodeSource for Image {
    fn read_code(&mut self, address: u64, buf: &mut [u8]) -> usize {
        for (start, bytes) in &self.segments {
            let Some(offset) = address.checked_sub(*start) else { continue };
            if let Some(rest) = bytes.get(offset as usize..) {
                let length = rest.len().min(buf.len());
                buf[..length].copy_from_slice(&rest[..length]);
                if length > 0 {
                    return length;
                }
            }
        }
        0
    }
}

/// The C library mapped into this process.
fn libc_path() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.ends_with("/libc.so.6"))
        .map(PathBuf::from)
}

fn load(path: &PathBuf) -> Image {
    let bytes = std::fs::read(path).expect("the library is readable");
    let elf = Elf::parse(&bytes).expect("the library is ELF");
    // Addresses as if loaded somewhere a PIE would be: they need 64 bits.
    let bias = 0x7f12_3400_0000;
    let segments = elf
        .program_headers
        .iter()
        .filter(|header| header.p_type == PT_LOAD && header.is_executable())
        .map(|header| (bias + header.p_vaddr, bytes[header.file_range()].to_vec()))
        .collect();
    let mut functions: Vec<u64> = elf
        .dynsyms
        .iter()
        .filter(|symbol| symbol.is_function() && symbol.st_value != 0)
        .map(|symbol| bias + symbol.st_value)
        .collect();
    functions.sort_unstable();
    functions.dedup();
    Image { segments, functions }
}

#[test]
fn every_libc_function_translates_and_verifies() {
    let path = libc_path().expect("this test process uses a C library");
    let mut image = load(&path);
    assert!(image.functions.len() > 500, "{} has too few functions to mean much", path.display());
    let options = Options { max_instructions: 128, ..Options::new(CpuFeatures::all()) };
    let policy = Policy::new(Features::all());

    let mut useless = 0;
    let mut guest = 0_u64;
    let mut bytes = 0_usize;
    let mut exits: BTreeMap<String, usize> = BTreeMap::new();
    let mut bugs = Vec::new();
    for entry in image.functions.clone() {
        match translate(entry, &mut image, &options) {
            Ok(fragment) => {
                let parts = fragment.parts();
                guest += u64::from(parts.guest_instructions);
                bytes += parts.code.len();
                for exit in &parts.exits {
                    let name = match exit.kind {
                        ExitKind::Unsupported => format!("Unsupported({:?})", exit.reason),
                        kind => format!("{kind:?}"),
                    };
                    *exits.entry(name).or_default() += 1;
                }
                if let Err(error) = verify(fragment, &policy) {
                    bugs.push(format!("{entry:#x}: {error}"));
                }
            }
            Err(TranslateError::Useless { .. }) => useless += 1,
            Err(error) => bugs.push(error.to_string()),
        }
    }
    println!(
        "{} functions, {useless} useless, {guest} instructions, {:.1} bytes each, exits {exits:?}",
        image.functions.len(),
        bytes as f64 / guest as f64,
    );
    assert!(bugs.is_empty(), "{} bugs, first: {:#?}", bugs.len(), &bugs[..bugs.len().min(10)]);
    assert!(useless * 20 < image.functions.len(), "too much is unsupported: {useless}");
}

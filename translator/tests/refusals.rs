//! What `judge` calls translated must not be refused where a region is
//! lowered: translates at every function of the measured programs and looks
//! for exits at instructions that are on the allow-list.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use goblin::elf::Elf;
use goblin::elf::program_header::PT_LOAD;
use ub_translator::coverage::{Outcome, judge};
use ub_translator::fragment::ExitKind;
use ub_translator::{CodeSource, CpuFeatures, Options, TranslateError, translate};

/// Added to all addresses, so that constants take the bits they take in PIEs.
const BIAS: u64 = 0x7f12_3400_0000;

struct Image {
    /// (address, bytes) of each executable segment.
    segments: Vec<(u64, Vec<u8>)>,
    functions: Vec<u64>,
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

fn load(path: &Path) -> Image {
    let bytes = std::fs::read(path).expect("the program is readable");
    let elf = Elf::parse(&bytes).expect("the program is ELF");
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
        .chain(unwind_starts(&elf, &bytes))
        .map(|address| BIAS.wrapping_add(address))
        .collect();
    functions.sort_unstable();
    functions.dedup();
    Image { segments, functions }
}

/// The C library of this process, and those of the measured programs that
/// `scripts/deps` has unpacked.
fn programs() -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("proc is mounted");
    let libc = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.ends_with("/libc.so.6"));
    let cache = std::env::var_os("UB_CACHE_DIR").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
        Some(cache?.join("userspace-bypass"))
    });
    let names = [
        "usr/bin/redis-server",
        "usr/sbin/nginx",
        "usr/bin/memcached",
        "usr/bin/sqlite3",
        "usr/lib/x86_64-linux-gnu/libsqlite3.so.0",
    ];
    let servers = cache.map(|cache| cache.join("servers"));
    let unpacked = names.iter().filter_map(|name| Some(servers.as_ref()?.join(name)));
    libc.map(PathBuf::from).into_iter().chain(unpacked).filter(|path| path.exists()).collect()
}

#[test]
fn lowering_refuses_nothing_that_is_allowed() {
    let programs = programs();
    assert!(!programs.is_empty(), "not even a C library");
    let options = Options { max_instructions: 512, ..Options::new(CpuFeatures::all()) };
    let mut refused: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut translated = 0_u64;
    for path in &programs {
        let mut image = load(path);
        for entry in image.functions.clone() {
            let fragment = match translate(entry, &mut image, &options) {
                Ok(fragment) => fragment,
                Err(TranslateError::Useless { .. }) => continue,
                Err(error) => panic!("{}: {error}", path.display()),
            };
            translated += u64::from(fragment.parts().guest_instructions);
            let stops = fragment.parts().exits.iter().filter(|e| e.kind == ExitKind::Unsupported);
            for exit in stops {
                let mut code = [0; 15];
                let length = image.read_code(exit.user_ip, &mut code);
                let judgement = judge(&code[..length], exit.user_ip, options.cpu);
                if judgement.outcome() == Outcome::Translated {
                    let form = (judgement.form(), format!("{:?}", exit.reason));
                    *refused.entry(form).or_default() += 1;
                }
            }
        }
    }
    println!("{} programs, {translated} instructions translated", programs.len());
    assert!(refused.is_empty(), "allowed, but refused where it was lowered: {refused:#?}");
}

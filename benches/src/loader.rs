//! Loads a program beside this one, without running any of it, so that single
//! functions of it can be called.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use goblin::elf::header::{EM_X86_64, ET_DYN};
use goblin::elf::program_header::{PF_W, PF_X, PT_LOAD};
use goblin::elf::reloc::{
    R_X86_64_64, R_X86_64_COPY, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT, R_X86_64_RELATIVE,
};
use goblin::elf::sym::STT_GNU_IFUNC;
use goblin::elf::{Elf, Reloc, Sym};
use memmap2::{Mmap, MmapMut};

const PAGE: usize = 4096;
/// `int3`: where symbols lead that nobody has.
const TRAP: u8 = 0xcc;

/// A position-independent executable or library in this process's memory,
/// with segments and relocations as the dynamic linker would make them.
///
/// Symbols that it lacks are taken from this process or lead to a page that
/// traps. Initialisers do not run and thread-local variables are not set up,
/// so only functions that need neither may be called.
#[derive(Debug)]
pub struct Image {
    memory: MmapMut,
    #[expect(dead_code, reason = "relocations point into it")]
    trap: Mmap,
    symbols: HashMap<String, u64>,
}

impl Image {
    /// Loads the file at `path`.
    ///
    /// # Errors
    /// If the file cannot be read, is not position-independent x86-64 code, or
    /// has relocations of a kind that is not known here.
    pub fn load(path: &Path) -> Result<Self> {
        let file = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Self::from_bytes(&file).with_context(|| format!("loading {}", path.display()))
    }

    fn from_bytes(file: &[u8]) -> Result<Self> {
        let elf = Elf::parse(file)?;
        ensure!(
            elf.header.e_machine == EM_X86_64 && elf.header.e_type == ET_DYN,
            "not a position-independent x86-64 program"
        );
        let loads = || elf.program_headers.iter().filter(|header| header.p_type == PT_LOAD);
        let end = loads().map(|header| header.vm_range().end).max().context("no segments")?;
        let mut memory = MmapMut::map_anon(end.next_multiple_of(PAGE))?;
        for header in loads() {
            let bytes = file.get(header.file_range()).context("a segment outside the file")?;
            let start = header.p_vaddr as usize;
            memory[start..start + bytes.len()].copy_from_slice(bytes);
        }
        let mut trap = MmapMut::map_anon(PAGE)?;
        trap.fill(TRAP);
        let trap = trap.make_exec()?;
        let base = memory.as_ptr() as u64;
        let mut relocations = Relocations { elf: &elf, base, trap: trap.as_ptr() as u64 };
        for reloc in elf.dynrelas.iter().chain(elf.pltrelocs.iter()) {
            relocations.apply(&reloc, &mut memory)?;
        }
        for header in loads() {
            protect(&mut memory, header.vm_range(), header.p_flags)?;
        }
        let symbols = elf
            .dynsyms
            .iter()
            .filter(is_defined)
            .filter_map(|symbol| {
                Some((elf.dynstrtab.get_at(symbol.st_name)?.to_owned(), base + symbol.st_value))
            })
            .collect();
        Ok(Self { memory, trap, symbols })
    }

    /// Address of the exported symbol `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn symbol(&self, name: &str) -> Result<u64> {
        self.symbols.get(name).copied().with_context(|| format!("it does not export {name}"))
    }

    /// Addresses from the first segment to the last.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let start = self.memory.as_ptr() as u64;
        start..start + self.memory.len() as u64
    }
}

/// Indirect functions would have to be asked for the real ones.
fn is_defined(symbol: &Sym) -> bool {
    !symbol.is_import() && symbol.st_value != 0 && symbol.st_type() != STT_GNU_IFUNC
}

struct Relocations<'a> {
    elf: &'a Elf<'a>,
    base: u64,
    trap: u64,
}

impl Relocations<'_> {
    fn apply(&mut self, reloc: &Reloc, memory: &mut [u8]) -> Result<()> {
        let addend = reloc.r_addend.unwrap_or(0) as u64;
        let at = reloc.r_offset as usize;
        let value = match reloc.r_type {
            R_X86_64_RELATIVE => self.base.wrapping_add(addend),
            R_X86_64_64 => self.address(reloc)?.wrapping_add(addend),
            R_X86_64_GLOB_DAT | R_X86_64_JUMP_SLOT => self.address(reloc)?,
            R_X86_64_COPY => return self.copy(reloc, memory),
            other => bail!("relocation of unknown type {other} at {at:#x}"),
        };
        let slot = memory.get_mut(at..at + 8).context("a relocation outside the segments")?;
        slot.copy_from_slice(&value.to_le_bytes());
        Ok(())
    }

    fn symbol(&self, reloc: &Reloc) -> Result<(Sym, &str)> {
        let symbol = self.elf.dynsyms.get(reloc.r_sym).context("a relocation without symbol")?;
        let name = self.elf.dynstrtab.get_at(symbol.st_name).context("a symbol without name")?;
        Ok((symbol, name))
    }

    /// The address that the symbol of `reloc` has.
    fn address(&self, reloc: &Reloc) -> Result<u64> {
        let (symbol, name) = self.symbol(reloc)?;
        if is_defined(&symbol) {
            return Ok(self.base + symbol.st_value);
        }
        Ok(in_this_process(name)?.unwrap_or(self.trap))
    }

    /// Copies a variable of this process, as far as it has one.
    fn copy(&self, reloc: &Reloc, memory: &mut [u8]) -> Result<()> {
        let (symbol, name) = self.symbol(reloc)?;
        let (at, size) = (reloc.r_offset as usize, symbol.st_size as usize);
        let to = memory.get_mut(at..at + size).context("a variable outside the segments")?;
        if let Some(from) = in_this_process(name)? {
            // SAFETY: the symbol is a variable of this process (`stdout`,
            // `environ`) of this size by its ABI; nothing changes it meanwhile.
            to.copy_from_slice(unsafe { std::slice::from_raw_parts(from as *const u8, size) });
        }
        Ok(())
    }
}

/// Address of `name` in this program and its libraries; of indirect functions
/// the variant that this CPU selects.
///
/// # Errors
/// If the name holds a null byte.
pub fn in_this_process(name: &str) -> Result<Option<u64>> {
    let name = CString::new(name)?;
    // SAFETY: a string; the default search order needs no handle.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    Ok((!address.is_null()).then_some(address as u64))
}

/// Gives a segment its protection.
fn protect(memory: &mut MmapMut, range: Range<usize>, flags: u32) -> Result<()> {
    let start = range.start / PAGE * PAGE;
    let end = range.end.next_multiple_of(PAGE).min(memory.len());
    let mut protection = libc::PROT_READ;
    if flags & PF_W != 0 {
        protection |= libc::PROT_WRITE;
    }
    if flags & PF_X != 0 {
        protection |= libc::PROT_EXEC;
    }
    ensure!(flags & (PF_W | PF_X) != (PF_W | PF_X), "a segment that is writable and executable");
    let part = memory[start..end].as_mut_ptr().cast();
    // SAFETY: whole pages of a mapping that the caller owns and writes to no
    // more.
    let failed = unsafe { libc::mprotect(part, end - start, protection) } != 0;
    ensure!(!failed, "mprotect: {}", std::io::Error::last_os_error());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(program: &str) -> Image {
        Image::load(&ub_bench::demo::find_program(program).unwrap()).unwrap()
    }

    #[test]
    fn functions_of_the_servers_are_inside_them_and_run() {
        let redis = load("redis-server");
        let digits = redis.symbol("digits10").unwrap();
        assert!(redis.range().contains(&digits));
        // SAFETY: `uint32_t digits10(uint64_t)` is pure.
        let digits: extern "C" fn(u64) -> u32 = unsafe { std::mem::transmute(digits as *const ()) };
        assert_eq!([digits(0), digits(99), digits(100), digits(u64::MAX)], [1, 2, 3, 20]);
        assert!(redis.symbol("ub_nobody_has_this").is_err());

        let nginx = load("nginx");
        let atoi = nginx.symbol("ngx_atoi").unwrap();
        // SAFETY: `ngx_int_t ngx_atoi(u_char *, size_t)` only reads the text.
        let atoi: extern "C" fn(*const u8, usize) -> isize =
            unsafe { std::mem::transmute(atoi as *const ()) };
        assert_eq!(atoi(b"1234".as_ptr(), 4), 1234);
        assert_eq!(atoi(b"12x4".as_ptr(), 4), -1);
    }

    #[test]
    fn relocations_lead_into_the_image_and_into_this_process() {
        let nginx = load("nginx");
        // `ngx_module_t *ngx_modules[]`: relative relocations into the data.
        let modules = nginx.symbol("ngx_modules").unwrap();
        // SAFETY: a table of pointers with at least one entry.
        let first = unsafe { *(modules as *const u64) };
        assert_eq!(first, nginx.symbol("ngx_core_module").unwrap());
        // Its memcpy is this process's, reached through the linkage table.
        let copy = nginx.symbol("ngx_cpystrn").unwrap();
        // SAFETY: `u_char *ngx_cpystrn(u_char *to, u_char *from, size_t n)`.
        let copy: extern "C" fn(*mut u8, *const u8, usize) -> *mut u8 =
            unsafe { std::mem::transmute(copy as *const ()) };
        let mut to = [0xff_u8; 8];
        copy(to.as_mut_ptr(), c"abc".as_ptr().cast(), 8);
        assert_eq!(&to[..4], b"abc\0");
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert!(Image::from_bytes(b"\x7fELF").is_err());
        assert!(Image::from_bytes(&[0; 100]).is_err());
    }

    #[test]
    fn symbols_of_this_process_are_found() {
        let getpid = in_this_process("getpid").unwrap().unwrap();
        // SAFETY: the address of getpid, which has no arguments.
        let function: extern "C" fn() -> i32 = unsafe { std::mem::transmute(getpid as *const ()) };
        assert_eq!(function() as u32, std::process::id());
        assert_eq!(in_this_process("ub_nobody_has_this").unwrap(), None);
    }
}

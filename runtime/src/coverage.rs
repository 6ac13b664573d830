//! How many of a program's instructions the translator knows.
//!
//! The method is a linear sweep: every executable section of the file (every
//! executable segment, if it has no section headers) is decoded from its first
//! byte to its last. The sweep starts afresh at each function that a symbol
//! table names. Data or padding among the code that throws the sweep
//! off shows as [`Coverage::resyncs`] and as undecodable bytes; compilers
//! leave neither in programs of today, so both should be near 0.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use goblin::elf::Elf;
use goblin::elf::header::EM_X86_64;
use goblin::elf::program_header::PT_LOAD;
use goblin::elf::section_header::{SHF_EXECINSTR, SHT_NOBITS};
use thiserror::Error;
use ub_translator::CpuFeatures;
use ub_translator::coverage::{Outcome, judge};

/// Most bytes of an x86 instruction.
const MAX_INSTRUCTION: usize = 15;

/// Why a file cannot be measured.
#[derive(Debug, Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, io::Error),
    /// Not ELF, or damaged.
    #[error("{0} is not an ELF file: {1}")]
    NotElf(PathBuf, goblin::error::Error),
    /// ELF, but without code that could be translated.
    #[error("{0} has no x86-64 code; name a program or a shared library")]
    NoCode(PathBuf),
}

/// The instructions of one file, counted by what a fragment does at them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Run by fragments.
    pub translated: u64,
    /// Skipped, as they have no effect; padding between functions is most.
    pub no_effect: u64,
    /// System calls: fragments leave there by design.
    pub system_calls: u64,
    /// Traps and privileged instructions.
    pub traps: u64,
    /// Forms that the translator does not know, with how often they occur.
    pub missing: BTreeMap<Missing, u64>,
    /// Functions that begin inside an instruction of the sweep.
    pub resyncs: u64,
}

/// A form that fragments leave at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Missing {
    /// As the processor manuals write it.
    pub form: String,
    /// Why, by the translator's name.
    pub reason: String,
}

impl Coverage {
    /// Instructions in missing forms.
    #[must_use]
    pub fn missing_total(&self) -> u64 {
        self.missing.values().sum()
    }

    /// All instructions decoded.
    #[must_use]
    pub fn decoded(&self) -> u64 {
        self.translated + self.no_effect + self.system_calls + self.traps + self.missing_total()
    }

    /// Share (0 to 1) of the translated among the instructions that could be:
    /// all but those without effect, system calls and traps.
    #[must_use]
    pub fn share(&self) -> f64 {
        let could = self.translated + self.missing_total();
        self.translated as f64 / could.max(1) as f64
    }

    /// The missing forms, the most frequent first.
    #[must_use]
    pub fn top(&self) -> Vec<(&Missing, u64)> {
        let mut top: Vec<_> = self.missing.iter().map(|(form, &count)| (form, count)).collect();
        top.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        top
    }

    /// Adds another file's counts.
    pub fn add(&mut self, other: &Self) {
        self.translated += other.translated;
        self.no_effect += other.no_effect;
        self.system_calls += other.system_calls;
        self.traps += other.traps;
        self.resyncs += other.resyncs;
        for (form, count) in &other.missing {
            *self.missing.entry(form.clone()).or_default() += count;
        }
    }

    /// Counts the instructions of `code`, which is at `address`. `starts` are
    /// the addresses, in order, where instructions are known to begin.
    fn sweep(&mut self, address: u64, code: &[u8], starts: &[u64], cpu: CpuFeatures) {
        let end = address + code.len() as u64;
        let first = starts.partition_point(|&start| start <= address);
        let mut starts = starts[first..].iter().copied().take_while(|&start| start < end);
        let mut next_start = starts.next();
        let mut at = 0;
        while at < code.len() {
            let window = &code[at..code.len().min(at + MAX_INSTRUCTION)];
            let ip = address + at as u64;
            let judgement = judge(window, ip, cpu);
            at += judgement.length();
            while next_start.is_some_and(|start| start <= ip) {
                next_start = starts.next();
            }
            if let Some(start) = next_start
                && start < address + at as u64
            {
                self.resyncs += 1;
                at = (start - address) as usize;
                continue;
            }
            match judgement.outcome() {
                Outcome::Translated => self.translated += 1,
                Outcome::NoEffect => self.no_effect += 1,
                Outcome::SystemCall => self.system_calls += 1,
                Outcome::Trap => self.traps += 1,
                Outcome::Missing(reason) => {
                    let missing = Missing { form: judgement.form(), reason: format!("{reason:?}") };
                    *self.missing.entry(missing).or_default() += 1;
                }
            }
        }
    }
}

/// Counts the instructions of the ELF file at `path` for a machine with the
/// extensions `cpu`.
///
/// # Errors
/// The file cannot be read, or holds no x86-64 code.
pub fn measure(path: &Path, cpu: CpuFeatures) -> Result<Coverage, Error> {
    let bytes = fs::read(path).map_err(|error| Error::Read(path.to_owned(), error))?;
    let elf = Elf::parse(&bytes).map_err(|error| Error::NotElf(path.to_owned(), error))?;
    let mut starts: Vec<u64> = elf
        .syms
        .iter()
        .chain(elf.dynsyms.iter())
        .filter(|symbol| symbol.is_function() && symbol.st_value != 0)
        .map(|symbol| symbol.st_value)
        .collect();
    starts.sort_unstable();
    let mut coverage = Coverage::default();
    if elf.header.e_machine == EM_X86_64 {
        for (address, code) in executable(&elf, &bytes) {
            coverage.sweep(address, code, &starts, cpu);
        }
    }
    if coverage.decoded() == 0 {
        return Err(Error::NoCode(path.to_owned()));
    }
    Ok(coverage)
}

/// (address, bytes) of what holds code.
fn executable<'a>(elf: &Elf, bytes: &'a [u8]) -> Vec<(u64, &'a [u8])> {
    let sections = elf.section_headers.iter().filter(|section| {
        section.sh_flags & u64::from(SHF_EXECINSTR) != 0 && section.sh_type != SHT_NOBITS
    });
    let mut parts: Vec<_> =
        sections.map(|section| (section.sh_addr, section.file_range())).collect();
    if parts.is_empty() {
        let segments = elf.program_headers.iter();
        parts = segments
            .filter(|header| header.p_type == PT_LOAD && header.is_executable())
            .map(|header| (header.p_vaddr, Some(header.file_range())))
            .collect();
    }
    parts
        .into_iter()
        .filter_map(|(address, range)| Some((address, bytes.get(range?)?)))
        .filter(|(address, code)| address.checked_add(code.len() as u64).is_some())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(code: &[u8], starts: &[u64]) -> Coverage {
        let mut coverage = Coverage::default();
        coverage.sweep(0x1000, code, starts, CpuFeatures::all());
        coverage
    }

    #[test]
    fn every_instruction_has_one_outcome() {
        // mov rax,rbx; nop; syscall; ud2; fld1; (bad)
        let code = [0x48, 0x89, 0xd8, 0x90, 0x0f, 0x05, 0x0f, 0x0b, 0xd9, 0xe8, 0x06];
        let coverage = counted(&code, &[]);
        assert_eq!(coverage.translated, 1);
        assert_eq!(coverage.no_effect, 1);
        assert_eq!(coverage.system_calls, 1);
        assert_eq!(coverage.traps, 1);
        assert_eq!(coverage.missing_total(), 2);
        assert_eq!(coverage.decoded(), 6);
        assert!((coverage.share() - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn functions_restart_the_sweep() {
        // The head of a mov swallows the function behind it.
        let code = [0x48, 0xb8, 0x48, 0x89, 0xd8, 0x48, 0x89, 0xd8];
        assert_eq!(counted(&code, &[0x1002]).translated, 2);
        assert_eq!(counted(&code, &[0x1002]).resyncs, 1);
        // At the start, and behind an instruction, nothing is to be done.
        assert_eq!(counted(&code[2..], &[0x1000, 0x1000, 0x1003]).resyncs, 0);
    }

    #[test]
    fn the_most_frequent_form_comes_first() {
        // fld1; fldpi; fldpi
        let coverage = counted(&[0xd9, 0xe8, 0xd9, 0xeb, 0xd9, 0xeb], &[]);
        let top: Vec<_> =
            coverage.top().into_iter().map(|(missing, n)| (missing.form.as_str(), n)).collect();
        assert_eq!(top, [("FLDPI", 2), ("FLD1", 1)]);
    }

    #[test]
    fn other_files_are_refused() {
        let nothing = measure(Path::new("/nonexistent"), CpuFeatures::all());
        assert!(matches!(nothing, Err(Error::Read(..))));
        // Absolute: tests beside this one change the folder of the process.
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let text = measure(&manifest, CpuFeatures::all());
        assert!(matches!(text, Err(Error::NotElf(..))));
    }
}

//! Where on the stack the return address of a function is: from the tables
//! that exceptions are unwound with, which stripped files have too.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianArcSlice, LittleEndian, ParsedEhFrameHdr,
    RegisterRule, UnwindContext, UnwindSection, X86_64,
};
use goblin::elf::Elf;
use goblin::elf::program_header::PT_LOAD;
use ub_report::symbols::Mapping;

/// Size of an address in the programs that are profiled.
const ADDRESS_BYTES: u8 = 8;

type Reader = EndianArcSlice<LittleEndian>;

/// Registers of a thread that a frame can be based on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Registers {
    pub(super) sp: u64,
    pub(super) bp: u64,
}

/// The unwind table of one file.
#[derive(Debug)]
struct Table {
    frames: EhFrame<Reader>,
    /// Its index, sorted by address.
    index: ParsedEhFrameHdr<Reader>,
    bases: BaseAddresses,
    /// File offset, size and address of what is loaded.
    segments: Vec<(u64, u64, u64)>,
}

/// Unwind tables by path and inode; `None` for a file that has none.
#[derive(Debug, Default)]
pub(super) struct Frames {
    files: HashMap<(PathBuf, u64), Option<Table>>,
}

impl Frames {
    /// The distance in words from the stack pointer to the return address of
    /// the function at `address`, which `mapping` of process `pid` contains.
    pub(super) fn return_address(
        &mut self,
        pid: u32,
        mapping: &Mapping,
        address: u64,
        registers: Registers,
    ) -> Option<u32> {
        let table = self
            .files
            .entry((mapping.path.clone(), mapping.inode))
            .or_insert_with(|| Table::read(&mapping.read(pid).ok()?).ok())
            .as_ref()?;
        let bytes = table.distance(address - mapping.range.start + mapping.offset, registers)?;
        (bytes % 8 == 0).then(|| u32::try_from(bytes / 8).ok()).flatten()
    }
}

impl Table {
    /// Finds the tables in the content of a file.
    fn read(bytes: &[u8]) -> io::Result<Self> {
        let elf = Elf::parse(bytes).map_err(io::Error::other)?;
        let section = |name| {
            let section = elf
                .section_headers
                .iter()
                .find(|section| elf.shdr_strtab.get_at(section.sh_name) == Some(name))?;
            let content = bytes.get(section.file_range()?)?;
            Some((section.sh_addr, Reader::new(content.into(), LittleEndian)))
        };
        let missing = || io::Error::other("no unwind table");
        let (frames_at, frames) = section(".eh_frame").ok_or_else(missing)?;
        let (index_at, index) = section(".eh_frame_hdr").ok_or_else(missing)?;
        let bases = BaseAddresses::default().set_eh_frame(frames_at).set_eh_frame_hdr(index_at);
        let index = EhFrameHdr::from(index);
        Ok(Self {
            frames: EhFrame::from(frames),
            index: index.parse(&bases, ADDRESS_BYTES).map_err(io::Error::other)?,
            bases,
            segments: elf
                .program_headers
                .iter()
                .filter(|header| header.p_type == PT_LOAD)
                .map(|header| (header.p_offset, header.p_filesz, header.p_vaddr))
                .collect(),
        })
    }

    /// Bytes from the stack pointer to the return address.
    fn distance(&self, file_offset: u64, registers: Registers) -> Option<u64> {
        let (offset, _, address) = self.segments.iter().find(|(offset, size, _)| {
            file_offset.checked_sub(*offset).is_some_and(|at| at < *size)
        })?;
        // The file says what it likes.
        let address = (file_offset - offset).wrapping_add(*address);
        let mut context = UnwindContext::new();
        let row = self
            .index
            .table()?
            .unwind_info_for_address(
                &self.frames,
                &self.bases,
                &mut context,
                address,
                EhFrame::cie_from_offset,
            )
            .ok()?;
        let CfaRule::RegisterAndOffset { register, offset } = *row.cfa() else {
            return None;
        };
        let base = match register {
            X86_64::RSP => registers.sp,
            X86_64::RBP => registers.bp,
            _ => return None,
        };
        let Some(RegisterRule::Offset(at)) = row.register(X86_64::RA) else {
            return None;
        };
        let address = base.checked_add_signed(offset)?.checked_add_signed(at)?;
        address.checked_sub(registers.sp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ub_report::symbols::Mappings;

    #[test]
    fn a_function_that_has_pushed_nothing_returns_to_the_top_of_the_stack() {
        let pid = std::process::id();
        let mappings = Mappings::of(pid).unwrap();
        // SAFETY: only the address is used.
        let address = libc::getppid as *const () as u64;
        let mapping = mappings.find(address).unwrap();
        let registers = Registers { sp: 0x1000, bp: 0 };
        let mut frames = Frames::default();
        assert_eq!(frames.return_address(pid, mapping, address, registers), Some(0));
        let nowhere = mapping.range.end - 1;
        assert_eq!(frames.return_address(pid, mapping, nowhere, registers), None);
    }

    #[test]
    fn a_file_that_is_no_program_has_no_table() {
        assert!(Table::read(b"#!/bin/sh").is_err());
    }
}

//! A fragment in executable memory.

use crate::Error;
use crate::enter::ub_ring3_exit;
use memmap2::{Mmap, MmapMut};
use ub_translator::fragment::{Fragment, Parts};

/// Room behind the code for an indirect jump to the exit stub, which may be
/// further away than a rel32 reaches: `jmp [rip+0]` and the address.
const EXIT_JUMP_BYTES: usize = 16;

const INT3: u8 = 0xcc;

/// A fragment's code, relocated and executable, with what a runner needs to
/// know about it. Written first, then made executable: never both.
#[derive(Debug)]
pub struct Loaded {
    code: Mmap,
    parts: Parts,
    breakpoint: Option<u32>,
}

impl Loaded {
    /// Loads `fragment`, verified or not; running one is another matter, see
    /// [`Runner::enter`](crate::Runner::enter).
    ///
    /// # Errors
    /// If the kernel refuses the mapping.
    ///
    /// # Panics
    /// If a relocation lies outside the code.
    pub fn new<State>(fragment: &Fragment<State>) -> Result<Self, Error> {
        Self::load(fragment, None)
    }

    /// As [`Self::new`], with a fault injected: the instruction at `fault`,
    /// the code offset of a fixup, does not execute but continues at its
    /// landing, as if it had faulted.
    ///
    /// # Errors
    /// As [`Self::new`].
    ///
    /// # Panics
    /// As [`Self::new`], or if `fault` lies outside the code.
    pub fn faulting_at<State>(fragment: &Fragment<State>, fault: u32) -> Result<Self, Error> {
        Self::load(fragment, Some(fault))
    }

    fn load<State>(fragment: &Fragment<State>, breakpoint: Option<u32>) -> Result<Self, Error> {
        let parts = fragment.parts().clone();
        let stub = parts.code.len().next_multiple_of(EXIT_JUMP_BYTES);
        let map = |what| move |source| Error::System { what, source };
        let mut bytes = MmapMut::map_anon(stub + EXIT_JUMP_BYTES).map_err(map("mmap of code"))?;
        bytes.fill(INT3);
        bytes[..parts.code.len()].copy_from_slice(&parts.code);
        bytes[stub..stub + 6].copy_from_slice(&[0xff, 0x25, 0, 0, 0, 0]);
        let exit = ub_ring3_exit as *const () as u64;
        bytes[stub + 6..stub + 14].copy_from_slice(&exit.to_le_bytes());
        for &at in &parts.relocations {
            let at = at as usize;
            assert!(at + 4 <= parts.code.len(), "relocation at {at:#x} outside the code");
            let rel = i32::try_from(stub - (at + 4)).expect("a fragment is smaller than 2 GiB");
            bytes[at..at + 4].copy_from_slice(&rel.to_le_bytes());
        }
        if let Some(at) = breakpoint {
            bytes[..parts.code.len()][at as usize] = INT3;
        }
        let code = bytes.make_exec().map_err(map("mprotect of code"))?;
        Ok(Self { code, parts, breakpoint })
    }

    /// What was loaded.
    #[must_use]
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Host address of the first instruction.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.code.as_ptr() as u64
    }

    /// Code offset of host address `ip`, if it is in the fragment.
    pub(crate) fn offset_of(&self, ip: u64) -> Option<u32> {
        let offset = ip.checked_sub(self.address())?;
        (offset < self.parts.code.len() as u64).then_some(offset as u32)
    }

    /// Where the program goes on after the `int3` behind which host address
    /// `ip` lies, if that is the injected fault.
    pub(crate) fn injected(&self, ip: u64) -> Option<u32> {
        let at = self.breakpoint?;
        (ip == self.address() + u64::from(at) + 1).then(|| self.landing(at)).flatten()
    }

    /// Where a fault at code offset `fault` continues.
    pub(crate) fn landing(&self, fault: u32) -> Option<u32> {
        let at = self.parts.fixups.binary_search_by_key(&fault, |f| f.fault).ok()?;
        Some(self.parts.fixups[at].landing)
    }
}

//! Guest code, data and stack at fixed addresses, with guard pages between.

use crate::Error;
use std::sync::Mutex;

/// Size of the data area in bytes.
pub const DATA_BYTES: usize = 64 << 10;
/// Size of the stack area in bytes.
pub const STACK_BYTES: usize = 64 << 10;
/// Size of the code area in bytes.
pub const CODE_BYTES: usize = 64 << 10;

/// Where the first guest lies; above what a non-PIE host program uses and
/// below where the kernel puts mappings.
const BASE: u64 = 0x10_0000_0000;
/// As [`BASE`], for guests that 32-bit addresses reach: above what a program
/// linked at a fixed address uses. Its slots end below 2 GiB.
const LOW_BASE: u64 = 0x1000_0000;
/// Distance between guests. Everything of it that is not an area is
/// reserved without access, so that guest code that strays faults.
const SLOT_BYTES: u64 = 16 << 20;
const SLOTS: usize = 64;
const CODE: u64 = 1 << 20;
const DATA: u64 = 4 << 20;
const STACK: u64 = 8 << 20;

/// High slots, then low ones.
static USED: Mutex<[[bool; SLOTS]; 2]> = Mutex::new([[false; SLOTS]; 2]);

/// What guest code may do with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    None,
    /// Read it.
    Read,
    /// Read and write it, as at first.
    ReadWrite,
}

/// The memory of one guest program. Unmapped on drop.
#[derive(Debug)]
pub struct GuestMemory {
    low: bool,
    slot: usize,
}

/// Contents of the data and stack areas.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot {
    data: Vec<u8>,
    stack: Vec<u8>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Snapshot({} + {} bytes)", self.data.len(), self.stack.len())
    }
}

impl Snapshot {
    /// Every aligned 64-bit word.
    pub fn words(&self) -> impl Iterator<Item = u64> {
        let all = self.data.chunks_exact(8).chain(self.stack.chunks_exact(8));
        all.map(|c| u64::from_le_bytes(c.try_into().expect("eight bytes")))
    }

    /// The first differing byte: (area, offset, mine, theirs).
    #[must_use]
    pub fn first_difference(&self, other: &Self) -> Option<(&'static str, usize, u8, u8)> {
        let find = |area, a: &[u8], b: &[u8]| {
            let at = a.iter().zip(b).position(|(x, y)| x != y)?;
            Some((area, at, a[at], b[at]))
        };
        find("data", &self.data, &other.data).or_else(|| find("stack", &self.stack, &other.stack))
    }
}

impl GuestMemory {
    /// Maps a guest with zeroed areas.
    ///
    /// # Errors
    /// If all slots are in use or the kernel refuses the mappings.
    pub fn new() -> Result<Self, Error> {
        Self::in_half(false)
    }

    /// Maps a guest below 2 GiB, where absolute and 32-bit addresses reach.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn new_low() -> Result<Self, Error> {
        Self::in_half(true)
    }

    fn in_half(low: bool) -> Result<Self, Error> {
        let slot = {
            let mut used = USED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let used = &mut used[usize::from(low)];
            let slot = used.iter().position(|u| !u).ok_or(Error::NoGuestSlot)?;
            used[slot] = true;
            slot
        };
        let this = Self { low, slot };
        let base = this.base();
        // SAFETY: NOREPLACE: no existing mapping is touched; the range is
        // private to this slot from here to drop.
        let at = unsafe {
            libc::mmap(
                base as *mut libc::c_void,
                SLOT_BYTES as usize,
                libc::PROT_NONE,
                libc::MAP_PRIVATE
                    | libc::MAP_ANONYMOUS
                    | libc::MAP_NORESERVE
                    | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if at as u64 != base {
            // The slot stays marked: its range belongs to somebody else.
            let error = Error::system("mmap of guest memory");
            std::mem::forget(this);
            return Err(error);
        }
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        this.protect(this.code(), CODE_BYTES, libc::PROT_READ | libc::PROT_EXEC)?;
        this.protect(this.data(), DATA_BYTES, rw)?;
        this.protect(this.stack(), STACK_BYTES, rw)?;
        Ok(this)
    }

    fn base(&self) -> u64 {
        let first = if self.low { LOW_BASE } else { BASE };
        first + SLOT_BYTES * self.slot as u64
    }

    /// Whether 32-bit addresses reach the guest.
    #[must_use]
    pub fn is_low(&self) -> bool {
        self.low
    }

    /// Address of the code area.
    #[must_use]
    pub fn code(&self) -> u64 {
        self.base() + CODE
    }

    /// Address of the data area.
    #[must_use]
    pub fn data(&self) -> u64 {
        self.base() + DATA
    }

    /// Lowest address of the stack area.
    #[must_use]
    pub fn stack(&self) -> u64 {
        self.base() + STACK
    }

    /// One past the highest address of the stack area.
    #[must_use]
    pub fn stack_end(&self) -> u64 {
        self.stack() + STACK_BYTES as u64
    }

    fn protect(&self, address: u64, len: usize, protection: i32) -> Result<(), Error> {
        // SAFETY: callers pass an area of this slot, which this object owns;
        // no Rust reference into it outlives a call.
        let rc = unsafe { libc::mprotect(address as *mut libc::c_void, len, protection) };
        if rc == 0 { Ok(()) } else { Err(Error::system("mprotect of guest memory")) }
    }

    fn fits(area: &'static str, offset: usize, len: usize, size: usize) -> Result<(), Error> {
        if offset.checked_add(len).is_some_and(|end| end <= size) {
            Ok(())
        } else {
            Err(Error::DoesNotFit { area, offset, len, size })
        }
    }

    /// Writes guest code at `offset` of the code area. The area is never
    /// writable and executable at once.
    ///
    /// # Errors
    /// If it does not fit or the protection cannot be changed.
    pub fn write_code(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        Self::fits("the code area", offset, bytes.len(), CODE_BYTES)?;
        self.protect(self.code(), CODE_BYTES, libc::PROT_READ | libc::PROT_WRITE)?;
        // SAFETY: in bounds (checked above), writable (just made so), and the
        // exclusive borrow keeps other users of this guest out.
        unsafe {
            let to = (self.code() as *mut u8).add(offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        self.protect(self.code(), CODE_BYTES, libc::PROT_READ | libc::PROT_EXEC)
    }

    /// Up to `len` bytes of guest code at user address `address`; fewer at
    /// the end of the area, none outside.
    #[must_use]
    pub fn read_code(&self, address: u64, len: usize) -> Vec<u8> {
        let Some(offset) = address.checked_sub(self.code()) else { return Vec::new() };
        let offset = usize::try_from(offset).unwrap_or(CODE_BYTES).min(CODE_BYTES);
        let len = len.min(CODE_BYTES - offset);
        self.copy_out(self.code() + offset as u64, len)
    }

    /// Writes into the data area.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn write_data(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        Self::fits("the data area", offset, bytes.len(), DATA_BYTES)?;
        self.copy_in(self.data() + offset as u64, bytes);
        Ok(())
    }

    /// Sets what guest code may do with the pages from `page` on, which is
    /// page-aligned and lies in the data or stack area.
    ///
    /// # Errors
    /// If the range is not in one area, or the kernel refuses.
    pub fn restrict(&mut self, page: u64, len: usize, access: Access) -> Result<(), Error> {
        let inside = |start: u64, size: usize| {
            page.checked_sub(start).is_some_and(|offset| offset as usize + len <= size)
        };
        if !inside(self.data(), DATA_BYTES) && !inside(self.stack(), STACK_BYTES) {
            let offset = page.wrapping_sub(self.data()) as usize;
            return Err(Error::DoesNotFit { area: "the data area", offset, len, size: DATA_BYTES });
        }
        let protection = match access {
            Access::None => libc::PROT_NONE,
            Access::Read => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        self.protect(page, len, protection)
    }

    /// The first byte of the data and stack areas that differs from
    /// `snapshot`: (area, offset, here, there).
    #[must_use]
    pub fn first_difference(&self, snapshot: &Snapshot) -> Option<(&'static str, usize, u8, u8)> {
        // SAFETY: readable areas of this slot; guest code runs only inside
        // calls on this thread, not while these slices live.
        let (data, stack) = unsafe {
            (
                std::slice::from_raw_parts(self.data() as *const u8, DATA_BYTES),
                std::slice::from_raw_parts(self.stack() as *const u8, STACK_BYTES),
            )
        };
        // The common case in one comparison.
        if data == snapshot.data.as_slice() && stack == snapshot.stack.as_slice() {
            return None;
        }
        self.snapshot().first_difference(snapshot)
    }

    /// Copies of the data and stack areas.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            data: self.copy_out(self.data(), DATA_BYTES),
            stack: self.copy_out(self.stack(), STACK_BYTES),
        }
    }

    /// Puts back what [`Self::snapshot`] saw.
    pub fn restore(&mut self, snapshot: &Snapshot) {
        self.copy_in(self.data(), &snapshot.data);
        self.copy_in(self.stack(), &snapshot.stack);
    }

    fn copy_out(&self, address: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        // SAFETY: private; callers pass a range inside a readable area of
        // this slot. Guest code runs only inside calls on this thread.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, out.as_mut_ptr(), len) };
        out
    }

    fn copy_in(&mut self, address: u64, bytes: &[u8]) {
        // SAFETY: private; callers pass a range inside the data or stack area
        // of this slot, borrowed exclusively.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len());
        }
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: this object owns the slot's whole range.
        unsafe { libc::munmap(self.base() as *mut libc::c_void, SLOT_BYTES as usize) };
        USED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[usize::from(self.low)]
            [self.slot] = false;
    }
}

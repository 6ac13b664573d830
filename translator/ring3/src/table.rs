//! Fragments by user address, in a form that the assembly reads.

use crate::loaded::Loaded;
use std::ffi::c_void;
use std::rc::Rc;
use ub_translator::fragment::ExitKind;

/// In [`Entry::exits`]: the ride ends here.
const STOP: u64 = 0;
/// In [`Entry::exits`]: the next address is the frame's `target`. Everything
/// above is the next address itself; nothing is mapped at these two.
pub const VIA_TARGET: u64 = 1;

/// Spreads addresses over the upper half of the product (2^64 divided by the
/// golden ratio).
pub const HASH_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// What the assembly knows of one fragment.
#[repr(C)]
#[derive(Debug)]
pub struct Entry {
    /// Host address of the first instruction.
    pub code: u64,
    /// By exit id: where the program goes on.
    pub exits: *const u64,
    /// Length of `exits`.
    pub exit_count: u64,
    /// The [`Loaded`], for the signal handler and the host.
    pub loaded: *const c_void,
}

/// One place of the hash table; address 0 marks an empty one.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    /// User address.
    pub address: u64,
    /// Its fragment.
    pub entry: *const Entry,
}

const _: () = assert!(size_of::<Slot>().is_power_of_two());

/// The hash table: open addressing, and never more than half full, so that
/// every search ends at an empty slot.
#[repr(C)]
#[derive(Debug)]
pub struct Lookup {
    /// Number of slots less one.
    pub mask: u64,
    /// The slots.
    pub slots: *const Slot,
}

/// The fragments of one program, for [`Runner::ride`](crate::Runner::ride).
#[derive(Debug)]
pub struct FragmentTable {
    lookup: Lookup,
    /// What `lookup`, `entries` and `exits` point into; never changed.
    slots: Box<[Slot]>,
    entries: Box<[Entry]>,
    #[expect(dead_code, reason = "owns what the entries point at")]
    exits: Vec<Box<[u64]>>,
    #[expect(dead_code, reason = "owns what the entries point at")]
    loaded: Vec<Rc<Loaded>>,
}

impl FragmentTable {
    /// A table of these fragments; of two for one address, the first counts.
    #[must_use]
    pub fn new(loaded: Vec<Rc<Loaded>>) -> Self {
        let exits: Vec<Box<[u64]>> = loaded.iter().map(|loaded| exits_of(loaded)).collect();
        let entries: Box<[Entry]> = loaded
            .iter()
            .zip(&exits)
            .map(|(loaded, exits)| Entry {
                code: loaded.address(),
                exits: exits.as_ptr(),
                exit_count: exits.len() as u64,
                loaded: Rc::as_ptr(loaded).cast(),
            })
            .collect();
        let size = (2 * loaded.len()).next_power_of_two().max(2);
        let mut slots = vec![Slot { address: 0, entry: std::ptr::null() }; size].into_boxed_slice();
        let mask = size as u64 - 1;
        for (loaded, entry) in loaded.iter().zip(&entries) {
            let address = loaded.parts().entry;
            let mut at = hash(address) & mask;
            while slots[at as usize].address != 0 && slots[at as usize].address != address {
                at = (at + 1) & mask;
            }
            let slot = &mut slots[at as usize];
            if slot.address == 0 {
                *slot = Slot { address, entry };
            }
        }
        let lookup = Lookup { mask, slots: slots.as_ptr() };
        Self { lookup, slots, entries, exits, loaded }
    }

    /// How many fragments there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn lookup(&self) -> &Lookup {
        &self.lookup
    }

    /// The fragment at user address `address`; null if there is none.
    pub(crate) fn find(&self, address: u64) -> *const Entry {
        let mut at = hash(address) & self.lookup.mask;
        loop {
            let slot = self.slots[at as usize];
            if slot.address == 0 || slot.address == address {
                return if slot.address == 0 { std::ptr::null() } else { slot.entry };
            }
            at = (at + 1) & self.lookup.mask;
        }
    }
}

fn hash(address: u64) -> u64 {
    address.wrapping_mul(HASH_FACTOR) >> 32
}

fn exits_of(loaded: &Loaded) -> Box<[u64]> {
    let next = |exit: &ub_translator::fragment::Exit| match exit.kind {
        ExitKind::Branch if exit.user_ip > VIA_TARGET => exit.user_ip,
        ExitKind::Indirect => VIA_TARGET,
        _ => STOP,
    };
    loaded.parts().exits.iter().map(next).collect()
}

//! Runs fragments and native guest code in ring 3, on the real CPU.
//!
//! A fragment holds nothing privileged, so the bytes that `ub.ko` executes in
//! ring 0 run here as well. This crate plays the runner of `docs/fragment.md`:
//! it builds the frame, enters, applies fixups to faults and reports the exit.
//! Beside it stands the reference: [`native::run_native`] executes the guest's
//! own bytes with a given CPU state and reports how they stopped.
//!
//! * [`memory::GuestMemory`]: code, data and stack at fixed user addresses.
//! * [`state::CpuState`]: general registers, flags and vector registers.
//! * [`native`]: the original code, by signals or (for benchmarks) directly.
//! * [`runner`]: one fragment, or a chain of them, without any signal unless
//!   a fault occurs.
//!
//! Everything is per thread: a runner stays on the thread that made it.

pub mod memory;
pub mod native;
pub mod runner;
pub mod state;

mod enter;
mod loaded;
mod signals;
mod table;
mod xsave;

pub use loaded::Loaded;
pub use memory::GuestMemory;
pub use native::{NativeStop, run_native, run_native_until, step_native};
pub use runner::{Chain, Entered, PollWords, Runner, UncaughtFault};
pub use signals::Fault;
pub use state::{CpuState, Vectors};
pub use table::FragmentTable;

/// Why the ring-3 machinery could not be set up. A fault of the code that is
/// run is never one of these.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a mapping, protection or signal set-up.
    #[error("{what} failed: {source}")]
    System {
        /// The call that failed.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
    /// This CPU or kernel does not offer XSAVE to programs.
    #[error("this CPU or kernel has no XSAVE; vector registers cannot be set or read")]
    NoXsave,
    /// All guest address slots are taken; drop a [`GuestMemory`] first.
    #[error("too many guest memories at once")]
    NoGuestSlot,
    /// More bytes than the area of the guest holds.
    #[error("{len} bytes at offset {offset:#x} do not fit into {area} of {size} bytes")]
    DoesNotFit {
        /// Which area.
        area: &'static str,
        /// Offset into it.
        offset: usize,
        /// How much was to be written.
        len: usize,
        /// How large it is.
        size: usize,
    },
}

impl Error {
    /// The last system call's error.
    pub(crate) fn system(what: &'static str) -> Self {
        Self::System { what, source: std::io::Error::last_os_error() }
    }
}

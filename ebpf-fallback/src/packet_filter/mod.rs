//! Packet filters: packets that a program would only throw away are dropped
//! before they wake it.
//!
//! | module | what |
//! |---|---|
//! | [`region`] | all ways from one receive call to the next, and which are without effect |
//! | `step`, `state` | what instructions do to registers and memory |
//! | `expression`, `flags` | values as functions of the packet |
//! | `program`, `bpf` | the filter as a BPF program |
//! | `candidate`, `socket`, `process` | what is asked of a running process |
//! | `kernel`, `layout` | the gate, and the watch over the thread (`bpf/filter.bpf.c`) |
//! | `watcher` | when a process gets a filter and loses it |
//! | `refusal`, `stopped` | why packets reach the program |

mod bpf;
mod candidate;
mod expression;
mod facts;
mod flags;
mod kernel;
mod layout;
mod process;
mod program;
mod refusal;
pub mod region;
mod socket;
mod state;
mod step;
mod stopped;
mod watcher;

pub use kernel::InstallError;
pub use layout::Protection;
pub use process::ProcessMemory;
pub use program::TooLarge;
pub use refusal::Effect;
pub use region::{Refused, Region, explore};
pub use socket::{Unsuitable, open_process};
pub use state::{Memory, Snapshot};
pub use stopped::Stopped;
pub use watcher::{Counts, LOOK, News, NoFilter, Watcher};

use crate::Unavailable;

/// Whether this user may make filters, without trying it.
///
/// # Errors
/// See [`Unavailable`].
pub fn permitted() -> Result<(), Unavailable> {
    crate::unavailable::kernel_types().map(drop)
}

/// Whether filters can be made here: loads the programs and lets them go.
///
/// # Errors
/// See [`Unavailable`].
pub fn check() -> Result<(), Unavailable> {
    kernel::Kernel::load(None).map(drop)
}

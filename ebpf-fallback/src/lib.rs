//! What there is on kernels without the module: the gap profiler, made of
//! BPF programs at the entry and exit of system calls, and what follows from
//! a profile.
//!
//! | module | what |
//! |---|---|
//! | [`profiler`] | watches threads and counts their gaps in the kernel |
//! | [`profile`] | what was counted, as report, folded stacks and JSON |
//! | [`predict`] | what riding would gain |
//! | [`costs`] | what a system call costs here |
//! | [`packets`] | counts the packets of a raw socket, for comparison |
//!
//! The BPF programs are C, compiled when this crate is built.

pub mod costs;
pub mod packets;
pub mod predict;
pub mod profile;
pub mod profiler;

pub use profile::Profile;
pub use profiler::{Profiler, Unavailable, WatchError};

//! What there is on kernels without the module: the gap profiler, made of
//! BPF programs at the entry and exit of system calls, and what follows from
//! a profile.
//!
//! | module | what |
//! |---|---|
//! | `profiler` | watches threads and counts their gaps in the kernel |
//! | [`profile`] | what was counted, as report, folded stacks and JSON |
//! | [`predict`] | what riding would gain |
//! | [`packet_filter`] | socket filters made of the gap after a receive call |
//! | [`costs`] | what a system call costs here |
//! | [`packets`] | counts the packets of a raw socket, for comparison |
//!
//! The BPF programs are C, compiled when this crate is built.

pub mod costs;
pub mod packet_filter;
pub mod packets;
pub mod predict;
pub mod profile;
mod profiler;
mod unavailable;

pub use profile::Profile;
pub use profiler::{Profiler, Unavailable, WatchError};

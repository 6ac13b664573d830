//! What this project tells people: one model of a report, and what renders
//! it.
//!
//! Everything that observes a program (a session with the kernel module, the
//! profiler without it) fills the same [`Report`], so that text, JSON and HTML
//! are written once. Nothing here talks to the kernel module or the
//! translator.
//!
//! | module | what |
//! |---|---|
//! | [`model`] | the report, as data and as versioned JSON |
//! | [`packet_filter`] | its part about packet filters |
//! | `file` | writing and reading one |
//! | [`text`] | for terminals, in the shape of `perf stat` |
//! | [`html`] | one self-contained page with plots |
//! | [`plots`] | the plots of such pages, as SVG |
//! | [`symbols`] | names for addresses of processes |
//! | [`calls`] | names of system calls |
//! | [`host`] | the facts about the machine that label every figure |
//! | [`units`] | numbers as people read them |

pub mod calls;
mod file;
pub mod host;
pub mod html;
pub mod model;
pub mod packet_filter;
pub mod plots;
pub mod symbols;
pub mod text;
pub mod units;

pub use file::{ReadError, read, write};
pub use model::{GapRow, GapState, Process, Report, SCHEMA, Sample, Source, Timing, Totals};

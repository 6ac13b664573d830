//! Translates short stretches of user code into fragments that are harmless
//! to execute in ring 0, and proves it.
//!
//! This crate is pure: bytes in, bytes out, no I/O. `docs/fragment.md` is the
//! contract that [`translate()`] produces and [`verifier::verify`] enforces; the
//! two share the types of [`fragment`] and [`frame`] and no code.

mod assemble;
pub mod coverage;
mod cpu;
mod displace;
mod emit;
mod error;
mod exits;
mod facts;
mod flags;
mod forms;
pub mod fragment;
pub mod frame;
mod graph;
mod layout;
mod liveness;
mod lower;
mod operand;
#[cfg(feature = "planted-bugs")]
mod planted;
mod ranges;
mod recipe;
mod region;
mod regs;
mod source;
mod steps;
mod translate;
mod unroll;
pub mod verifier;

pub use cpu::CpuFeatures;
pub use error::TranslateError;
#[cfg(feature = "planted-bugs")]
pub use planted::PlantedBug;
pub use source::{CodeSource, SliceSource};
pub use translate::{Options, Predictions, translate, translate_predicted};

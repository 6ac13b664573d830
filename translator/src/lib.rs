//! Translates short stretches of user code into fragments that are harmless
//! to execute in ring 0, and proves it.
//!
//! This crate is pure: bytes in, bytes out, no I/O. `docs/fragment.md` is the
//! contract that [`translate`] produces and [`verifier::verify`] enforces; the
//! two share the types of [`fragment`] and [`frame`] and no code.

pub mod fragment;
pub mod frame;

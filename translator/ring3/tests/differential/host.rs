//! This machine, asked once: CPUID is slow, in a virtual machine very slow.

use std::sync::OnceLock;
use ub_translator::verifier::{Features, Policy};
use ub_translator::{CpuFeatures, Options};

/// What the translator may use here, with its other defaults.
pub fn options() -> Options {
    static CPU: OnceLock<CpuFeatures> = OnceLock::new();
    Options::new(*CPU.get_or_init(CpuFeatures::host))
}

/// What the verifier accepts here.
pub fn policy() -> Policy {
    static FEATURES: OnceLock<Features> = OnceLock::new();
    Policy::new(*FEATURES.get_or_init(Features::host))
}

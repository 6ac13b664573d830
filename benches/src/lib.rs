//! What the micro-benchmarks work on.
//!
//! They run on this machine's CPU in ring 3, without module and without
//! virtual machine:
//!
//! * `make bench-code` (`benches/kernels.rs`): translated against native code,
//!   for the [`kernels`].
//! * `make bench-translate` (`benches/translation.rs`): the cost of translating
//!   and verifying the functions of the C library and of redis-server.
//! * `make bench-regions` (`benches/regions.rs`): into which fragments the code of
//!   redis-server, nginx and a loop of null calls comes to be cut, from what they
//!   run, and why riders go from one to another. `ARGS=nginx` for one of them.
//! * `benches/syscall.rs`: the system call that a ride saves.
//!
//! `make bench` runs all of them.

pub mod guest;
pub mod kernels;
pub mod latency;
pub mod library;
pub mod listing;
pub mod loader;
pub mod measure;
pub mod process;
pub mod recording;
pub mod replay;
pub mod table;

/// The lines that label every figure: CPU, kernel, KPTI, mitigations.
///
/// # Errors
/// If `/proc` is not mounted.
pub fn environment() -> anyhow::Result<String> {
    let machine = ub_bench::guest::machine()?;
    let kpti = match machine.kpti {
        Some(true) => "on",
        Some(false) => "off",
        None => "unknown",
    };
    let mut text = format!("cpu {} | kernel {} | KPTI {kpti}", machine.cpu, machine.kernel);
    for (name, state) in machine.vulnerabilities.iter().filter(|(_, s)| *s != "Not affected") {
        text.push_str(&format!("\n  {name}: {state}"));
    }
    Ok(text)
}

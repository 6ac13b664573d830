//! What the micro-benchmarks work on.
//!
//! They run on this machine's CPU in ring 3, without module and without
//! virtual machine: cost of translating and verifying functions of the C
//! library (`translation`), translated against native code (`kernels`), and
//! the system call that a ride saves (`syscall`). Run them with `make bench`.

pub mod kernels;
pub mod library;

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

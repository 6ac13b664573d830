//! The facts that label every figure.

use ub_report::host::Environment;

use crate::outcome::Machine;
use crate::{Error, Result};

/// Describes the machine this runs on.
///
/// # Errors
/// If `/proc` is not mounted: nothing would be known of the CPU.
pub fn machine() -> Result<Machine> {
    let Environment { kernel, cpu, kpti, mitigations, .. } = Environment::detect();
    if cpu.is_empty() {
        return Err(Error::output("/proc/cpuinfo", "it has no \"model name\"; mount /proc"));
    }
    Ok(Machine {
        kernel,
        cpu,
        cpus: std::thread::available_parallelism().map_or(1, Into::into),
        kpti,
        vulnerabilities: mitigations,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_name_and_a_kernel() {
        let machine = machine().unwrap();
        assert!(!machine.kernel.is_empty() && machine.cpus > 0);
        assert!(machine.kpti.is_some());
    }
}

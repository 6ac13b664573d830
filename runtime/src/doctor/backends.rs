//! The ways in which this machine can be served, and what each one lacks.

use serde::Serialize;

use super::{Check, State};

/// One way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// `kmod`, `bpf-profile` or `bpf-filter`.
    pub name: &'static str,
    /// What it does.
    pub description: &'static str,
    /// Whether this user can have it now.
    pub available: bool,
    /// What is missing, if it is not available.
    pub missing: Option<String>,
}

impl Backend {
    fn new(name: &'static str, description: &'static str, missing: Option<String>) -> Self {
        Self { name, description, available: missing.is_none(), missing }
    }

    /// All of them, given what was found about the module.
    pub(super) fn all(checks: &[Check], rides_possible: bool) -> Vec<Self> {
        let blocking: Vec<_> = checks
            .iter()
            .filter(|check| check.state == State::Blocks)
            .map(|check| format!("{}: {}", check.name, check.found))
            .collect();
        let module = (!rides_possible).then(|| {
            if blocking.is_empty() { "the module refuses".to_owned() } else { blocking.join("; ") }
        });
        let profiler = ub_ebpf_fallback::Profiler::check().err().map(|error| error.to_string());
        let filter = ub_ebpf_fallback::packet_filter::check().err().map(|error| error.to_string());
        vec![
            Self::new("kmod", "rides: hot gaps executed in the kernel", module),
            Self::new("bpf-profile", "`ub profile` and `ub predict`", profiler),
            Self::new(
                "bpf-filter",
                "`ub run --backend bpf`: packets that a program would throw away are dropped",
                filter,
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_blocks_the_module_is_named() {
        let checks = [
            Check::new("module", State::Blocks, "not loaded"),
            Check::new("BMI2", State::Note, "absent"),
            Check::new("device", State::Blocks, "no device"),
        ];
        let backends = Backend::all(&checks, false);
        assert_eq!(backends[0].missing.as_deref(), Some("module: not loaded; device: no device"));
        assert!(Backend::all(&[], true)[0].available);
        let names: Vec<_> = backends.iter().map(|backend| backend.name).collect();
        assert_eq!(names, ["kmod", "bpf-profile", "bpf-filter"]);
        for backend in &backends {
            assert_eq!(backend.available, backend.missing.is_none(), "{backend:?}");
        }
    }
}

//! Gap profiler and bypass for kernels without the module.
//!
//! Not built yet: every entry point says so, and nothing pretends to work.

use std::convert::Infallible;
use std::ffi::OsString;

/// Why nothing was profiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// This crate has no implementation yet.
    #[error("the eBPF gap profiler is not built yet; `ub stat` needs the kernel module and works")]
    NotBuilt,
}

/// Would run `command` and count its gaps.
///
/// # Errors
/// Always [`ProfileError::NotBuilt`].
pub fn profile(_command: &[OsString]) -> Result<Infallible, ProfileError> {
    Err(ProfileError::NotBuilt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_that_it_is_not_built() {
        let error = profile(&["true".into()]).unwrap_err();
        assert!(error.to_string().contains("not built yet"));
    }
}

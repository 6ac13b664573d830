//! What the loaded module takes where nothing is set.

use std::path::Path;

use crate::host::read_line;

/// Folder of the module's parameters; absent where it is not loaded.
pub(super) const PARAMETERS: &str = "/sys/module/ub/parameters";

/// The value of the parameter in `folder` that stands for the setting `name`, in the
/// setting's unit; `None` if there is none.
pub(super) fn default_in(folder: &Path, name: &str) -> Option<String> {
    match name.strip_suffix("_us") {
        // The module has nanoseconds, which need not be whole microseconds.
        Some(stem) => {
            let ns: u64 = read_line(folder.join(format!("{stem}_ns")))?.parse().ok()?;
            Some((ns as f64 / 1000.0).to_string())
        }
        None => read_line(folder.join(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_in_the_units_of_settings() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in
            [("hot_count", "77\n"), ("gap_short_ns", "4000\n"), ("gap_max_ns", "32500\n")]
        {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let default = |name| default_in(folder.path(), name);
        assert_eq!(default("hot_count").as_deref(), Some("77"));
        assert_eq!(default("gap_short_us").as_deref(), Some("4"));
        assert_eq!(default("gap_max_us").as_deref(), Some("32.5"));
        assert_eq!(default("max_fragments"), None);
    }
}

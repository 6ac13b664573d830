//! Finding the guest's init, a program of this crate.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::checkout::checkout;
use crate::command;
use crate::error::{LabError, Result};

const NAME: &str = "ub-guest-init";

/// The init program: `$UB_GUEST_INIT`, else from cargo when running under
/// cargo (so that it is never older than its sources), else beside the
/// running program, else from cargo.
pub(crate) fn find() -> Result<PathBuf> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = FOUND.get() {
        return Ok(path.clone());
    }
    let path = search()?;
    Ok(FOUND.get_or_init(|| path).clone())
}

fn search() -> Result<PathBuf> {
    if let Some(path) = env::var_os("UB_GUEST_INIT").map(PathBuf::from) {
        if path.is_file() {
            return Ok(path);
        }
        return Err(LabError::Setup(format!("UB_GUEST_INIT={} is not a file", path.display())));
    }
    let manifest = checkout().map(|root| root.join("vm-lab/Cargo.toml"));
    let manifest = manifest.filter(|manifest| manifest.exists());
    let under_cargo = env::var_os("CARGO").is_some() && manifest.is_some();
    if !under_cargo && let Some(path) = beside_this_program() {
        return Ok(path);
    }
    if let Some(manifest) = manifest {
        return build(&manifest);
    }
    Err(LabError::Setup(format!(
        "`{NAME}` not found: put it beside this program or name it in UB_GUEST_INIT"
    )))
}

fn beside_this_program() -> Option<PathBuf> {
    let path = env::current_exe().ok()?.with_file_name(NAME);
    path.is_file().then_some(path)
}

fn build(manifest: &Path) -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let messages = command::output(
        Command::new(cargo)
            .args([
                "build",
                "--quiet",
                "--bin",
                NAME,
                "--message-format",
                "json-render-diagnostics",
            ])
            .arg("--manifest-path")
            .arg(manifest),
    )?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == NAME)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| LabError::Bug(format!("cargo built {NAME} but did not say where")))
}

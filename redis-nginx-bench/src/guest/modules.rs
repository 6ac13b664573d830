//! Loads and unloads the kernel modules under test, so that native programs
//! can be measured without them.

use std::ffi::CString;
use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};

use super::launch::Launcher;
use crate::plan::Mode;
use crate::{Error, Result};

/// How long a module may stay in use by supervisors that are about to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two attempts.
const TICK: Duration = Duration::from_millis(50);

/// Does `work` with the plan's modules loaded, if there are any and `modes`
/// need them.
pub(super) fn with<T>(
    launcher: &Launcher,
    modes: &[Mode],
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let modules = &launcher.plan().modules;
    if !modes.contains(&Mode::Ub) {
        return work();
    }
    for path in modules {
        load(path)?;
    }
    let result = work();
    for path in modules.iter().rev() {
        // What went wrong first says more.
        if let Err(error) = unload(path) {
            return result.and(Err(error));
        }
    }
    result
}

fn load(path: &Path) -> Result<()> {
    let what = || format!("loading {}", path.display());
    let file = File::open(path).map_err(Error::io(what()))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        // Left behind by a measurement that failed.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(Error::io(what())(error.into())),
    }
}

fn unload(path: &Path) -> Result<()> {
    let what = || format!("unloading {}", path.display());
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = CString::new(&*stem).map_err(|error| Error::io(what())(error.into()))?;
    let start = Instant::now();
    loop {
        match delete_module(&name, DeleteModuleFlags::O_NONBLOCK) {
            Ok(()) => return Ok(()),
            Err(Errno::EAGAIN | Errno::EBUSY) if start.elapsed() < PATIENCE => thread::sleep(TICK),
            Err(error) => return Err(Error::io(what())(error.into())),
        }
    }
}

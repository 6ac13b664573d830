//! Memory that the kernel of the guest has lost, where it was built to tell.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};

const DEBUGFS: &str = "/sys/kernel/debug";
const CONTROL: &str = "/sys/kernel/debug/kmemleak";

/// The kernel reports what was allocated at least 5 s ago (MSECS_MIN_AGE in
/// mm/kmemleak.c).
const MINIMUM_AGE: Duration = Duration::from_secs(6);

/// Has the kernel look for leaks. What it finds goes to its log, where the
/// host takes the number of them for the failure that it is.
pub fn look() -> Result<(), String> {
    let folder = Path::new(DEBUGFS);
    if folder.exists() && !folder.join("tracing").exists() {
        // Not every kernel has it.
        let _ = mount(Some("debugfs"), folder, Some("debugfs"), MsFlags::empty(), None::<&str>);
    }
    if !Path::new(CONTROL).exists() {
        return Ok(());
    }
    let failed = |error: io::Error| format!("{CONTROL}: {error}");
    thread::sleep(MINIMUM_AGE);
    // What only one scan misses may have been on its way between two places.
    for _ in 0..2 {
        fs::write(CONTROL, "scan").map_err(failed)?;
    }
    let found = fs::read_to_string(CONTROL).map_err(failed)?;
    for line in found.lines() {
        fs::write("/dev/kmsg", format!("leak: {line}")).map_err(failed)?;
    }
    Ok(())
}

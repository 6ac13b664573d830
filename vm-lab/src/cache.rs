//! Where the lab keeps what it fetched and built, and who may use it when.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::checkout::checkout;
use crate::error::{Context, LabError, Result};

/// Name of the lab's folder in the user's cache folder.
const CACHE_NAME: &str = "userspace-bypass";

/// How often a taken guest slot is tried again.
const SLOT_RETRY: Duration = Duration::from_millis(50);

/// The folder that is wanted for downloads that outlive a build: `$UB_CACHE_DIR`, else
/// `$XDG_CACHE_HOME/userspace-bypass`, else `~/.cache/userspace-bypass`. `None` if none of
/// these variables is set. Whether it exists or can be written is not looked at.
#[must_use]
pub fn preferred_cache_dir() -> Option<PathBuf> {
    set("UB_CACHE_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join(CACHE_NAME)))
        .or_else(|| set("HOME").map(|home| home.join(".cache").join(CACHE_NAME)))
}

/// The folder for downloads that outlive a build: [`preferred_cache_dir`], and where that
/// cannot be written, one below [`target_dir`].
pub(crate) fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = preferred_cache_dir() {
        let dir = std::path::absolute(&dir).context("making absolute", &dir)?;
        match probe_writable(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) => tracing::warn!(dir = %dir.display(), %error, "cache folder not usable"),
        }
    }
    let dir = target_dir()?.join("ub-cache");
    probe_writable(&dir).context("creating the cache folder", &dir)?;
    Ok(dir)
}

fn set(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn probe_writable(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    tempfile::tempfile_in(dir).map(drop)
}

/// The folder for what is built and logged: cargo's target folder in a
/// checkout, else `target` in the working directory.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let dir = set("CARGO_TARGET_DIR").unwrap_or_else(|| match checkout() {
        Some(root) if root.join("Cargo.toml").exists() => root.join("target"),
        _ => PathBuf::from("target"),
    });
    std::path::absolute(&dir).context("making absolute", &dir)
}

/// An exclusive lock between processes, released on drop and on death.
#[derive(Debug)]
pub(crate) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Waits for the lock.
    pub(crate) fn acquire(path: &Path) -> Result<Self> {
        let file = open_lock(path)?;
        file.lock().context("locking", path)?;
        Ok(Self { _file: file })
    }

    fn try_acquire(path: &Path) -> Result<Option<Self>> {
        let file = open_lock(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error).context("locking", path),
        }
    }
}

fn open_lock(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).context("creating", parent)?;
    }
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .context("opening the lock file", path)
}

/// Waits until this host may run one more guest. One per processor, or
/// `$UB_LAB_GUESTS`: guests that starve each other stall and time out.
pub(crate) fn guest_slot(cache: &Path) -> Result<FileLock> {
    let slots = match env::var("UB_LAB_GUESTS") {
        Ok(text) => text.parse().ok().filter(|&slots: &usize| slots > 0).ok_or_else(|| {
            LabError::Setup(format!("UB_LAB_GUESTS={text} is not a positive number"))
        })?,
        Err(_) => thread::available_parallelism().map_or(1, std::num::NonZero::get),
    };
    loop {
        for slot in 0..slots {
            if let Some(lock) =
                FileLock::try_acquire(&cache.join("locks").join(format!("guest-{slot}")))?
            {
                return Ok(lock);
            }
        }
        thread::sleep(SLOT_RETRY);
    }
}

/// Prefix of folders that are not finished.
const INCOMPLETE: &str = ".incomplete-";

/// Removes what killed processes left in `dir`. Only for who holds the lock
/// under which folders are made there.
pub(crate) fn remove_leftovers(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).context("reading", dir)? {
        let entry = entry.context("reading", dir)?;
        if entry.file_name().to_string_lossy().starts_with(INCOMPLETE) {
            fs::remove_dir_all(entry.path()).context("removing", &entry.path())?;
        }
    }
    Ok(())
}

/// A new empty folder in `parent`, removed when dropped.
pub(crate) fn temporary_dir(parent: &Path) -> Result<TempDir> {
    fs::create_dir_all(parent).context("creating", parent)?;
    tempfile::Builder::new()
        .prefix(INCOMPLETE)
        .tempdir_in(parent)
        .context("creating a folder in", parent)
}

/// A folder that appears under its final name only when it is complete.
#[derive(Debug)]
pub(crate) struct PendingDir {
    dir: TempDir,
    destination: PathBuf,
}

impl PendingDir {
    /// A new empty folder beside `destination`.
    pub(crate) fn new(destination: &Path) -> Result<Self> {
        let parent = destination
            .parent()
            .ok_or_else(|| LabError::Bug(format!("{} has no parent", destination.display())))?;
        Ok(Self { dir: temporary_dir(parent)?, destination: destination.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Gives the folder its final name. If another process was first, its
    /// folder stays and this one is removed.
    pub(crate) fn publish(self) -> Result<()> {
        match fs::rename(self.dir.path(), &self.destination) {
            Ok(()) => {
                // Already renamed: nothing is left to remove.
                let _ = self.dir.keep();
                Ok(())
            }
            Err(_) if self.destination.exists() => Ok(()),
            Err(error) => Err(error).context("renaming to", &self.destination),
        }
    }
}

/// Writes a file so that nobody ever reads half of it.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(parent)?;
    let mut file = tempfile::Builder::new().prefix(".writing-").tempfile_in(parent)?;
    io::Write::write_all(&mut file, content)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// The part of a name that is safe in a file name on any file system.
pub(crate) fn file_name_safe(name: &OsStr) -> String {
    name.to_string_lossy()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_folder_appears_complete_or_not_at_all() {
        let parent = tempfile::tempdir().unwrap();
        let destination = parent.path().join("done");
        let abandoned = PendingDir::new(&destination).unwrap();
        fs::write(abandoned.path().join("file"), "half").unwrap();
        drop(abandoned);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);

        let first = PendingDir::new(&destination).unwrap();
        let second = PendingDir::new(&destination).unwrap();
        fs::write(first.path().join("file"), "first").unwrap();
        fs::write(second.path().join("file"), "second").unwrap();
        first.publish().unwrap();
        second.publish().unwrap();
        assert_eq!(fs::read_to_string(destination.join("file")).unwrap(), "first");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_leftovers_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let killed = temporary_dir(parent.path()).unwrap().keep();
        fs::write(killed.join("file"), "half").unwrap();
        fs::create_dir(parent.path().join("done")).unwrap();
        remove_leftovers(parent.path()).unwrap();
        assert!(!killed.exists());
        assert!(parent.path().join("done").exists());
    }

    #[test]
    fn a_lock_excludes_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks/one");
        let held = FileLock::acquire(&path).unwrap();
        assert!(FileLock::try_acquire(&path).unwrap().is_none());
        drop(held);
        assert!(FileLock::try_acquire(&path).unwrap().is_some());
    }
}

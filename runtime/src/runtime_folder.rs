//! Folders of this user that no boot survives: `ub` below `/run`, where it is
//! root's, and below `XDG_RUNTIME_DIR`.
//!
//! The variable may be another user's, as with a `sudo` that keeps it. What is in
//! such a folder is not believed, and nothing is left there.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat};
use nix::unistd::{Uid, UnlinkatFlags, unlinkat};

/// The folder's name.
const NAME: &CStr = c"ub";
/// Where root's is.
const SYSTEM: &str = "/run";
/// Largest file that is read, in bytes: more than any that ub writes.
const LARGEST: u64 = 1 << 20;

/// A folder that belongs to the effective user and that nobody else may write to.
#[derive(Debug)]
pub struct RuntimeFolder {
    handle: OwnedFd,
    path: PathBuf,
}

impl RuntimeFolder {
    /// Those that are there, the system's first.
    pub fn existing() -> impl Iterator<Item = Self> {
        parents().filter_map(|parent| Self::open_in(&parent).ok())
    }

    /// Those that are there or can be made, the system's first. They are made
    /// only as far as they are asked for.
    pub fn usable() -> impl Iterator<Item = Self> {
        parents().filter_map(|parent| Self::make_in(&parent).ok())
    }

    /// The folder below `parent`.
    ///
    /// # Errors
    /// What the kernel answers; `PermissionDenied` if others may write to the
    /// folder.
    pub fn open_in(parent: &Path) -> io::Result<Self> {
        Self::open_below(&open_folder(parent)?, parent)
    }

    /// The same, which is made if necessary.
    ///
    /// # Errors
    /// As of [`open_in`](Self::open_in), and `PermissionDenied` if somebody but
    /// this user and root could put something else in its place.
    pub fn make_in(parent: &Path) -> io::Result<Self> {
        let parent_handle = open_folder(parent)?;
        let status = fstat(&parent_handle)?;
        let owner = Uid::from_raw(status.st_uid);
        let sticky = mode(&status).contains(Mode::S_ISVTX);
        if !(owner.is_root() || owner == Uid::effective()) || (others_write(&status) && !sticky) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        match mkdirat(&parent_handle, NAME, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => Self::open_below(&parent_handle, parent),
            Err(error) => Err(error.into()),
        }
    }

    fn open_below(parent: &OwnedFd, parent_path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let handle = openat(parent, NAME, flags, Mode::empty())?;
        let status = fstat(&handle)?;
        if Uid::from_raw(status.st_uid) != Uid::effective() || others_write(&status) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(Self { handle, path: parent_path.join("ub") })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content of the regular file `name`. Never waits for a pipe that lies
    /// there instead, and follows no symbolic link.
    ///
    /// # Errors
    /// What the kernel answers; `InvalidData` if it is no regular file of this
    /// user or larger than a megabyte.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(&self.handle, name, flags, Mode::empty())?;
        let status = fstat(&file)?;
        let regular = status.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
        if !regular || Uid::from_raw(status.st_uid) != Uid::effective() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut content = Vec::new();
        File::from(file).take(LARGEST + 1).read_to_end(&mut content)?;
        if content.len() as u64 > LARGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(content)
    }

    /// Writes a file that only this user may read. A reader sees a whole file, old
    /// or new; what is there and no regular file is replaced, not written to.
    ///
    /// # Errors
    /// What the kernel answers; what was there is unchanged then.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let new = format!(".{name}.{}", std::process::id());
        // Of an earlier process with this number that was killed.
        let _ = self.remove(&new);
        let written = self.create(&new, content).and_then(|()| {
            renameat(&self.handle, new.as_str(), &self.handle, name).map_err(io::Error::from)
        });
        if written.is_err() {
            let _ = self.remove(&new);
        }
        written
    }

    fn create(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let file = openat(&self.handle, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        File::from(file).write_all(content)
    }

    fn remove(&self, name: &str) -> nix::Result<()> {
        unlinkat(&self.handle, name, UnlinkatFlags::NoRemoveDir)
    }
}

/// The folders below which ours are.
fn parents() -> impl Iterator<Item = PathBuf> {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    [Some(PathBuf::from(SYSTEM)), own.map(PathBuf::from)].into_iter().flatten()
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(AT_FDCWD, path, flags, Mode::empty())?)
}

fn mode(status: &FileStat) -> Mode {
    Mode::from_bits_truncate(status.st_mode)
}

fn others_write(status: &FileStat) -> bool {
    mode(status).intersects(Mode::S_IWGRP | Mode::S_IWOTH)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    fn kind(result: io::Result<impl std::fmt::Debug>) -> io::ErrorKind {
        result.unwrap_err().kind()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let parent = tempfile::tempdir().unwrap();
        assert_eq!(kind(RuntimeFolder::open_in(parent.path())), io::ErrorKind::NotFound);
        let folder = RuntimeFolder::make_in(parent.path()).unwrap();
        let content = fs::metadata(folder.path()).unwrap();
        assert_eq!(content.permissions().mode() & 0o777, 0o700);
        assert_eq!(kind(folder.read("a")), io::ErrorKind::NotFound);
        for text in [b"one".as_slice(), b"other"] {
            folder.write("a", text).unwrap();
            let again = RuntimeFolder::open_in(parent.path()).unwrap();
            assert_eq!(again.read("a").unwrap(), text);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "more than one file");
    }

    #[test]
    fn only_regular_files_are_read() {
        let parent = tempfile::tempdir().unwrap();
        let folder = RuntimeFolder::make_in(parent.path()).unwrap();
        let place = |name: &str| folder.path().join(name);
        // Opened without O_NONBLOCK, this would wait for a writer for ever.
        mkfifo(&place("pipe"), Mode::S_IRWXU).unwrap();
        assert_eq!(kind(folder.read("pipe")), io::ErrorKind::InvalidData);
        fs::create_dir(place("folder")).unwrap();
        assert_eq!(kind(folder.read("folder")), io::ErrorKind::InvalidData);
        fs::write(place("file"), "secret").unwrap();
        symlink(place("file"), place("link")).unwrap();
        let refused = folder.read("link").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::ELOOP as i32), "{refused}");
        fs::write(place("large"), vec![0; 1 + (1 << 20)]).unwrap();
        assert_eq!(kind(folder.read("large")), io::ErrorKind::InvalidData);
    }

    #[test]
    fn nothing_is_written_through_what_lies_there() {
        let parent = tempfile::tempdir().unwrap();
        let folder = RuntimeFolder::make_in(parent.path()).unwrap();
        let place = |name: &str| folder.path().join(name);
        fs::write(place("file"), "mine").unwrap();
        symlink(place("file"), place("link")).unwrap();
        mkfifo(&place("pipe"), Mode::S_IRWXU).unwrap();
        for name in ["link", "pipe"] {
            folder.write(name, b"new").unwrap();
            assert_eq!(folder.read(name).unwrap(), b"new");
        }
        assert_eq!(fs::read(place("file")).unwrap(), b"mine");
        fs::create_dir(place("folder")).unwrap();
        assert!(folder.write("folder", b"new").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "something was left");
    }

    #[test]
    fn a_folder_that_others_may_write_to_or_a_link_is_not_ours() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("ub");
        for mode in [0o770, 0o707, 0o1777] {
            fs::create_dir(&place).unwrap();
            fs::set_permissions(&place, Permissions::from_mode(mode)).unwrap();
            for result in
                [RuntimeFolder::open_in(parent.path()), RuntimeFolder::make_in(parent.path())]
            {
                assert_eq!(kind(result), io::ErrorKind::PermissionDenied, "{mode:o}");
            }
            fs::remove_dir(&place).unwrap();
        }
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(elsewhere.path(), &place).unwrap();
        assert!(RuntimeFolder::open_in(parent.path()).is_err());
        assert!(RuntimeFolder::make_in(parent.path()).is_err());
    }

    #[test]
    fn it_is_not_made_where_others_could_replace_it() {
        let parent = tempfile::tempdir().unwrap();
        fs::set_permissions(parent.path(), Permissions::from_mode(0o777)).unwrap();
        let refused = RuntimeFolder::make_in(parent.path());
        assert_eq!(kind(refused), io::ErrorKind::PermissionDenied);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        // As of /tmp, where nobody moves what belongs to another.
        fs::set_permissions(parent.path(), Permissions::from_mode(0o1777)).unwrap();
        assert!(RuntimeFolder::make_in(parent.path()).is_ok());
    }

    /// Root with another user's variable.
    #[test]
    fn folders_and_files_of_another_user_are_not_ours() {
        if !Uid::effective().is_root() {
            println!("not tested: only root can make a folder of another user");
            return;
        }
        let other = Some(65534);
        let parent = tempfile::tempdir().unwrap();
        let folder = RuntimeFolder::make_in(parent.path()).unwrap();
        folder.write("a", b"a").unwrap();
        std::os::unix::fs::chown(folder.path().join("a"), other, None).unwrap();
        assert_eq!(kind(folder.read("a")), io::ErrorKind::InvalidData);
        std::os::unix::fs::chown(folder.path(), other, None).unwrap();
        let refused = RuntimeFolder::open_in(parent.path());
        assert_eq!(kind(refused), io::ErrorKind::PermissionDenied);
        fs::remove_dir_all(folder.path()).unwrap();
        std::os::unix::fs::chown(parent.path(), other, None).unwrap();
        let refused = RuntimeFolder::make_in(parent.path());
        assert_eq!(kind(refused), io::ErrorKind::PermissionDenied);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}

//! The content of files that a program chose.
//!
//! The program may have put anything there meanwhile, and this process may be root's.
//! So nothing but a regular file is opened, as opening alone can take for ever (a
//! pipe) or do something (a device); it is read, not mapped, as it may be
//! shortened at any moment; and another thread reads it, as even the look-up of a name
//! takes as long as it likes in a file system that the program itself serves (FUSE).

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::Mapping;

/// Most bytes of a file that are read for its names.
const MOST_BYTES: u64 = 256 << 20;
/// A file that takes longer has no names.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many files took longer, and no more are read.
const MOST_STUCK: u32 = 3;

static STUCK: AtomicU32 = AtomicU32::new(0);

/// See [`Mapping::read`].
pub(super) fn read(mapping: &Mapping, pid: u32) -> io::Result<Vec<u8>> {
    let mapping = mapping.clone();
    within(PATIENCE, &STUCK, move || read_now(&mapping, pid))
}

/// What `work` gives, unless it takes longer than `patience`, or `stuck` says that others
/// did. The thread that waits in vain then is left behind.
fn within<T: Send + 'static>(
    patience: Duration,
    stuck: &AtomicU32,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if stuck.load(Ordering::Relaxed) >= MOST_STUCK {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "too many files took too long"));
    }
    let (done, result) = mpsc::channel();
    // Nobody listens any more to one that took too long.
    let work = move || drop(done.send(work()));
    thread::Builder::new().name("file reader".into()).spawn(work)?;
    result.recv_timeout(patience).unwrap_or_else(|_| {
        stuck.fetch_add(1, Ordering::Relaxed);
        Err(io::ErrorKind::TimedOut.into())
    })
}

fn read_now(mapping: &Mapping, pid: u32) -> io::Result<Vec<u8>> {
    let file = match open_regular(&mapping.path) {
        Ok((file, inode)) if inode == mapping.inode => file,
        _ => {
            let path = mapping.path.strip_prefix("/").unwrap_or(&mapping.path);
            let root = Path::new("/proc").join(pid.to_string()).join("root");
            open_regular(&root.join(path))?.0
        }
    };
    read_whole(file)
}

/// Opens a regular file for reading, and nothing else; with its inode.
pub(super) fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    // A descriptor of the file that does not open it.
    let found = OpenOptions::new().read(true).custom_flags(nix::libc::O_PATH).open(path)?;
    let metadata = found.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("no regular file"));
    }
    Ok((File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?, metadata.ino()))
}

/// All of it, unless it is larger than what programs are.
pub(super) fn read_whole(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if read as u64 > MOST_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "../../../ebpf-fallback/tests/support/not_tested.rs"]
mod not_tested;

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    use super::not_tested::not_tested;
    use super::*;

    /// Mounts there, for this thread and those it starts, what `device` serves.
    fn mount_fuse(folder: &Path, device: &File) -> nix::Result<()> {
        let nothing = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        mount(Some("test"), folder, Some("fuse"), MsFlags::empty(), Some(options.as_str()))
    }

    #[test]
    fn a_file_system_that_never_answers_holds_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let mounted = device.and_then(|device| {
            mount_fuse(folder.path(), &device)?;
            Ok(device)
        });
        let device = match mounted {
            Ok(device) => device,
            Err(error) => return not_tested(format_args!("no FUSE: {error}")),
        };
        let path = folder.path().join("library");
        let mapping = Mapping { range: 0..1, offset: 0, path, inode: 1, device: String::new() };
        let result = mapping.read(std::process::id());
        // Who waits for an answer gets an error.
        drop(device);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("library");
        fs::write(&path, "content").unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        let mapping =
            Mapping { range: 0..1, offset: 0, path: path.clone(), inode, device: String::new() };
        assert_eq!(mapping.read(std::process::id()).unwrap(), b"content");
        // Opening a pipe would not come back, opening a device may do something.
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(mapping.read(std::process::id()).is_err());
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert!(mapping.read(std::process::id()).is_err());
    }

    #[test]
    fn nobody_waits_for_ever_and_only_so_often() {
        let stuck = AtomicU32::new(0);
        let moment = Duration::from_millis(1);
        let minute = Duration::from_secs(60);
        assert_eq!(within(minute, &stuck, || Ok(7)).unwrap(), 7);
        for _ in 0..MOST_STUCK {
            let (_never_sent, waits) = mpsc::channel::<()>();
            let result = within(moment, &stuck, move || Ok(waits.recv()));
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        // Not even what would be ready at once.
        assert_eq!(within(minute, &stuck, || Ok(7)).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}

//! What servers expect of a system and a bare initramfs lacks.

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::{Error, Result};

/// Makes a loop device use a file (`linux/loop.h`).
const LOOP_SET_FD: libc::c_ulong = 0x4c00;
/// The loop device of the guest's disk: nothing else uses one there.
const LOOP_DEVICE: &str = "/dev/loop0";

nix::ioctl_write_int_bad!(loop_set_fd, LOOP_SET_FD);

/// Makes sure that root can be looked up by name. The lab's init has brought up `lo`.
pub(super) fn guest() -> Result<()> {
    // nginx refuses to start when the user and group of its configuration are unknown.
    for (file, line) in
        [("/etc/passwd", "root:x:0:0:root:/:/bin/sh\n"), ("/etc/group", "root:x:0:\n")]
    {
        if !Path::new(file).exists() {
            fs::create_dir_all("/etc").map_err(Error::io("creating /etc"))?;
            fs::write(file, line).map_err(Error::io(format!("writing {file}")))?;
        }
    }
    Ok(())
}

/// Mounts the file system in the file `image` at `folder`.
pub(super) fn disk(image: &Path, folder: &Path) -> Result<()> {
    let open = |path: &Path| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(Error::io(format!("opening {}", path.display())))
    };
    let file = open(image)?;
    let device = open(Path::new(LOOP_DEVICE))?;
    // SAFETY: the ioctl takes the number of an open file, which the kernel
    // keeps open on its own, and no pointer.
    unsafe { loop_set_fd(device.as_raw_fd(), file.as_raw_fd()) }
        .map_err(|e| Error::io(format!("setting up {LOOP_DEVICE}"))(e.into()))?;
    fs::create_dir_all(folder).map_err(Error::io(format!("creating {}", folder.display())))?;
    mount(Some(LOOP_DEVICE), folder, Some("ext4"), MsFlags::empty(), None::<&str>)
        .map_err(|e| Error::io(format!("mounting {LOOP_DEVICE}"))(e.into()))
}

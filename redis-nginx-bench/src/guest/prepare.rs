//! What servers expect of a system and a bare initramfs lacks.

use std::fs::{self, OpenOptions};
use std::mem;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::{Error, Result};

/// Makes a loop device use a file (`linux/loop.h`).
const LOOP_SET_FD: libc::c_ulong = 0x4c00;
/// The loop device of the guest's disk: nothing else uses one there.
const LOOP_DEVICE: &str = "/dev/loop0";

nix::ioctl_write_int_bad!(loop_set_fd, LOOP_SET_FD);
nix::ioctl_read_bad!(interface_flags, libc::SIOCGIFFLAGS, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_interface_flags, libc::SIOCSIFFLAGS, libc::ifreq);

/// Brings up `lo` and makes sure that root can be looked up by name.
pub(super) fn guest() -> Result<()> {
    loopback_up().map_err(|e| Error::io("bringing up the loopback interface")(e.into()))?;
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

fn loopback_up() -> nix::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq is plain data for which all zero bytes are a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    // SAFETY: both ioctls take a pointer to an ifreq with a terminated name,
    // which lives through the calls; SIOCGIFFLAGS fills ifru_flags, so reading
    // and writing that union field is what the interface defines.
    unsafe {
        interface_flags(socket.as_raw_fd(), &raw mut request)?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        set_interface_flags(socket.as_raw_fd(), &raw const request)?;
    }
    Ok(())
}

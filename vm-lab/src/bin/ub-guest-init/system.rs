//! The guest as a system: mounts, modules, network, facts, power.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};
use ub_vm_lab::protocol::{Hello, PROTOCOL};

/// Open files a job may have: enough for a server with 10,000 clients.
const OPEN_FILES: u64 = 65_536;

/// Mounts the kernel's file systems and the temporary ones.
pub fn mount_all() -> Result<(), String> {
    let nosuid = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let mounts: [(&str, &str, MsFlags, &str); 8] = [
        ("proc", "/proc", nosuid | MsFlags::MS_NOEXEC, ""),
        ("sysfs", "/sys", nosuid | MsFlags::MS_NOEXEC, ""),
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
        ("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=0620,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", nosuid, "mode=1777"),
        ("tmpfs", "/tmp", nosuid, "mode=1777"),
        ("tmpfs", "/run", nosuid, "mode=0755"),
        ("tracefs", "/sys/kernel/tracing", nosuid | MsFlags::MS_NOEXEC, ""),
    ];
    for (kind, target, flags, options) in mounts {
        if target.starts_with("/dev/") {
            fs::create_dir_all(target).map_err(|error| format!("{target}: {error}"))?;
        }
        mount(Some(kind), target, Some(kind), flags, Some(options))
            .map_err(|error| format!("mounting {kind} on {target}: {error}"))?;
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        std::os::unix::fs::symlink(target, link).map_err(|error| format!("{link}: {error}"))?;
    }
    Ok(())
}

/// What the job may rely on beyond the mounts: host name, loopback, limits.
pub fn prepare() -> Result<(), String> {
    nix::unistd::sethostname("ub-guest")
        .map_err(|error| format!("setting the host name: {error}"))?;
    loopback_up().map_err(|error| format!("bringing up lo: {error}"))?;
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
        .map_err(|error| format!("setting RLIMIT_NOFILE: {error}"))
}

fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: ifreq is a plain C structure for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which `request` is, and keeps no
    // pointer to it; the socket is open for the whole call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Loads an uncompressed kernel module.
pub fn load_module(path: &str, parameters: &str) -> Result<(), String> {
    let file = File::open(path).map_err(|error| format!("{path}: {error}"))?;
    let parameters = CString::new(parameters).map_err(|_| format!("{path}: NUL in parameters"))?;
    finit_module(&file, &parameters, ModuleInitFlags::empty())
        .map_err(|error| format!("loading {path}: {error}"))
}

/// Unloads the module that was loaded from `path`.
pub fn unload_module(path: &str) -> Result<(), String> {
    let stem = Path::new(path).file_stem().and_then(|stem| stem.to_str()).unwrap_or(path);
    // The kernel knows a module by its object name, with underscores.
    let name = CString::new(stem.replace('-', "_")).map_err(|_| format!("{path}: NUL in name"))?;
    delete_module(&name, DeleteModuleFlags::O_NONBLOCK)
        .map_err(|error| format!("unloading {stem}: {error}"))
}

/// The facts that label every result of this guest.
pub fn hello() -> Hello {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        cpuinfo
            .lines()
            .find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let flags = field("flags");
    let flag = |name: &str| flags.split_whitespace().any(|word| word == name);
    Hello {
        protocol: PROTOCOL,
        release: fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        cpu: field("model name"),
        pti_flag: flag("pti"),
        la57_flag: flag("la57"),
        pti_log: kernel_log()
            .into_iter()
            .filter(|line| line.contains("page tables isolation"))
            .collect(),
        vulnerabilities: vulnerabilities(),
    }
}

fn vulnerabilities() -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return BTreeMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let text = fs::read_to_string(entry.path()).ok()?;
            Some((entry.file_name().into_string().ok()?, text.trim().to_owned()))
        })
        .collect()
}

/// The messages of the kernel log so far, without prefixes.
fn kernel_log() -> Vec<String> {
    let Ok(mut file) =
        fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")
    else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    // One read returns one record: "priority,sequence,time,flags;message\n".
    let mut record = [0; 8192];
    loop {
        match file.read(&mut record) {
            Ok(0) => return lines,
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]);
                if let Some((_, message)) = text.split_once(';') {
                    lines.push(message.lines().next().unwrap_or_default().to_owned());
                }
            }
            // EPIPE: records were overwritten; go on with the oldest left.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(_) => return lines,
        }
    }
}

/// Switches the machine off. Returns only if the kernel refuses.
pub fn power_off() {
    nix::unistd::sync();
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("ub-guest-init: power off: {error}");
}

//! What to run in a guest, and what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::kernels::KernelVersion;
pub use crate::protocol::ExitStatus;

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The host's CPU, through its virtualisation extensions.
    Kvm,
    /// QEMU's code generator. Times measured in such a guest are emulated.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
        })
    }
}

/// An out-of-tree kernel module of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The module file on the host. In the guest it is `/ub/modules/NAME.ko`.
    pub file: PathBuf,
    /// Parameters as for `insmod`, such as `debug=1`.
    pub parameters: String,
    /// Whether init loads it before the command; otherwise it only lies there.
    pub load: bool,
}

impl Module {
    /// A module that init loads without parameters.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), parameters: String::new(), load: true }
    }
}

/// One command to run in a fresh guest. Everything it uses must be named
/// here; the guest has nothing else but `/proc`, `/sys`, `/dev`, an empty `/tmp`
/// and `/run`, and a loopback interface.
#[derive(Debug, Clone)]
pub struct Job {
    /// Names the folder of the logs; letters, digits, `.`, `_`, `+` and `-`.
    pub name: String,
    /// The kernel to boot.
    pub kernel: KernelVersion,
    /// Kernel page-table isolation. Passed as `pti=on|off` and checked in the guest.
    pub kpti: bool,
    /// Five-level page tables where the CPU has them.
    pub la57: bool,
    /// QEMU's name of the CPU model, such as `EPYC`; `None`: all that QEMU or the
    /// host can do. Decides which vulnerabilities the kernel sees.
    pub cpu: Option<String>,
    /// Number of virtual CPUs.
    pub smp: u32,
    /// Nodes of memory, with a socket each. They divide CPUs and memory equally.
    pub numa_nodes: u32,
    /// Under TCG, a host thread for each virtual CPU. Faster, but QEMU 7.2 now
    /// and then executes a stale `int3` after the kernel patched its own text:
    /// an oops in about one of a hundred boots, with no module loaded.
    pub parallel_tcg: bool,
    /// Under TCG, virtual time that counts instructions (QEMU's `-icount`):
    /// 2<sup>shift</sup> ns each, on all CPUs together, and idle time passes
    /// at once. The guest's clocks and its cycle counter then say how many
    /// instructions were executed, whatever the host does meanwhile. The
    /// CPUs take turns on one host thread, so [`parallel_tcg`](Self::parallel_tcg)
    /// is ignored, and with more than one a time span on one of them includes
    /// what the others did in it. KVM cannot count: such a job runs under TCG.
    pub icount: Option<u8>,
    /// Guest memory in MiB. The files of the job take up part of it.
    pub memory_mib: u32,
    /// What executes the guest; `None`: KVM if it works on this host (and
    /// [`icount`](Self::icount) is not asked for), else TCG.
    pub accelerator: Option<Accelerator>,
    /// Out-of-tree modules, in the order of loading.
    pub modules: Vec<Module>,
    /// Unload [`modules`](Self::modules) in reverse order after the command; one that
    /// cannot be unloaded fails the job.
    pub unload_modules: bool,
    /// Modules of the stock kernel to load first, with what they depend on.
    pub stock_modules: Vec<String>,
    /// Files and folders of the host (first) and where they go in the guest
    /// (second). Programs and libraries among them bring the libraries they need.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Programs of the host, by path or by name as a shell finds it. Those
    /// from the system's folders keep their path, others go to `/usr/bin`.
    pub programs: Vec<PathBuf>,
    /// Empty folders to create, owned by root.
    pub directories: Vec<PathBuf>,
    /// Program and arguments. The program is added to
    /// [`programs`](Self::programs) when it exists on the host and is not
    /// already part of the job.
    pub command: Vec<String>,
    /// Environment of the command, in addition to `PATH`, `HOME`, `USER`,
    /// `TERM` and `LC_ALL`, and `UB_LAB_SLOWNESS`: how many times slower than a
    /// stock kernel the guest's may be, for what has limits of time.
    pub env: BTreeMap<String, String>,
    /// Working directory of the command in the guest.
    pub cwd: PathBuf,
    /// Files of the guest to bring back; of a folder, all files below it.
    pub collect: Vec<PathBuf>,
    /// Limit for the whole life of the guest, from power on to power off.
    /// Waiting for other guests on this host does not count.
    pub timeout: Duration,
    /// Further kernel parameters.
    pub kernel_args: Vec<String>,
    /// Copy the command's output to this process's own while it runs.
    pub echo: bool,
}

impl Job {
    /// A job without a command, with two CPUs, 1 GiB of memory, page-table
    /// isolation on and two minutes to run.
    pub fn new(name: impl Into<String>, kernel: KernelVersion) -> Self {
        Self {
            name: name.into(),
            kernel,
            kpti: true,
            la57: true,
            cpu: None,
            smp: 2,
            numa_nodes: 1,
            parallel_tcg: false,
            icount: None,
            memory_mib: 1024,
            accelerator: None,
            modules: Vec::new(),
            unload_modules: false,
            stock_modules: Vec::new(),
            files: Vec::new(),
            programs: Vec::new(),
            directories: Vec::new(),
            command: Vec::new(),
            env: BTreeMap::new(),
            cwd: PathBuf::from("/tmp"),
            collect: Vec::new(),
            timeout: Duration::from_secs(120),
            kernel_args: Vec::new(),
            echo: false,
        }
    }

    /// Sets the command.
    pub fn command<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.command = words.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the command to a script for the shell, which must find its
    /// programs among those of the job.
    pub fn shell(self, script: impl Into<String>) -> Self {
        self.command(["/bin/sh".to_owned(), "-ec".to_owned(), script.into()])
    }

    /// Sets [`kpti`](Self::kpti).
    pub fn kpti(mut self, on: bool) -> Self {
        self.kpti = on;
        self
    }

    /// Sets [`timeout`](Self::timeout).
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Sets [`icount`](Self::icount).
    pub fn icount(mut self, shift: u8) -> Self {
        self.icount = Some(shift);
        self
    }

    /// Adds a program of the host.
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.programs.push(program.into());
        self
    }

    /// Adds a file or folder of the host.
    pub fn file(mut self, host: impl Into<PathBuf>, guest: impl Into<PathBuf>) -> Self {
        self.files.push((host.into(), guest.into()));
        self
    }

    /// Adds a module for init to load.
    pub fn module(mut self, module: Module) -> Self {
        self.modules.push(module);
        self
    }

    /// Adds a file or folder to bring back.
    pub fn collect(mut self, guest: impl Into<PathBuf>) -> Self {
        self.collect.push(guest.into());
        self
    }

    /// Sets an environment variable of the command.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }
}

/// The facts without which no figure from a guest means anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// What executed the guest.
    pub accelerator: Accelerator,
    /// `uname -r` in the guest.
    pub kernel: String,
    /// The CPU model that the guest sees.
    pub cpu: String,
    /// Whether page-table isolation was in force, as the guest's kernel says.
    pub kpti: bool,
    /// Whether five-level page tables were in use.
    pub la57: bool,
    /// `/sys/devices/system/cpu/vulnerabilities`, by file name. (`meltdown`
    /// says "Not affected" on CPUs that do not need page-table isolation, also where it is
    /// forced on; [`kpti`](Self::kpti) is the truth.)
    pub mitigations: BTreeMap<String, String>,
}

/// What came of a job whose guest stayed healthy. The command itself may have
/// failed: see [`status`](Self::status).
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How the command ended.
    pub status: ExitStatus,
    /// Everything the command wrote to standard output.
    pub stdout: Vec<u8>,
    /// Everything the command wrote to standard error.
    pub stderr: Vec<u8>,
    /// The collected files by guest path. What did not exist is missing.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// The guest's kernel log.
    pub console: String,
    /// What the guest ran on.
    pub environment: Environment,
    /// Where logs and output were saved.
    pub directory: PathBuf,
}

impl Outcome {
    /// Standard output as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// A collected file.
    pub fn file(&self, path: impl AsRef<Path>) -> Option<&[u8]> {
        self.files.get(path.as_ref()).map(Vec::as_slice)
    }
}

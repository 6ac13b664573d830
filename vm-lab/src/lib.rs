//! Boots stock Debian kernels in QEMU and runs jobs inside them.
//!
//! A [`Job`] names a kernel, a command and the files it needs. [`run`] fetches
//! the kernel from Debian's archive (without installing it), packs an
//! initramfs with the job's programs and their libraries, boots it (with KVM where a
//! trial boot succeeds, else with QEMU's TCG), runs the command as root and brings back its
//! exit status, output and files.
//!
//! A guest whose kernel panics, oopses, warns, stalls or hangs never counts
//! as success, whatever the command says: that is [`LabError::GuestKernel`], with the
//! kernel's log. A command that fails is an ordinary [`Outcome`].
//!
//! ```no_run
//! use ub_vm_lab::{Job, KernelVersion, Lab, Module};
//!
//! # fn main() -> Result<(), ub_vm_lab::LabError> {
//! let lab = Lab::new()?;
//!
//! // Build a module against the headers of the kernel that will load it.
//! let kernel = lab.kernel(KernelVersion::V6_12)?;
//! let modules = kernel.build_module("kernel-patch/module".as_ref())?;
//!
//! // Load it and look at what it says.
//! let mut job = Job::new("first-look", KernelVersion::V6_12)
//!     .kpti(true)
//!     .shell("cat /proc/modules; uname -r > /tmp/release")
//!     .program("cat")
//!     .program("uname")
//!     .collect("/tmp/release");
//! job.modules = modules.into_iter().map(Module::new).collect();
//!
//! let outcome = lab.run(&job)?;
//! assert!(outcome.status.success());
//! assert!(outcome.environment.kpti);
//! print!("{}", outcome.stdout_text());
//! println!("{:?}", outcome.file("/tmp/release"));
//! # Ok(())
//! # }
//! ```
//!
//! # Environment variables
//!
//! | name | meaning |
//! |---|---|
//! | `UB_CACHE_DIR` | where kernels are kept; default `$XDG_CACHE_HOME/userspace-bypass`, `~/.cache/userspace-bypass` |
//! | `UB_LAB_GUESTS` | guests that may run at the same time on this host; default one per processor |
//! | `UB_LAB_KERNEL` | what 6.12 guests boot: `stock`, or a kernel that is built once from Debian's sources: `debug` with KASAN, lockdep and kmemleak, `in-tree` with the patches of `kernel-patch/linux-6.12` |
//! | `UB_GUEST_INIT` | the `ub-guest-init` to use; default: beside the program, or built by cargo |
//! | `CARGO_TARGET_DIR` | logs are in `vm-lab/` below it |

mod accel;
mod apt;
mod built_kernel;
mod cache;
mod checkout;
mod command;
mod elf;
mod error;
mod guest_init;
mod initramfs;
mod job;
mod kernels;
mod kmod;
mod lab;
mod log;
mod module;
mod pack;
mod prerequisites;
pub mod protocol;
mod qemu;

pub use built_kernel::Variant;
pub use cache::preferred_cache_dir;
pub use checkout::checkout;
pub use error::{GuestReport, LabError, Result};
pub use job::{Accelerator, Environment, ExitStatus, Job, Module, Outcome};
pub use kernels::{Kernel, KernelVersion};
pub use lab::{Lab, run};
pub use prerequisites::{find_program, prerequisites};

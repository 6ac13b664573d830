//! `ub lab`: runs commands in a guest with a stock Debian kernel.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use ub_vm_lab::{Job, KernelVersion, Lab, LabError, Module};

use super::complain;
use crate::exec::EXIT_UB;

/// Run commands in a virtual machine with a stock Debian kernel
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Run),
    Kernels(Kernels),
}

/// Boot a guest, run a command in it as root, end as the command did
///
/// The guest has this ub, the kernel modules, a shell, the command's program
/// with its libraries, and what is named by --file and --program; nothing
/// else. Exit status: that of the command; 125 if the lab fails or the guest's
/// kernel complains.
#[derive(Debug, Args)]
struct Run {
    /// Line of the kernel: 6.12 or 6.1
    #[arg(long, default_value = "6.12", value_name = "VERSION")]
    kernel: KernelVersion,
    /// Kernel page-table isolation
    #[arg(long, value_enum, default_value_t = Switch::On)]
    kpti: Switch,
    /// Do not build and load ub_gate.ko and ub.ko
    #[arg(long)]
    no_module: bool,
    /// Sources of the modules [default: kernel-patch/module of the checkout
    /// that contains the working directory or this program]
    #[arg(long, value_name = "DIR", conflicts_with = "no_module")]
    module_dir: Option<PathBuf>,
    /// Put SRC of the host at DST in the guest
    #[arg(long, value_name = "SRC:DST", value_parser = file)]
    file: Vec<(PathBuf, PathBuf)>,
    /// Put a program of the host, with its libraries, into the guest
    #[arg(long, value_name = "PROGRAM")]
    program: Vec<PathBuf>,
    /// Bring PATH of the guest back, below the folder of --output
    #[arg(long, value_name = "PATH")]
    collect: Vec<PathBuf>,
    /// Where collected files go
    #[arg(long, value_name = "DIR", default_value = "lab-output")]
    output: PathBuf,
    /// Seconds until the guest is given up
    #[arg(long, value_name = "S", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// The command to run and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

/// Fetch the kernels that the lab knows and say which they are
#[derive(Debug, Args)]
struct Kernels {}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

fn file(text: &str) -> Result<(PathBuf, PathBuf), String> {
    match text.split_once(':') {
        Some((host, guest)) if !host.is_empty() && guest.starts_with('/') => {
            Ok((host.into(), guest.into()))
        }
        _ => Err("expected SRC:DST with an absolute DST".to_owned()),
    }
}

/// Runs the command; returns the exit status.
pub(super) fn main(arguments: Arguments) -> u8 {
    let result = match arguments.command {
        Command::Run(run) => self::run(run),
        Command::Kernels(_) => kernels(),
    };
    result.unwrap_or_else(|error| {
        complain(format_args!("{error:#}"));
        if let Some(report) = error.downcast_ref::<LabError>().and_then(LabError::guest_report) {
            // The kernel's complaint is what the caller is here for.
            let _ = io::stderr().write_all(report.log_excerpt.as_bytes());
        }
        EXIT_UB
    })
}

fn kernels() -> anyhow::Result<u8> {
    let lab = Lab::new()?;
    for version in KernelVersion::ALL {
        let kernel = lab.kernel(version)?;
        let accelerator = lab.accelerator(&kernel)?;
        writeln!(io::stdout(), "{version}\t{}\t{accelerator}", kernel.release())?;
    }
    Ok(0)
}

fn run(arguments: Run) -> anyhow::Result<u8> {
    let words = arguments
        .command
        .into_iter()
        .map(|word| word.into_string().map_err(|word| anyhow::anyhow!("{word:?} is not UTF-8")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let lab = Lab::new()?;
    let this = env::current_exe().context("finding this program")?;
    let mut job = Job::new("ub-lab-run", arguments.kernel)
        .kpti(arguments.kpti == Switch::On)
        .timeout(Duration::from_secs(arguments.timeout))
        .program("sh")
        .file(this, "/usr/bin/ub")
        .command(words);
    job.echo = true;
    job.programs.extend(arguments.program);
    job.files.extend(arguments.file);
    job.collect = arguments.collect;
    if !arguments.no_module {
        let dir = match arguments.module_dir {
            Some(dir) => dir,
            None => module_dir()?,
        };
        let modules = lab.kernel(arguments.kernel)?.build_module(&dir)?;
        job.modules = load_order(modules).into_iter().map(Module::new).collect();
    }
    let outcome = lab.run(&job)?;
    for (path, content) in &outcome.files {
        let to = arguments.output.join(path.strip_prefix("/").unwrap_or(path));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        fs::write(&to, content).with_context(|| format!("writing {}", to.display()))?;
    }
    let facts = &outcome.environment;
    complain(format_args!(
        "guest: kernel {}, {}, KPTI {}, {}; logs in {}",
        facts.kernel,
        facts.accelerator,
        if facts.kpti { "on" } else { "off" },
        facts.cpu,
        outcome.directory.display()
    ));
    Ok(u8::try_from(outcome.status.shell_code() & 0xff).unwrap_or(EXIT_UB))
}

/// ub.ko uses what ub_gate.ko offers, so that one comes first.
fn load_order(mut modules: Vec<PathBuf>) -> Vec<PathBuf> {
    let is_gate = |path: &PathBuf| path.file_name().is_some_and(|name| name == "ub_gate.ko");
    modules.sort_by_key(|path| (!is_gate(path), path.clone()));
    modules
}

/// The modules' sources in the checkout around the working directory or this
/// program.
fn module_dir() -> anyhow::Result<PathBuf> {
    let starts = [env::current_dir().ok(), env::current_exe().ok()];
    for start in starts.iter().flatten() {
        let found = start
            .ancestors()
            .map(|dir| dir.join("kernel-patch/module"))
            .find(|dir| dir.join("uapi/ub.h").is_file());
        if let Some(dir) = found {
            return Ok(dir);
        }
    }
    bail!("kernel-patch/module not found; name it with --module-dir, or pass --no-module")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_need_both_sides() {
        assert_eq!(file("a:/b").unwrap(), ("a".into(), "/b".into()));
        for wrong in ["a", ":/b", "a:", "a:b"] {
            assert!(file(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_gate_is_loaded_first() {
        let modules = ["/x/a.ko", "/x/ub.ko", "/x/ub_gate.ko"].map(PathBuf::from).to_vec();
        let expected = ["/x/ub_gate.ko", "/x/a.ko", "/x/ub.ko"].map(PathBuf::from);
        assert_eq!(load_order(modules), expected);
    }
}

//! Running the job's command and collecting what it leaves.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use ub_vm_lab::protocol::{ExitStatus, Frame, GuestJob, MAX_PAYLOAD};

use crate::kmemleak;
use crate::report::Reporter;
use crate::system;

/// Loads the job's modules, runs its command, sends everything back.
pub fn job(job: &GuestJob, reporter: &Reporter) -> Result<(), String> {
    for module in &job.modules {
        system::load_module(&module.path, &module.parameters)?;
    }
    if !job.command.is_empty() {
        let status = command(job, reporter)?;
        reporter.send(&Frame::Status(status));
    }
    for path in &job.collect {
        collect(Path::new(path), reporter)
            .map_err(|error| format!("collecting {path}: {error}"))?;
    }
    if job.unload_modules {
        for module in job.modules.iter().rev() {
            system::unload_module(&module.path)?;
        }
    }
    kmemleak::look()
}

fn command(job: &GuestJob, reporter: &Reporter) -> Result<ExitStatus, String> {
    let mut child = Command::new(&job.command[0])
        .args(&job.command[1..])
        .env_clear()
        .envs(&job.env)
        .current_dir(&job.cwd)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("executing {} in {}: {error}", job.command[0], job.cwd))?;
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    thread::scope(|scope| {
        scope.spawn(move || forward(stdout, reporter, Frame::Stdout));
        scope.spawn(move || forward(stderr, reporter, Frame::Stderr));
        let status = wait_for(Pid::from_raw(child.id() as i32));
        // What the command left running would hold the pipes open.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        status
    })
}

fn forward(pipe: Option<impl Read>, reporter: &Reporter, frame: fn(Vec<u8>) -> Frame) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => reporter.send(&frame(buffer[..length].to_vec())),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                eprintln!("ub-guest-init: reading the command's output: {error}");
                return;
            }
        }
    }
}

/// Waits for `main` and meanwhile reaps every orphan, as process 1 must.
fn wait_for(main: Pid) -> Result<ExitStatus, String> {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == main => return Ok(ExitStatus::Code(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == main => {
                return Ok(ExitStatus::Signal(signal as i32));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(format!("waiting for the command: {error}")),
        }
    }
}

/// Sends a file, or all files below a directory. What does not exist is
/// left out: the host sees that it is missing.
fn collect(path: &Path, reporter: &Reporter) -> io::Result<()> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if metadata.is_dir() {
        let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let kind = entry.file_type()?;
            if kind.is_dir() || kind.is_file() {
                collect(&entry.path(), reporter)?;
            }
        }
        return Ok(());
    }
    let name = path.to_str().ok_or_else(|| io::Error::other("file name is not UTF-8"))?;
    let mut file = File::open(path)?;
    reporter.send(&Frame::File(name.to_owned()));
    let mut buffer = vec![0; MAX_PAYLOAD];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            length => reporter.send(&Frame::FileData(buffer[..length].to_vec())),
        }
    }
}

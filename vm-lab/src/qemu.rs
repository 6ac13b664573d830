//! One run of a virtual machine: starting it, listening to it, ending it.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::command;
use crate::error::{Context, LabError, Result};
use crate::job::Accelerator;
use crate::protocol::{Decoder, Frame, PORT_NAME, RECEIVED};

const QEMU: &str = "qemu-system-x86_64";

/// How often a quiet guest is looked at.
const POLL: Duration = Duration::from_millis(50);

/// How long a guest that has delivered its result may take to power off.
const POWER_OFF_WAIT: Duration = Duration::from_secs(30);

/// A virtual machine to run.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) kernel_args: String,
    pub(crate) accelerator: Accelerator,
    pub(crate) la57: bool,
    pub(crate) cpu: &'a str,
    pub(crate) smp: u32,
    pub(crate) numa_nodes: u32,
    pub(crate) parallel_tcg: bool,
    pub(crate) icount: Option<u8>,
    pub(crate) memory_mib: u32,
    /// Folder for the console log and QEMU's own messages.
    pub(crate) log_dir: &'a Path,
}

/// How a machine ended.
#[derive(Debug)]
pub(crate) enum End {
    /// QEMU ended by itself.
    Exited(ExitStatus),
    /// It was killed because the time was up.
    TimedOut,
    /// It was killed because waiting longer was useless: why.
    Stuck(String),
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) end: End,
    /// Why the frames break off, if they do.
    pub(crate) incomplete: Option<String>,
    /// What was written to the serial console.
    pub(crate) console: String,
    /// QEMU's own messages.
    pub(crate) messages: String,
}

/// Name of the console log in the log folder.
const CONSOLE_LOG: &str = "console.log";
const QEMU_LOG: &str = "qemu.log";

/// Bytes that a guest may send. A job that prints without end must not fill
/// the host's memory.
const MAX_RESULT: usize = 1 << 30;

/// QEMU's message when KVM cannot go on with a guest, which it then leaves
/// halted for ever.
const KVM_GAVE_UP: &str = "KVM internal error";

/// QEMU's options for CPUs and memory in nodes, which must divide both.
fn topology(nodes: u32, smp: u32, memory_mib: u32) -> Vec<String> {
    // CPUs that share a socket share a node, or the kernel complains.
    let sockets = if nodes > 1 { format!("{smp},sockets={nodes}") } else { smp.to_string() };
    let mut options = vec!["-smp".to_owned(), sockets, "-m".to_owned(), format!("{memory_mib}M")];
    if nodes > 1 {
        let (cpus, size) = (smp / nodes, memory_mib / nodes);
        for node in 0..nodes {
            let (first, last) = (node * cpus, (node + 1) * cpus - 1);
            options.extend([
                "-object".to_owned(),
                format!("memory-backend-ram,id=node{node},size={size}M"),
                "-numa".to_owned(),
                format!("node,nodeid={node},cpus={first}-{last},memdev=node{node}"),
            ]);
        }
    }
    options
}

impl Machine<'_> {
    fn command(&self, socket: &Path) -> Command {
        let mut qemu = Command::new(QEMU);
        let accelerator = match self.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg if self.parallel_tcg && self.icount.is_none() => "tcg,thread=multi",
            Accelerator::Tcg => "tcg,thread=single",
        };
        let cpu = format!("{}{}", self.cpu, if self.la57 { "" } else { ",la57=off" });
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-machine", "q35", "-accel", accelerator, "-cpu", &cpu])
            .args(topology(self.numa_nodes, self.smp, self.memory_mib))
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", &self.kernel_args])
            .arg("-chardev")
            .arg(format!("file,id=console,path={}", escaped(&self.log_dir.join(CONSOLE_LOG))))
            .args(["-serial", "chardev:console"])
            .arg("-chardev")
            .arg(format!("socket,id=result,server=off,path={}", escaped(socket)))
            .args(["-device", "virtio-serial-pci"])
            .args(["-device", &format!("virtserialport,chardev=result,name={PORT_NAME}")]);
        if let Some(shift) = self.icount {
            // Not tied to the host's clock in any way: neither slowed down to
            // it nor waiting for it when the guest is idle.
            qemu.args(["-icount", &format!("shift={shift},sleep=off,align=off")]);
        }
        qemu
    }

    /// Runs the machine to its end, at most for `limit`, and hands every
    /// frame of the guest to `on_frame`.
    pub(crate) fn run(&self, limit: Duration, on_frame: impl FnMut(Frame)) -> Result<Run> {
        // Unix socket paths are short: not in the log folder.
        let socket_dir = tempfile::Builder::new()
            .prefix("ub-vm-lab-")
            .tempdir()
            .context("creating a folder in", &std::env::temp_dir())?;
        let socket = socket_dir.path().join("result");
        let listener = UnixListener::bind(&socket).context("listening on", &socket)?;
        listener.set_nonblocking(true).context("listening on", &socket)?;

        let log = self.log_dir.join(QEMU_LOG);
        let child = spawn(self.command(&socket), File::create(&log).context("creating", &log)?)?;
        let mut machine = Running { child, log: &log, deadline: Instant::now() + limit };
        let (incomplete, end) = machine.watch(&listener, on_frame)?;
        drop(machine);
        Ok(Run {
            end,
            incomplete,
            console: read_lossy(&self.log_dir.join(CONSOLE_LOG))?,
            messages: read_lossy(&log)?,
        })
    }
}

/// A QEMU that runs. It does not outlive this value.
struct Running<'a> {
    child: Guard,
    log: &'a Path,
    deadline: Instant,
}

/// A child that is killed when its owner lets go.
#[derive(Debug)]
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Both fail only if the child has already been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running<'_> {
    /// Listens until the machine is off or must be killed. Returns why the
    /// frames break off, if they do, and how the machine ended.
    fn watch(
        &mut self,
        listener: &UnixListener,
        mut on_frame: impl FnMut(Frame),
    ) -> Result<(Option<String>, End)> {
        let mut frames = Frames::default();
        let mut stream = None;
        let mut buffer = vec![0; 256 * 1024];
        while !frames.complete {
            let read = match &mut stream {
                None => {
                    stream = accept(listener)?;
                    Read::Nothing
                }
                Some(stream) => read(stream, &mut buffer)?,
            };
            match read {
                Read::Bytes(length) => {
                    if let Err(reason) = frames.take(&buffer[..length], &mut on_frame) {
                        return Ok((Some(reason.clone()), End::Stuck(reason)));
                    }
                }
                Read::End => break,
                Read::Nothing => match self.ended()? {
                    // What it sent last may have come after the look at the
                    // port: read on to the end.
                    Some(End::Exited(_)) if stream.is_some() => {}
                    Some(end) => return Ok((Some(frames.broken_off()), end)),
                    None => {}
                },
            }
            if Instant::now() >= self.deadline {
                return Ok((Some(frames.broken_off()), End::TimedOut));
            }
        }
        if let (true, Some(stream)) = (frames.complete, &mut stream) {
            // Fails only when the guest is off already.
            let _ = io::Write::write_all(stream, &[RECEIVED]);
        }
        let incomplete = (!frames.complete).then(|| frames.broken_off());
        let power_off = self.deadline.min(Instant::now() + POWER_OFF_WAIT);
        loop {
            if let Some(end) = self.ended()? {
                return Ok((incomplete, end));
            }
            if Instant::now() >= power_off {
                return Ok((incomplete, End::Stuck("the guest does not power off".into())));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether QEMU has ended or will never go on.
    fn ended(&mut self) -> Result<Option<End>> {
        let status = self
            .child
            .0
            .try_wait()
            .map_err(|source| LabError::Io { context: format!("waiting for {QEMU}"), source })?;
        if let Some(status) = status {
            return Ok(Some(End::Exited(status)));
        }
        let gave_up = read_lossy(self.log)?.contains(KVM_GAVE_UP);
        Ok(gave_up.then(|| End::Stuck(KVM_GAVE_UP.into())))
    }
}

/// What a look at the port gave.
enum Read {
    Bytes(usize),
    Nothing,
    /// QEMU closed the connection: it is ending.
    End,
}

/// Takes QEMU's connection, which it makes before the guest runs.
fn accept(listener: &UnixListener) -> Result<Option<UnixStream>> {
    let failed = |source| LabError::Io { context: format!("connecting with {QEMU}"), source };
    match listener.accept() {
        Ok((stream, _)) => {
            stream.set_nonblocking(false).map_err(failed)?;
            stream.set_read_timeout(Some(POLL)).map_err(failed)?;
            Ok(Some(stream))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            thread::sleep(Duration::from_millis(2));
            Ok(None)
        }
        Err(error) => Err(failed(error)),
    }
}

fn read(stream: &mut UnixStream, buffer: &mut [u8]) -> Result<Read> {
    use io::ErrorKind::{ConnectionReset, Interrupted, TimedOut, WouldBlock};
    match io::Read::read(stream, buffer) {
        Ok(0) => Ok(Read::End),
        Ok(length) => Ok(Read::Bytes(length)),
        Err(error) if matches!(error.kind(), WouldBlock | TimedOut | Interrupted) => {
            Ok(Read::Nothing)
        }
        Err(error) if error.kind() == ConnectionReset => Ok(Read::End),
        Err(source) => Err(LabError::Io { context: format!("reading from {QEMU}"), source }),
    }
}

/// The frames of one guest.
#[derive(Default)]
struct Frames {
    decoder: Decoder,
    received: usize,
    count: u64,
    complete: bool,
}

impl Frames {
    /// Passes on the frames that `bytes` complete. An error tells why nothing
    /// sensible can follow.
    fn take(&mut self, bytes: &[u8], on_frame: &mut impl FnMut(Frame)) -> Result<(), String> {
        self.received += bytes.len();
        if self.received > MAX_RESULT {
            return Err(format!("the job's output and files exceed {} MiB", MAX_RESULT >> 20));
        }
        self.decoder.push(bytes);
        loop {
            match self.decoder.next_frame() {
                Ok(None) => return Ok(()),
                Ok(Some(Frame::End(count))) if count == self.count => {
                    self.complete = true;
                    return Ok(());
                }
                Ok(Some(Frame::End(count))) => {
                    return Err(format!("the guest sent {count} frames, {} arrived", self.count));
                }
                Ok(Some(frame)) => {
                    self.count += 1;
                    on_frame(frame);
                }
                Err(error) => return Err(format!("after {} frames: {error}", self.count)),
            }
        }
    }

    fn broken_off(&self) -> String {
        let place =
            if self.decoder.is_mid_frame() { "inside a frame" } else { "without a last frame" };
        format!("it breaks off {place}, after {} frames", self.count)
    }
}

/// Commas separate options in QEMU's arguments and are doubled in values.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

fn read_lossy(path: &Path) -> Result<String> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => Ok(String::from_utf8_lossy(&other.context("reading", path)?).into_owned()),
    }
}

/// Starts QEMU so that it dies with the calling thread.
fn spawn(mut qemu: Command, log: File) -> Result<Guard> {
    let parent = nix::unistd::getpid();
    qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let die_with_parent = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the request was in force.
        if nix::unistd::getppid() == parent {
            Ok(())
        } else {
            Err(io::ErrorKind::Interrupted.into())
        }
    };
    // SAFETY: the closure runs between fork and exec and makes only the
    // async-signal-safe calls prctl and getppid; its errors do not allocate.
    unsafe { qemu.pre_exec(die_with_parent) };
    tracing::debug!(command = command::display(&qemu), "starting");
    match qemu.spawn() {
        Ok(child) => Ok(Guard(child)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(LabError::Setup(format!(
            "`{QEMU}` is not installed; `ub_vm_lab::prerequisites()` installs what the lab needs"
        ))),
        Err(source) => Err(LabError::Io { context: format!("starting {QEMU}"), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;

    #[test]
    fn the_machine_dies_with_the_thread_that_runs_it() {
        let pid = thread::spawn(|| {
            let mut sleep = Command::new("sleep");
            sleep.arg("1000");
            let guard = spawn(sleep, tempfile::tempfile().unwrap()).unwrap();
            let pid = guard.0.id();
            // Dying without cleaning up, as a killed process does.
            std::mem::forget(guard);
            pid
        })
        .join()
        .unwrap();
        let pid = Pid::from_raw(pid as i32);
        assert_eq!(waitpid(pid, None), Ok(WaitStatus::Signaled(pid, Signal::SIGKILL, false)));
    }

    fn feed(bytes: &[u8]) -> (Frames, Result<(), String>) {
        let mut frames = Frames::default();
        let result = frames.take(bytes, &mut |_| {});
        (frames, result)
    }

    #[test]
    fn only_a_matching_last_frame_completes_a_result() {
        let mut bytes = Vec::new();
        Frame::Stdout(b"x".to_vec()).write(&mut bytes).unwrap();
        let (frames, result) = feed(&bytes);
        assert_eq!(result, Ok(()));
        assert!(!frames.complete);
        assert!(frames.broken_off().contains("without a last frame, after 1 frames"));

        let mut missing = bytes.clone();
        Frame::End(2).write(&mut missing).unwrap();
        assert!(feed(&missing).1.unwrap_err().contains("sent 2 frames, 1 arrived"));

        Frame::End(1).write(&mut bytes).unwrap();
        assert!(feed(&bytes).0.complete);
        let (frames, result) = feed(&bytes[..bytes.len() - 1]);
        assert_eq!(result, Ok(()));
        assert!(frames.broken_off().contains("inside a frame"));
    }

    #[test]
    fn endless_output_is_cut_off() {
        let mut frames = Frames { received: MAX_RESULT - 1, ..Frames::default() };
        assert_eq!(frames.take(b"U", &mut |_| {}), Ok(()));
        assert!(frames.take(b"B", &mut |_| {}).unwrap_err().contains("exceed 1024 MiB"));
    }

    #[test]
    fn commas_in_paths_do_not_end_an_option() {
        assert_eq!(escaped(Path::new("/a,b")), "/a,,b");
    }
}

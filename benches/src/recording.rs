//! The instructions that a running server executes, recorded by single-stepping it.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{io, ptr, thread};

use anyhow::{Context as _, Result, bail, ensure};

/// Steps before anything is recorded: what the attaching disturbed.
const PASSED_OVER: usize = 20_000;
/// How long a program runs before it is recorded.
const WARM_UP: Duration = Duration::from_millis(300);
/// Room for one answer of a server.
const ANSWER_BYTES: usize = 64 << 10;
/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running program, perhaps a server under load; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    clients: Vec<thread::JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

/// What is asked of a server.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    /// Where it listens on the loopback interface.
    pub port: u16,
    /// How many clients there are.
    pub connections: usize,
    /// What each of them sends again and again.
    pub request: &'a [u8],
}

impl Server {
    /// Starts `program`, which makes its system calls on its own.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(program: &mut Command) -> Result<Self> {
        let child = program.stdout(Stdio::null()).spawn();
        let child = child.with_context(|| format!("starting {:?}", program.get_program()))?;
        let server = Self { child, clients: Vec::new(), stop: Arc::default() };
        thread::sleep(WARM_UP);
        Ok(server)
    }

    /// Starts `program`, a server, and puts `load` on it.
    ///
    /// # Errors
    /// If it cannot be started or does not answer.
    pub fn start_loaded(program: &mut Command, load: &Load<'_>) -> Result<Self> {
        let mut server = Self::start(program)?;
        let deadline = Instant::now() + PATIENCE;
        let address = (Ipv4Addr::LOCALHOST, load.port);
        while TcpStream::connect(address).is_err() {
            ensure!(Instant::now() < deadline, "{:?} does not answer", program.get_program());
            thread::sleep(Duration::from_millis(20));
        }
        for _ in 0..load.connections {
            let mut stream = TcpStream::connect(address).context("connecting")?;
            let (stop, request) = (Arc::clone(&server.stop), load.request.to_vec());
            server.clients.push(thread::spawn(move || {
                let mut answer = vec![0; ANSWER_BYTES];
                while !stop.load(Ordering::Relaxed) {
                    if stream.write_all(&request).is_err() || stream.read(&mut answer).is_err() {
                        return;
                    }
                }
            }));
        }
        thread::sleep(WARM_UP);
        Ok(server)
    }

    /// The next `steps` instructions of its first thread.
    ///
    /// # Errors
    /// If it cannot be traced.
    pub fn record(&self, steps: usize) -> Result<Recording> {
        let pid = self.child.id();
        let tracee = Tracee::attach(pid.cast_signed())?;
        let mut instructions = Vec::with_capacity(steps);
        for step in 0..PASSED_OVER + steps {
            let address = tracee.instruction_pointer()?;
            if step >= PASSED_OVER {
                instructions.push(address);
            }
            tracee.step()?;
        }
        let of = |name: &str| format!("/proc/{pid}/{name}");
        let memory = File::open(of("mem")).context("opening the server's memory")?;
        let mappings = fs::read_to_string(of("maps")).context("reading the server's mappings")?;
        Ok(Recording { memory, mappings, instructions, pid })
    }
}

/// What a server did, and its code. Good while that server runs.
#[derive(Debug)]
pub struct Recording {
    pub(crate) memory: File,
    /// Lines of `/proc/PID/maps`.
    pub(crate) mappings: String,
    /// Addresses of the instructions in the order of their execution.
    pub(crate) instructions: Vec<u64>,
    pub(crate) pid: u32,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Both only fail if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}

/// A stopped thread; goes on when dropped.
struct Tracee(libc::pid_t);

impl Tracee {
    fn attach(pid: libc::pid_t) -> Result<Self> {
        // SAFETY: these requests take no pointers.
        unsafe {
            if libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) == -1 {
                return Err(io::Error::last_os_error()).context("tracing the server");
            }
            if libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0) == -1 {
                return Err(io::Error::last_os_error()).context("stopping the server");
            }
        }
        let tracee = Self(pid);
        tracee.wait()?;
        Ok(tracee)
    }

    fn wait(&self) -> Result<()> {
        let mut status = 0;
        // SAFETY: the status is a local variable.
        let waited = unsafe { libc::waitpid(self.0, &raw mut status, libc::__WALL) };
        if waited != self.0 || !libc::WIFSTOPPED(status) {
            bail!("the server did not stop: {status:#x}");
        }
        Ok(())
    }

    fn step(&self) -> Result<()> {
        // SAFETY: no signal and no pointer is handed over.
        if unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, self.0, 0, 0) } == -1 {
            return Err(io::Error::last_os_error()).context("stepping");
        }
        self.wait()
    }

    fn instruction_pointer(&self) -> Result<u64> {
        let offset = std::mem::offset_of!(libc::user_regs_struct, rip);
        // SAFETY: reads a word of the tracee's registers, which the C library's
        // wrapper returns.
        let word = unsafe { libc::ptrace(libc::PTRACE_PEEKUSER, self.0, offset, 0) };
        Ok(word.cast_unsigned())
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // SAFETY: no pointers; it only fails if the server has ended.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, ptr::null_mut::<u8>(), 0) };
    }
}

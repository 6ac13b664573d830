//! Starts programs natively or under `ub run`, on a chosen CPU, and collects
//! what they leave behind.

use std::cell::Cell;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::cpu_time::CpuTime;
use crate::outcome::Counts;
use crate::output::{self, SessionReport};
use crate::plan::{Plan, Workload};
use crate::{Error, Result};

/// Between two looks at something that is waited for.
const TICK: Duration = Duration::from_millis(10);
/// Longer than it takes to write a session report that was begun.
const SETTLE: Duration = Duration::from_millis(50);
/// How long a program may take to start, stop or finish. Emulation is slow.
pub(super) const PATIENCE: Duration = Duration::from_secs(240);
/// How much of a program's output goes into an error.
const LOG_TAIL: usize = 4096;
/// The CPU (counted among the allowed ones) of the measured program.
pub(super) const SERVER_CPU: usize = 0;
/// The CPU of what puts load on it.
pub(super) const CLIENT_CPU: usize = 1;

/// How the measured program is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// As it is.
    Native,
    /// Under `ub run` with the plan's options.
    Ub,
    /// Under `ub run` without any.
    Plain,
    /// Under `ub run` with a hot count that nothing reaches: calls are
    /// counted, nothing is translated.
    Count,
}

/// Starts programs according to a plan.
#[derive(Debug)]
pub struct Launcher {
    plan: Plan,
    /// This driver, which pins itself and becomes the program.
    driver: PathBuf,
    started: Cell<u32>,
    /// Whether `ub` has measured what rides cost on this machine.
    appraised: Cell<bool>,
}

impl Launcher {
    /// A launcher that writes outputs and reports to the plan's scratch folder.
    ///
    /// # Errors
    /// If the running program cannot find itself (no `/proc`).
    pub fn new(plan: Plan) -> Result<Self> {
        let driver = std::env::current_exe().map_err(Error::io("looking up this program"))?;
        Ok(Self { plan, driver, started: Cell::new(0), appraised: Cell::new(false) })
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The first program that `workload` needs and that does not exist.
    pub(super) fn missing_program(&self, workload: Workload) -> Option<&Path> {
        let programs = self.plan.programs.of(workload);
        programs.into_iter().find(|program| !program.exists()).map(PathBuf::as_path)
    }

    /// Starts the program to be measured on its CPU.
    pub(super) fn server(&self, how: How, program: &Path, arguments: &[&str]) -> Result<Running> {
        self.start(how, SERVER_CPU, program, arguments, Stdio::piped())
    }

    /// Runs a load generator to its end on its own CPU; returns its output.
    pub(super) fn client(&self, program: &Path, arguments: &[&str]) -> Result<String> {
        self.start(How::Native, CLIENT_CPU, program, arguments, Stdio::null())?.finish()
    }

    /// Starts something on the CPU of the load generators and lets it run
    /// until it is dropped.
    pub(super) fn background(&self, program: &Path, arguments: &[&str]) -> Result<Running> {
        self.start(How::Native, CLIENT_CPU, program, arguments, Stdio::null())
    }

    /// A new folder for one program.
    pub(super) fn folder(&self, name: &str) -> Result<PathBuf> {
        let number = self.started.get();
        let folder = self.plan.scratch.join(format!("{name}-{number}"));
        fs::create_dir_all(&folder).map_err(Error::io(format!("creating {}", folder.display())))?;
        Ok(folder)
    }

    /// Has `ub` measure what rides cost here before anything else is measured,
    /// or it would do so beside the first program.
    fn appraise(&self) {
        if !self.appraised.replace(true) {
            let mut doctor = Command::new(&self.plan.programs.ub);
            // It fails where nothing can ride, which `ub run --require` reports.
            if let Ok(output) = doctor.args(["doctor", "--measure"]).output() {
                let text = String::from_utf8_lossy(&output.stdout);
                for line in text.lines().filter(|line| line.contains("cost of rides")) {
                    tracing::info!("ub doctor: {line}");
                }
            }
        }
    }

    fn start(
        &self,
        how: How,
        cpu: usize,
        program: &Path,
        arguments: &[&str],
        stdin: Stdio,
    ) -> Result<Running> {
        let number = self.started.replace(self.started.get() + 1);
        let file = |kind: &str| self.plan.scratch.join(format!("{number}.{kind}"));
        let report = (how != How::Native).then(|| file("report"));
        let mut command = match &report {
            None => Command::new(&self.driver),
            Some(report) => {
                self.appraise();
                let mut command = Command::new(&self.plan.programs.ub);
                command.args(["run", "--require", "--report"]).arg(report);
                command.args(ub_options(&self.plan.ub_options, how));
                command.arg("--").arg(&self.driver);
                command
            }
        };
        // Pinning happens inside the session, so that the supervisor, which
        // translates, is free to use the other CPU.
        command.arg("pin").arg(cpu.to_string()).arg("--").arg(program).args(arguments);
        let [stdout, stderr] = [file("out"), file("err")];
        let create = |path: &Path| {
            File::create(path).map_err(Error::io(format!("creating {}", path.display())))
        };
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let child = command
            .stdin(stdin)
            .stdout(create(&stdout)?)
            .stderr(create(&stderr)?)
            .spawn()
            .map_err(Error::io(format!("starting {}", command.get_program().display())))?;
        Ok(Running { child, name, stdout, stderr, report, heard: 0 })
    }
}

/// Options of `ub run` for this start.
fn ub_options(options: &[String], how: How) -> Vec<String> {
    if how == How::Plain {
        return Vec::new();
    }
    let mut options = options.to_vec();
    if how == How::Count {
        // Nothing gets hot, and the session goes on where rides do not pay.
        let own = ["--hot-count", "--ride-anyway"];
        options.retain(|option| !own.iter().any(|name| option.starts_with(name)));
        options.extend([format!("--hot-count={}", u32::MAX), "--ride-anyway".to_owned()]);
    }
    options
}

/// A started program. Killed when dropped, so that a failed measurement
/// leaves nothing behind.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
    report: Option<PathBuf>,
    /// Bytes of the standard output that [`Self::answer`] has returned.
    heard: usize,
}

impl Running {
    /// Waits for a successful end; returns standard output.
    pub(super) fn finish(&mut self) -> Result<String> {
        let status = self.wait()?;
        if !status.success() {
            return Err(self.failed(status));
        }
        fs::read_to_string(&self.stdout)
            .map_err(Error::io(format!("reading {}", self.stdout.display())))
    }

    /// Asks the program to end with `signal` and waits until it did so
    /// successfully.
    pub(super) fn stop(&mut self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).map_err(|e| Error::io(format!("signalling {}", self.name))(e.into()))?;
        self.finish().map(drop)
    }

    /// Waits until `ready` gives a value; an early end of the program is an
    /// error, as is a longer wait than [`PATIENCE`].
    pub(super) fn until<T>(
        &mut self,
        what: &str,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            if let Some(value) = ready() {
                return Ok(value);
            }
            if let Some(status) = self.try_wait()? {
                return Err(self.failed(status));
            }
            self.check_patience(start, what)?;
            thread::sleep(TICK);
        }
    }

    /// Sends a line to the program's standard input.
    pub(super) fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut();
        let stdin = stdin.ok_or_else(|| Error::Plan(format!("{} was hung up", self.name)))?;
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .map_err(Error::io(format!("writing to {}", self.name)))
    }

    /// The next line that the program writes to its standard output.
    pub(super) fn answer(&mut self, what: &str) -> Result<String> {
        let (path, heard) = (self.stdout.clone(), self.heard);
        let line = self.until(what, || {
            let text = fs::read_to_string(&path).ok()?;
            let line = text.get(heard..)?.split_once('\n')?.0;
            Some(line.to_owned())
        })?;
        self.heard += line.len() + 1;
        Ok(line)
    }

    /// Closes the program's standard input.
    pub(super) fn hang_up(&mut self) {
        drop(self.child.stdin.take());
    }

    /// The session as it is now, with the program idle; `None` for a native
    /// start. Takes about a second, the period in which reports are written, unless the
    /// session is over already, as it is where rides do not pay.
    pub(super) fn session_so_far(&mut self) -> Result<Option<Session>> {
        let Some(path) = self.report.clone() else { return Ok(None) };
        // A report that is just being written may have been counted before.
        thread::sleep(SETTLE);
        let old = version(&path);
        self.until("a new session report", || {
            let new = version(&path);
            let is_over = || read_session(&path).is_ok_and(|session| session.ended);
            ((new.is_some() && new != old) || is_over()).then_some(())
        })?;
        read_session(&path).map(Some)
    }

    /// What changes while code is still being translated: attempts, and
    /// fragments installed and retired.
    pub(super) fn progress(&mut self) -> Result<[Option<u64>; 3]> {
        let session = self.session_so_far()?;
        let number = |path: &str| session.as_ref()?.report.pointer(path)?.as_u64();
        Ok(["/translations/attempted", "/fragments_installed", "/fragments_retired"].map(number))
    }

    /// The process that does the work: a child, such as nginx's worker, if there
    /// is one.
    pub(super) fn worker(&self) -> u32 {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let first = children.ok().and_then(|list| list.split_whitespace().next()?.parse().ok());
        first.unwrap_or(pid)
    }

    /// CPU time so far of the program's threads and of its child processes,
    /// such as nginx's worker.
    pub(super) fn cpu_time(&self) -> Result<CpuTime> {
        CpuTime::of(self.child.id())
    }

    /// The ended session, counted from the state `earlier`, from which on it
    /// served `operations`; `None` for a native start.
    ///
    /// The supervisor outlives the program by a moment, so the last report
    /// may come late.
    pub(super) fn session(
        &mut self,
        earlier: Option<&Session>,
        operations: u64,
    ) -> Result<Option<Session>> {
        let Some(path) = self.report.clone() else { return Ok(None) };
        let start = Instant::now();
        loop {
            match read_session(&path) {
                Ok(mut session) if session.ended => {
                    let zero = Counts::default();
                    let earlier = earlier.map_or(&zero, |session| &session.counts);
                    session.counts = session.counts.since(earlier, operations);
                    return Ok(Some(session));
                }
                Err(error) if start.elapsed() > PATIENCE => return Err(error),
                _ => self.check_patience(start, "the last session report")?,
            }
            thread::sleep(TICK);
        }
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            self.check_patience(start, "its end")?;
            thread::sleep(TICK);
        }
    }

    fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().map_err(Error::io(format!("waiting for {}", self.name)))
    }

    fn check_patience(&self, start: Instant, what: &str) -> Result<()> {
        if start.elapsed() <= PATIENCE {
            return Ok(());
        }
        Err(Error::Timeout {
            what: format!("{}: {what}", self.name),
            seconds: PATIENCE.as_secs(),
            log: self.log(),
        })
    }

    fn failed(&self, status: ExitStatus) -> Error {
        Error::Program { program: self.name.clone(), status, log: self.log() }
    }

    /// The end of what the program printed.
    fn log(&self) -> String {
        [&self.stdout, &self.stderr]
            .into_iter()
            .filter_map(|path| fs::read(path).ok())
            .map(|data| {
                let tail = &data[data.len().saturating_sub(LOG_TAIL)..];
                String::from_utf8_lossy(tail).into_owned()
            })
            .collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Nothing sensible is left to do if this fails: the process is
            // gone or not ours to kill.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A session as a report describes it.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// What a measurement uses of it.
    pub(crate) counts: Counts,
    /// Whether it is over.
    pub(crate) ended: bool,
    /// All of it.
    pub(crate) report: Value,
}

fn read_session(path: &Path) -> Result<Session> {
    let text = fs::read(path).map_err(Error::io(format!("reading {}", path.display())))?;
    let report = serde_json::from_slice(&text)
        .map_err(|error| Error::output("ub run --report", error.to_string()))?;
    let SessionReport { counts, ended } = output::session(&report)?;
    Ok(Session { counts, ended, report })
}

/// Changes whenever the report is replaced.
fn version(path: &Path) -> Option<(u64, SystemTime)> {
    let data = fs::metadata(path).ok()?;
    Some((data.ino(), data.modified().ok()?))
}

/// A loopback address on which nothing listens at the moment.
pub(super) fn free_address() -> Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(Error::io("looking for a free port on the loopback interface"))
}

/// Moves this process to the `index`-th of its allowed CPUs (the last one if
/// there are fewer) and replaces it with `program`.
///
/// # Errors
/// Always, as it only returns when the program could not be started.
pub fn pin_and_exec(
    index: usize,
    program: &OsString,
    arguments: &[OsString],
) -> Result<Infallible> {
    let pid = Pid::from_raw(0);
    let failed = |e: nix::Error| Error::io("choosing a CPU")(e.into());
    let allowed = sched_getaffinity(pid).map_err(failed)?;
    let cpus: Vec<usize> =
        (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true)).collect();
    if let Some(cpu) = cpus.get(index).or(cpus.last()) {
        let mut set = CpuSet::new();
        set.set(*cpu).map_err(failed)?;
        sched_setaffinity(pid, &set).map_err(failed)?;
    }
    let source = Command::new(program).args(arguments).exec();
    Err(Error::Io { what: format!("starting {}", program.display()), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_counts_gets_nothing_hot_and_is_not_let_go() {
        let options = ["--hot-count=8", "--verbose", "--ride-anyway"].map(str::to_owned);
        assert_eq!(ub_options(&options, How::Ub), options);
        assert_eq!(ub_options(&options, How::Plain), [""; 0]);
        assert_eq!(
            ub_options(&options, How::Count),
            ["--verbose", "--hot-count=4294967295", "--ride-anyway"]
        );
    }
}

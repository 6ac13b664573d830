//! What rides cost on this machine, measured by a process that does the same
//! work natively and in a session of its own.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, alarm, fork, getppid};
use serde::{Deserialize, Serialize};
use tracing::Level;
use ub_ebpf_fallback::costs::exercise::{Exercise, Times, Work, Workbench};
use ub_ebpf_fallback::costs::median;

use crate::abi::{ABI_VERSION, NATIVE_NEVER, SessionConfig};
use crate::device::{Device, OpenError, Session};
use crate::host::Environment;
use crate::kernel::Kernel as _;
use crate::launch::{self, Log};
use crate::report::Recorder;
use crate::session::{Supervision, Watched};

/// Share of its calls that work must ride to be called ridden.
const RIDDEN: f64 = 0.95;
/// How long each kind of work may take to get there: an emulator is slow, and a
/// change of work is noticed within two seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Without a new fragment for so long, work has got all that it is going to get.
const SETTLED: Duration = Duration::from_millis(500);
/// Seconds after which the process that does the work is ended, whatever keeps
/// it: more than it may take.
const LIMIT_S: u32 = 60;
/// Passages that make a gap hot.
const HOT_COUNT: u32 = 64;
/// Longest gap, in nanoseconds.
const LONGEST_GAP_NS: u64 = 1_000_000_000;

/// Why no ride was timed.
#[derive(Debug, thiserror::Error)]
pub enum NotMeasured {
    /// There can be no session.
    #[error(transparent)]
    NoSession(#[from] OpenError),
    /// The module refuses rides on this CPU.
    #[error("the module refuses rides on this CPU; `ub doctor` says why")]
    Refused,
    /// The work went on natively.
    #[error("{0:?} did not ride within {PATIENCE:?}")]
    Native(
        /// Which.
        Work,
    ),
    /// A system call failed.
    #[error(transparent)]
    System(#[from] io::Error),
    /// The process that did the work said so.
    #[error("{0}")]
    Other(
        /// Why.
        String,
    ),
}

/// What the process that does the work says.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Measured(Exercise),
    Not(String),
}

/// Measures it, in one to several seconds. The caller has a single thread.
///
/// # Errors
/// See [`NotMeasured`].
pub fn measure() -> Result<Exercise, NotMeasured> {
    // Before a process is made for nothing.
    if Device::open()?.info().refusals != 0 {
        return Err(NotMeasured::Refused);
    }
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let asker = Pid::this();
    // SAFETY: this process has one thread, so the child may do anything.
    let child = match unsafe { fork() }.map_err(io::Error::from)? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            alarm::set(LIMIT_S);
            // A panic must not unwind into the caller's frames, which this
            // process has a copy of.
            let told = catch_unwind(AssertUnwindSafe(|| {
                end_with(asker)?;
                tell(&mut theirs)
            }));
            // SAFETY: _exit has no preconditions.
            unsafe { libc::_exit(i32::from(!matches!(told, Ok(Ok(()))))) }
        }
    };
    drop(theirs);
    let mut bytes = Vec::new();
    let read = ours.read_to_end(&mut bytes);
    // With SIGCHLD ignored there is nothing to wait for.
    let _ = waitpid(child, None);
    read?;
    match serde_json::from_slice(&bytes) {
        Ok(Answer::Measured(exercise)) => {
            // Once more, behind the rides and outside of their session: where the
            // machine was slow at first, its clock low or others busy, that must
            // not pass for a gain.
            let again = native(&Workbench::new()?)?;
            Ok(Exercise { native: exercise.native.shorter(&again), ..exercise })
        }
        Ok(Answer::Not(reason)) => Err(NotMeasured::Other(reason)),
        Err(error) => Err(NotMeasured::Other(format!("no answer: {error}"))),
    }
}

/// Lets this process be killed when `parent`, its parent, ends: nobody would wait
/// for its answer.
fn end_with(parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // It may have ended before.
    if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
}

/// Does the work and says what came of it.
fn tell(to: &mut UnixStream) -> io::Result<()> {
    let answer = match exercised() {
        Ok(exercise) => Answer::Measured(exercise),
        Err(reason) => Answer::Not(reason.to_string()),
    };
    to.write_all(&serde_json::to_vec(&answer)?)
}

/// Does all work natively, then as the only member of a session, and, by whoever
/// asked for this, natively again.
fn exercised() -> Result<Exercise, NotMeasured> {
    let bench = Workbench::new()?;
    let native = native(&bench)?;
    let session = join()?;
    let mut ridden = [0.0; Work::ALL.len()];
    for (ns, work) in ridden.iter_mut().zip(Work::ALL) {
        *ns = time_ridden(&bench, &session, work)?;
    }
    Ok(Exercise { native, ridden: Times::of(ridden) })
}

/// The times of all work natively.
fn native(bench: &Workbench) -> io::Result<Times> {
    let mut times = [0.0; Work::ALL.len()];
    for (ns, work) in times.iter_mut().zip(Work::ALL) {
        *ns = time_native(bench, work)?;
    }
    Ok(Times::of(times))
}

/// Makes this process the only member of a session that rides as soon as it
/// can and measures no more than any other.
fn join() -> Result<Session, NotMeasured> {
    let device = Device::open()?;
    let info = *device.info();
    let mut config = SessionConfig {
        abi_version: ABI_VERSION,
        min_rate: 1,
        hot_count: HOT_COUNT,
        gap_short_ns: LONGEST_GAP_NS,
        gap_max_ns: LONGEST_GAP_NS,
        native_interval: NATIVE_NEVER,
        ..SessionConfig::default()
    };
    let supervised = device.create_session(&mut config)?;
    let session = supervised.try_clone()?;
    let recorder =
        Recorder::new(&["ub".into(), "(measuring this machine)".into()], &Environment::detect());
    let watched = Watched { recorder, report: None };
    let supervision = Supervision::new(supervised, &info, &config, None, watched);
    launch::supervisor(supervision, Log { file: None, level: Level::INFO })?.enroll()?;
    Ok(session)
}

/// The time of `work` natively. Done for as long as settled work rides: the first
/// times are slow, and that must not pass for a gain.
fn time_native(bench: &Workbench, work: Work) -> io::Result<f64> {
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < SETTLED {
        times.push(bench.time(work)?);
    }
    Ok(median(&mut times))
}

/// The time of `work` once it rides, and once no code is added to it any more:
/// fragments are made anew as more is learned of what they lead to.
fn time_ridden(bench: &Workbench, session: &Session, work: Work) -> Result<f64, NotMeasured> {
    let start = Instant::now();
    let (mut fragments, mut since, mut times) = (0, start, Vec::new());
    loop {
        let before = session.stats()?;
        let ns = bench.time(work)?;
        let after = session.stats()?;
        let calls = after.syscalls.saturating_sub(before.syscalls).max(1);
        let rides = after.ridden.saturating_sub(before.ridden) as f64 >= RIDDEN * calls as f64;
        let now = Instant::now();
        if !rides || after.fragments_installed != fragments {
            (fragments, since) = (after.fragments_installed, now);
            times.clear();
        }
        if rides {
            times.push(ns);
        }
        if now - since >= SETTLED || (rides && now - start >= PATIENCE) {
            return Ok(median(&mut times));
        }
        if now - start >= PATIENCE {
            return Err(NotMeasured::Native(work));
        }
    }
}

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
use ub_ebpf_fallback::costs::exercise::{Exercise, Times, Work, Workbench, code_alone_ns};
use ub_ebpf_fallback::costs::median;

use crate::abi::{ABI_VERSION, NATIVE_NEVER, SessionConfig, Stats, Stop};
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
/// Samples that make a gap hot.
const HOT_COUNT: u32 = 64;
/// Passages for one sample: as many as in other sessions where nearly all calls ride.
const SAMPLE_INTERVAL: u32 = 128;
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
    #[error("{work:?} did not ride within {PATIENCE:?}{}", .reason.map(in_words).unwrap_or_default())]
    Native {
        /// Which.
        work: Work,
        /// Why no ride began behind most of its calls, or ended before the next one.
        reason: Option<Stop>,
    },
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
    /// With the number of the reason.
    Native(Work, Option<u32>),
    Not(String),
}

fn in_words(reason: Stop) -> String {
    format!(", mostly for this reason: {}", reason.name())
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
        Ok(Answer::Native(work, reason)) => {
            Err(NotMeasured::Native { work, reason: reason.and_then(Stop::from_number) })
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
        Err(NotMeasured::Native { work, reason }) => {
            Answer::Native(work, reason.map(|reason| reason as u32))
        }
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
    Ok(Exercise { native, ridden: Times::of_rides(ridden) })
}

/// The times of all work natively. The code is timed alone: what calls take longer with
/// it would be a small difference of what a noisy machine makes large.
fn native(bench: &Workbench) -> io::Result<Times> {
    Ok(Times {
        null_call_ns: time_native(|| bench.time(Work::NullCalls))?,
        code_alone_ns: time_native(|| Ok(code_alone_ns()))?,
        message_ns: time_native(|| bench.time(Work::Messages))?,
    })
}

/// Makes this process the only member of a session that rides as soon as it
/// can and measures no more than any other.
fn join() -> Result<Session, NotMeasured> {
    let device = Device::open()?;
    let info = *device.info();
    let mut config = SessionConfig {
        abi_version: ABI_VERSION,
        sample_interval: SAMPLE_INTERVAL,
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

/// What `time` says of work natively. Done for as long as settled work rides: the
/// first times are slow, and that must not pass for a gain.
fn time_native(time: impl Fn() -> io::Result<f64>) -> io::Result<f64> {
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < SETTLED {
        times.push(time()?);
    }
    Ok(median(&mut times))
}

/// The time of `work` once it rides, and once no code is added to it any more:
/// fragments are made anew as more is learned of what they lead to.
fn time_ridden(bench: &Workbench, session: &Session, work: Work) -> Result<f64, NotMeasured> {
    let (start, at_start) = (Instant::now(), session.stats()?);
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
            return Err(NotMeasured::Native { work, reason: kept_native(&at_start, &after) });
        }
    }
}

/// Why most calls between two states of a session were native. Those that nobody looked at
/// count as [`Stop::NoFragment`], whatever it is that keeps them: they weigh nothing.
fn kept_native(before: &Stats, after: &Stats) -> Option<Stop> {
    let count = |stop: Stop| {
        let counted = |stats: &Stats| stats.refused[stop as usize] + stats.stops[stop as usize];
        counted(after).saturating_sub(counted(before))
    };
    let others = Stop::ALL.iter().copied().filter(|stop| *stop != Stop::NoFragment);
    let looked_at = after.sampled.saturating_sub(before.sampled);
    let without_fragment = looked_at.saturating_sub(others.clone().map(count).sum());
    let (most, reason) = others
        .map(|stop| (count(stop), stop))
        .chain([(count(Stop::NoFragment).min(without_fragment), Stop::NoFragment)])
        .max_by_key(|(count, _)| *count)?;
    (most > 0).then_some(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(sampled: u64, refused: &[(Stop, u64)], stops: &[(Stop, u64)]) -> Stats {
        let mut stats = Stats { sampled, ..Stats::default() };
        for (reason, count) in refused {
            stats.refused[*reason as usize] = *count;
        }
        for (reason, count) in stops {
            stats.stops[*reason as usize] = *count;
        }
        stats
    }

    #[test]
    fn what_keeps_work_from_riding_is_named() {
        let reason = |sampled: u64, refused: &[_], stops: &[_]| {
            let warm = stats(500, &[(Stop::NoFragment, 900_000)], &[(Stop::Guard, 400)]);
            let mut after = stats(500 + sampled, refused, stops);
            for stop in Stop::ALL {
                after.refused[*stop as usize] += warm.refused[*stop as usize];
                after.stops[*stop as usize] += warm.stops[*stop as usize];
            }
            kept_native(&warm, &after)
        };
        use Stop::{BranchMiss, NoFragment, Poll, SyscallWork};
        // Audited: only what is looked at gets as far as to see that.
        let audited = [(NoFragment, 127_000), (SyscallWork, 1000)];
        assert_eq!(reason(1000, &audited, &[]), Some(SyscallWork));
        assert_eq!(reason(1000, &[(NoFragment, 127_000), (Poll, 30)], &[]), Some(NoFragment));
        assert_eq!(reason(1000, &[(NoFragment, 200)], &[(BranchMiss, 127_000)]), Some(BranchMiss));
        assert_eq!(reason(0, &[], &[]), None);
    }

    #[test]
    fn the_reason_is_told_where_there_is_one() {
        let said = |reason| NotMeasured::Native { work: Work::NullCalls, reason }.to_string();
        assert_eq!(
            said(Some(Stop::SyscallWork)),
            "NullCalls did not ride within 10s, mostly for this reason: syscall_work"
        );
        assert_eq!(said(None), "NullCalls did not ride within 10s");
    }
}

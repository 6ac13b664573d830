//! Whether rides can pay on this machine at all.
//!
//! Where rides save less than a tenth of a system call, or cost more than one, gaps
//! do not pay, and finding that out gap by gap takes each program seconds in which
//! it is slower. So it is measured once, by an [`exercise`], and remembered until
//! the next boot.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sys::prctl;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use ub_ebpf_fallback::costs::exercise::Exercise;

use crate::exercise::{self, NotMeasured};
use crate::host::read_line;
use crate::runtime_folder::RuntimeFolder;

/// The file in which it is remembered.
const FILE: &str = "machine.json";

/// What a measurement holds for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Validity {
    boot: Option<String>,
    /// The note with the module's build ID, which differs with its code.
    module: Option<Vec<u8>>,
    ub: String,
}

impl Validity {
    fn now() -> Self {
        Self {
            boot: read_line("/proc/sys/kernel/random/boot_id"),
            module: fs::read("/sys/module/ub/notes/.note.gnu.build-id").ok(),
            ub: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// What is remembered.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    validity: Validity,
    exercise: Exercise,
}

/// What was measured since the machine was booted and the module built, if
/// anything was.
#[must_use]
pub fn remembered() -> Option<Exercise> {
    RuntimeFolder::existing().find_map(|folder| remembered_in(&folder, &Validity::now()))
}

fn remembered_in(folder: &RuntimeFolder, validity: &Validity) -> Option<Exercise> {
    let bytes = folder.read(FILE).ok()?;
    let remembered: Remembered = serde_json::from_slice(&bytes).ok()?;
    (remembered.validity == *validity).then_some(remembered.exercise)
}

/// Keeps `exercise` until the next boot, in the first folder that can be had.
fn remember(exercise: Exercise) {
    let kept = |folder| remember_in(&folder, &Validity::now(), exercise).is_ok();
    if !RuntimeFolder::usable().any(kept) {
        warn!("no folder to remember in what rides cost; it will be measured again");
    }
}

fn remember_in(folder: &RuntimeFolder, validity: &Validity, exercise: Exercise) -> io::Result<()> {
    let remembered = Remembered { validity: validity.clone(), exercise };
    folder.write(FILE, &serde_json::to_vec(&remembered)?)
}

/// Measures now, unless it is known. The caller has a single thread.
///
/// # Errors
/// See [`NotMeasured`].
pub fn measure() -> Result<Exercise, NotMeasured> {
    if let Some(exercise) = remembered() {
        return Ok(exercise);
    }
    let exercise = exercise::measure()?;
    remember(exercise);
    Ok(exercise)
}

/// One sentence for people about where rides save next to nothing or cost more than
/// calls, see [`Exercise::is_gain`].
#[must_use]
pub fn why_native(exercise: &Exercise) -> String {
    let Exercise { native, ridden } = exercise;
    format!(
        "rides do not pay on this machine: a call that does nothing takes {:.0} ns in a ride, \
         {:.0} ns natively, one that passes a message {:.0} and {:.0} ns; less than a tenth is saved \
         (--ride-anyway rides all the same)",
        ridden.null_call_ns, native.null_call_ns, ridden.message_ns, native.message_ns
    )
}

/// A process of `ub doctor --measure`, which remembers what it measures. It ends
/// with this value.
#[derive(Debug)]
struct Measuring(Child, ChildStdout);

impl Measuring {
    /// A process of its own, started anew: whoever has a session to supervise must
    /// not wait, and what it has open must not be shared.
    fn start() -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["doctor", "--measure"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        // A supervisor that is killed must not leave it behind.
        let die_with_parent = || prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from);
        // SAFETY: prctl is a system call and safe behind fork.
        let mut child = unsafe { command.pre_exec(die_with_parent) }.spawn()?;
        let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self(child, output))
    }

    /// Waits for its end.
    fn finish(mut self) -> io::Result<()> {
        io::copy(&mut self.1, &mut io::sink()).map(drop)
    }
}

impl Drop for Measuring {
    fn drop(&mut self) {
        let _ = self.0.kill();
        // With SIGCHLD ignored there is nothing to wait for.
        let _ = self.0.wait();
    }
}

/// What a session knows about its machine.
#[derive(Debug)]
pub struct Machine(State);

#[derive(Debug)]
enum State {
    Unknown,
    Measuring(Measuring),
    Known(Exercise),
    /// It could not be measured: the gaps tell.
    Unmeasured,
}

impl Machine {
    /// With what is remembered.
    #[must_use]
    pub fn look() -> Self {
        Self(remembered().map_or(State::Unknown, State::Known))
    }

    /// There are gaps worth riding: begins to measure, unless that was done.
    pub fn measure_once(&mut self) {
        if matches!(self.0, State::Unknown) {
            self.0 = match Measuring::start() {
                Ok(measuring) => State::Measuring(measuring),
                Err(error) => {
                    warn!(%error, "cannot measure what rides cost here");
                    State::Unmeasured
                }
            };
        }
    }

    /// What becomes readable when the measurement is over.
    #[must_use]
    pub fn pending(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            State::Measuring(Measuring(_, output)) => Some(output.as_fd()),
            _ => None,
        }
    }

    /// Takes over the result of the measurement, waiting for it if necessary.
    pub fn finish(&mut self) {
        let State::Measuring(measuring) = std::mem::replace(&mut self.0, State::Unmeasured) else {
            return;
        };
        let _ = measuring.finish();
        let exercise = remembered();
        info!(
            ?exercise,
            gain = exercise.map(|exercise| exercise.is_gain()),
            "what rides cost here"
        );
        self.0 = exercise.map_or(State::Unmeasured, State::Known);
    }

    /// Why everything is to run natively, if that is known.
    #[must_use]
    pub fn why_native(&self) -> Option<String> {
        match &self.0 {
            State::Known(exercise) if !exercise.is_gain() => Some(why_native(exercise)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use ub_ebpf_fallback::costs::exercise::Times;

    use super::*;

    fn exercise() -> Exercise {
        let times = |ns| Times { null_call_ns: ns, code_alone_ns: 2.0 * ns, message_ns: 3.0 * ns };
        Exercise { native: times(100.0), ridden: times(120.0) }
    }

    #[test]
    fn it_is_remembered_until_the_next_boot() {
        let parent = tempfile::tempdir().unwrap();
        let place = RuntimeFolder::make_in(parent.path()).unwrap();
        let now = Validity::now();
        assert!(now.boot.is_some());
        assert_eq!(remembered_in(&place, &now), None);
        remember_in(&place, &now, exercise()).unwrap();
        assert_eq!(remembered_in(&place, &now), Some(exercise()));
        let rebooted = Validity { boot: Some("another".to_owned()), ..now.clone() };
        assert_eq!(remembered_in(&place, &rebooted), None);
        let rebuilt = Validity { module: Some(vec![1]), ..now.clone() };
        assert_eq!(remembered_in(&place, &rebuilt), None);
        place.write(FILE, b"{").unwrap();
        assert_eq!(remembered_in(&place, &now), None);
    }

    #[test]
    fn only_what_saves_next_to_nothing_keeps_programs_native() {
        assert_eq!(Machine(State::Unknown).why_native(), None);
        assert_eq!(Machine(State::Unmeasured).why_native(), None);
        let loss = exercise();
        assert!(Machine(State::Known(loss)).why_native().unwrap().contains("120 ns in a ride"));
        let ridden = Times { null_call_ns: 95.0, code_alone_ns: 190.0, message_ns: 285.0 };
        let little = Exercise { native: loss.native, ridden };
        assert!(Machine(State::Known(little)).why_native().is_some());
        let gain = Exercise { native: loss.ridden, ridden: loss.native };
        assert_eq!(Machine(State::Known(gain)).why_native(), None);
    }
}

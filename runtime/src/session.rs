//! The supervisor's main loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{info, warn};
use ub_report::Report;

use crate::abi::{Info, SessionConfig};
use crate::device::{ProcessError, Session};
use crate::inspect::{Answer, Question, Server};
use crate::kernel::{Btc, Kernel, Reading};
use crate::machine::Machine;
use crate::report::Recorder;
use crate::supervisor::{Holds, Slowed, Supervisor, Translator};

/// Time between two samples of the counters, and two writes of the report
/// file.
const PERIOD: Duration = Duration::from_secs(1);
/// The same right after the start.
const SHORTEST_PERIOD: Duration = Duration::from_millis(50);
/// How much nicer a supervisor is than whoever started it. Translating takes
/// seconds of processor time while large programs are new. Where programs leave no processor
/// idle it gets a quarter of one beside one busy thread by this, and a fourteenth beside
/// four (`sched_prio_to_weight` of the kernel): being learned costs them less, and it is still
/// done. With 10, eight busy threads on two emulated processors were not learned in 50 s.
const NICER: i32 = 5;
/// Time without any report after which there is time for what can wait.
const LULL: Duration = Duration::from_secs(1);

/// Why [`Supervision::until`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Every member of the session has ended.
    Ended,
    /// The caller's own descriptor is readable.
    Caller,
    /// Rides turned out not to pay on this machine, see
    /// [`native_reason`](Supervision::native_reason); said once. Whoever goes on supervises a
    /// session that only counts, which costs each system call a little.
    Native,
}

/// What tells about a session.
#[derive(Debug)]
pub struct Watched {
    /// Collects the report.
    pub recorder: Recorder,
    /// Where it is written, every second and at the end.
    pub report: Option<PathBuf>,
}

/// A session at work, with what tells about it.
#[derive(Debug)]
pub struct Supervision {
    supervisor: Supervisor<Session, Translator>,
    recorder: Recorder,
    report: Option<PathBuf>,
    server: Option<Server>,
    /// Of sessions that leave programs alone where rides cannot pay.
    machine: Option<Machine>,
    cycles_khz: u32,
    start: Instant,
    next_sample: Instant,
    lull: Lull,
    gives_way: bool,
    /// That the machine does not pay was found, and is still to be said.
    to_say_native: bool,
    ended: bool,
}

/// Finds out when no code is asked for.
///
/// Programs get hot soon after they start, and what they need is translated one
/// after the other: whatever takes long in between keeps all of it waiting.
#[derive(Debug)]
struct Lull {
    reports: u64,
    since: Instant,
}

impl Lull {
    fn new(now: Instant) -> Self {
        Self { reports: 0, since: now }
    }

    /// Whether none came for a while, if there were `reports` by `now`.
    fn has_come(&mut self, reports: u64, now: Instant) -> bool {
        if reports != self.reports {
            *self = Self { reports, since: now };
        }
        now.saturating_duration_since(self.since) >= LULL
    }
}

impl Supervision {
    /// Takes over `session`, which holds to `config`. Fragments keep to the limits
    /// in `info`. `slowed` is for tests.
    #[must_use]
    pub fn new(
        session: Session,
        info: &Info,
        config: &SessionConfig,
        slowed: Option<Slowed>,
        watched: Watched,
    ) -> Self {
        let translator = Translator::new(info).slow_down(slowed);
        let Watched { recorder, report } = watched;
        Self {
            supervisor: Supervisor::new(session, translator).judge(config, info.cycles_khz),
            recorder,
            report,
            server: None,
            machine: None,
            cycles_khz: info.cycles_khz,
            start: Instant::now(),
            next_sample: Instant::now(),
            lull: Lull::new(Instant::now()),
            gives_way: false,
            to_say_native: false,
            ended: false,
        }
    }

    /// For how long what does not pay stays away. Without effect on sessions that
    /// keep it.
    #[must_use]
    pub fn hold_for(mut self, holds: Holds) -> Self {
        self.supervisor = self.supervisor.hold_for(holds);
        self
    }

    /// Has programs run natively where rides save next to nothing: that is measured
    /// when there is something to ride, see [`Machine`]. Without effect on sessions
    /// that keep what does not pay.
    #[must_use]
    pub fn heed_costs(mut self) -> Self {
        if self.supervisor.judges() {
            self.machine = Some(Machine::look());
            self.heed_machine();
        }
        self
    }

    /// Has programs go where they were seen to go in earlier sessions, and leaves
    /// what this one sees to later ones. Without effect on sessions that keep what
    /// does not pay.
    #[must_use]
    pub fn remember_programs(mut self) -> Self {
        if self.supervisor.judges() {
            self.supervisor = self.supervisor.remember_programs();
        }
        self
    }

    fn heed_machine(&mut self) {
        if let Some(reason) = self.machine.as_ref().and_then(Machine::why_native) {
            self.supervisor.stay_native();
            self.recorder.stays_native(reason);
            self.to_say_native = true;
        }
    }

    /// Why nothing is to ride in this session, if rides are known not to pay on this
    /// machine.
    #[must_use]
    pub fn native_reason(&self) -> Option<&str> {
        self.recorder.report().native_reason.as_deref()
    }

    /// Lets others look into the session, which is served by this process
    /// from now on. Without that everything else works.
    pub fn listen(&mut self) {
        match Server::start() {
            Ok(server) => self.server = Some(server),
            Err(error) => warn!(%error, "nobody can look into this session"),
        }
    }

    /// Does in advance what would keep the first hot gap waiting.
    pub fn warm_up(&mut self) {
        self.supervisor.warm_up();
    }

    /// The program runs as the process `pid`.
    pub fn started(&mut self, pid: u32) {
        self.recorder.started(pid);
    }

    /// Takes the running process `pid` into the session.
    ///
    /// # Errors
    /// Why it cannot be a member.
    pub fn attach(&mut self, pid: u32) -> Result<(), ProcessError> {
        self.session().attach(pid)?;
        self.recorder.attached(pid);
        Ok(())
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> &Session {
        self.supervisor.kernel()
    }

    /// Handles reports until there is a reason to [`Wake`] the caller, who says with
    /// `caller` what else to wait for.
    ///
    /// # Errors
    /// When the session cannot be used any more; its members go on natively
    /// once it is dropped.
    pub fn until(&mut self, caller: Option<BorrowedFd<'_>>) -> io::Result<Wake> {
        self.give_way();
        let mut more = false;
        // Members may have joined since it said that all had ended.
        self.ended = false;
        loop {
            if std::mem::take(&mut self.to_say_native) {
                return Ok(Wake::Native);
            }
            let work = self.supervisor.next_work();
            let next = work.map_or(self.next_sample, |work| work.min(self.next_sample));
            let left = next.saturating_duration_since(Instant::now());
            let timeout = if more {
                PollTimeout::ZERO
            } else {
                // Rounded up, or the last millisecond would be spent spinning.
                PollTimeout::try_from(left.as_millis() as i64 + 1).unwrap_or(PollTimeout::MAX)
            };
            let session = self.supervisor.kernel().as_fd();
            let server = self.server.as_ref().map(AsFd::as_fd);
            let machine = self.machine.as_ref().and_then(Machine::pending);
            let (caller_at, client_at) = (1, 1 + usize::from(caller.is_some()));
            let machine_at = client_at + usize::from(server.is_some());
            let mut fds: Vec<_> = [Some(session), caller, server, machine]
                .into_iter()
                .flatten()
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
            let caller_ready = caller.is_some() && ready(caller_at);
            let client_ready = server.is_some() && ready(client_at);
            let measured = machine.is_some() && ready(machine_at);

            let reading = self.supervisor.work()?;
            if reading == Reading::Ended {
                self.ended = true;
                self.write_report();
                return Ok(Wake::Ended);
            }
            more = reading == Reading::Some;
            if let Some(machine) = &mut self.machine
                && (measured || self.supervisor.counters().installed > 0)
            {
                if measured {
                    machine.finish();
                    self.heed_machine();
                } else {
                    machine.measure_once();
                }
            }
            if client_ready {
                self.serve();
            }
            if caller_ready {
                return Ok(Wake::Caller);
            }
            if Instant::now() >= self.next_sample {
                self.write_report();
                // Programs that end soon are to be seen, too.
                let period = (self.start.elapsed() / 2).clamp(SHORTEST_PERIOD, PERIOD);
                self.next_sample = Instant::now() + period;
            }
        }
    }

    /// Lets programs have the processors first. Not before they are started: they
    /// would inherit it.
    fn give_way(&mut self) {
        if !std::mem::replace(&mut self.gives_way, true) {
            // SAFETY: nice is a system call without pointers. Where it is not
            // allowed to, which cannot be on the way down, nothing changes.
            unsafe { libc::nice(NICER) };
        }
    }

    /// Answers one question about the session.
    fn serve(&mut self) {
        let Some(server) = self.server.take() else { return };
        server.serve(|question| match question {
            Question::Report => match self.record_with_names() {
                Ok(()) => Answer::Report(Box::new(self.recorder.report().clone())),
                Err(error) => Answer::Error(error.to_string()),
            },
            Question::Fragment { space, address } => {
                Answer::Fragment(self.supervisor.fragment(Btc(space), address).map(Box::new))
            }
        });
        self.server = Some(server);
    }

    /// The report as it is now.
    ///
    /// # Errors
    /// When the session cannot be used any more.
    pub fn report(&mut self) -> io::Result<&Report> {
        self.record_with_names()?;
        Ok(self.recorder.report())
    }

    /// Writes the report of a session that its supervisor leaves; its members go on
    /// natively once it is dropped.
    pub fn finish(&mut self) {
        self.ended = true;
        self.write_report();
        let counters = self.supervisor.counters();
        info!(installed = counters.installed, failures = ?counters.failures, "session over");
    }

    /// Takes over the present state of the session.
    fn record(&mut self) -> io::Result<()> {
        let stats = self.supervisor.kernel().stats()?;
        self.recorder.observe(self.supervisor.processes());
        // Those of address spaces that ended are remembered.
        let gaps = self.supervisor.kernel().gaps()?;
        self.recorder.gaps(&gaps, self.cycles_khz, self.supervisor.counters());
        self.recorder.update(&stats, self.supervisor.counters(), self.ended);
        Ok(())
    }

    /// The same, and the names that are not known yet.
    fn record_with_names(&mut self) -> io::Result<()> {
        self.record()?;
        self.recorder.name_gaps();
        Ok(())
    }

    fn write_report(&mut self) {
        let lull = self.lull.has_come(self.supervisor.counters().reports, Instant::now());
        if lull || self.ended {
            self.supervisor.keep_programs();
        }
        // Nobody can ask any more either, and symbol tables take long to read.
        if self.ended && self.report.is_none() {
            return;
        }
        let recorded = if lull || self.ended { self.record_with_names() } else { self.record() };
        let Some(path) = &self.report else { return };
        if let Err(error) = recorded.and_then(|()| self.recorder.write(path)) {
            warn!(path = %path.display(), %error, "report not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lull_comes_when_no_report_did_for_a_while() {
        let start = Instant::now();
        let mut lull = Lull::new(start);
        assert!(!lull.has_come(0, start));
        assert!(!lull.has_come(1, start + LULL), "one came since");
        assert!(!lull.has_come(2, start + LULL * 2), "and another");
        assert!(!lull.has_come(2, start + LULL * 3 - Duration::from_millis(1)));
        assert!(lull.has_come(2, start + LULL * 3));
        assert!(!lull.has_come(3, start + LULL * 4));
    }
}

//! The supervisor's main loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{info, warn};

use crate::abi::{Info, SessionConfig, Stats};
use crate::device::Session;
use crate::kernel::{Kernel, Reading};
use crate::report::Recorder;
use crate::supervisor::{Counters, Slowed, Supervisor, Translator};

/// Time between two writes of the report file.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

/// Why [`Supervision::until`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Every member of the session has ended.
    Ended,
    /// The caller's own descriptor is readable.
    Caller,
}

/// A session at work, with the file that tells about it.
#[derive(Debug)]
pub struct Supervision {
    supervisor: Supervisor<Session, Translator>,
    report: Option<(Recorder, PathBuf)>,
    next_report: Instant,
    ended: bool,
}

impl Supervision {
    /// Takes over `session`, which holds to `config`. Fragments keep to the limits
    /// in `info`. `report` is written to its path every second and at the end; `slowed` is for tests.
    #[must_use]
    pub fn new(
        session: Session,
        info: &Info,
        config: &SessionConfig,
        slowed: Option<Slowed>,
        report: Option<(Recorder, PathBuf)>,
    ) -> Self {
        let translator = Translator::new(info).slow_down(slowed);
        Self {
            supervisor: Supervisor::new(session, translator).judge(config, info.cycles_khz),
            report,
            next_report: Instant::now(),
            ended: false,
        }
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> &Session {
        self.supervisor.kernel()
    }

    /// Handles reports until the session ends or `caller` becomes readable.
    ///
    /// # Errors
    /// When the session cannot be used any more; its members go on natively
    /// once it is dropped.
    pub fn until(&mut self, caller: Option<BorrowedFd<'_>>) -> io::Result<Wake> {
        let mut more = false;
        loop {
            let next_report = self.report.is_some().then_some(self.next_report);
            let next = next_report.into_iter().chain(self.supervisor.next_work()).min();
            let timeout = match next {
                _ if more => PollTimeout::ZERO,
                Some(next) => {
                    let left = next.saturating_duration_since(Instant::now());
                    // Rounded up, or the last millisecond would be spent spinning.
                    PollTimeout::try_from(left.as_millis() as i64 + 1).unwrap_or(PollTimeout::MAX)
                }
                None => PollTimeout::NONE,
            };
            let session = self.supervisor.kernel().as_fd();
            let mut fds = vec![PollFd::new(session, PollFlags::POLLIN)];
            fds.extend(caller.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let caller_ready = fds.get(1).and_then(PollFd::any).unwrap_or(false);

            let reading = self.supervisor.work()?;
            if reading == Reading::Ended {
                self.ended = true;
                self.write_report();
                return Ok(Wake::Ended);
            }
            more = reading == Reading::Some;
            if caller_ready {
                return Ok(Wake::Caller);
            }
            if self.report.is_some() && Instant::now() >= self.next_report {
                self.write_report();
                self.next_report = Instant::now() + REPORT_PERIOD;
            }
        }
    }

    /// The counters of module and supervisor.
    ///
    /// # Errors
    /// When the session cannot be used any more.
    pub fn figures(&self) -> io::Result<(Stats, &Counters)> {
        Ok((self.supervisor.kernel().stats()?, self.supervisor.counters()))
    }

    /// Writes the report of a session that its supervisor leaves.
    pub fn finish(&mut self) {
        self.ended = true;
        self.write_report();
        let counters = self.supervisor.counters();
        info!(installed = counters.installed, failures = ?counters.failures, "session over");
    }

    fn write_report(&mut self) {
        let Some((report, path)) = &mut self.report else { return };
        let written = self.supervisor.kernel().stats().and_then(|stats| {
            report.update(&stats, self.supervisor.counters(), self.ended);
            report.write(path)
        });
        if let Err(error) = written {
            warn!(path = %path.display(), %error, "report not written");
        }
    }
}

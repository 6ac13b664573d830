//! Gives a process a filter when that pays, and takes it away in time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::candidate::{Call, Look};
use super::kernel::{InstallError, Kernel, snapshot};
use super::layout::{EVENT_SNAPSHOT, EVENT_STOPPED, Event, Protection};
use super::process::ProcessMemory;
use super::region::{Refused, explore};
use super::socket::{Socket, Unsuitable, open_process};
use super::stopped::Stopped;
use crate::unavailable::Unavailable;

/// Time between two looks at a process that has no filter.
pub const LOOK: Duration = Duration::from_millis(100);
/// How often it goes to sleep in that time if a filter is to be tried.
const SLEEPS: u64 = 20;
/// Pause after a filter had to be taken away; doubled each time up to the
/// longest, and again the shortest for one that lasted as long.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a filter is tried before it is judged, again and again.
const TRIAL: Duration = Duration::from_secs(5);
/// One packet dropped for so many that are not is of use.
const LEAST_SHARE: u64 = 10;
/// How long the next receive call is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum NoFilter {
    /// The program does something with every packet.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The socket is none for it.
    #[error(transparent)]
    Unsuitable(#[from] Unsuitable),
    /// The region cannot be made a filter.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// BPF cannot be used.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The process cannot be looked at.
    #[error("the process cannot be looked at: {0}")]
    Process(#[from] io::Error),
}

/// Something that happened.
#[derive(Debug)]
pub enum News {
    /// Packets are filtered at this receive call.
    Begun {
        /// Number of the socket's descriptor.
        fd: u32,
        /// Address behind the call.
        resume: u64,
    },
    /// They are not, for this reason.
    Not {
        /// Number of the socket's descriptor.
        fd: u32,
        /// Address behind the call.
        resume: u64,
        /// Why.
        reason: NoFilter,
    },
    /// The filter was taken away.
    Ended {
        /// Number of the socket's descriptor.
        fd: u32,
        /// Address behind the call.
        resume: u64,
        /// Why.
        reason: Stopped,
        /// What it did since it began.
        counts: Counts,
    },
}

/// Packets that came to a socket with a filter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Dropped, so that the program did not wake up.
    pub dropped: u64,
    /// Delivered because the program wants them.
    pub kept: u64,
    /// Delivered because the program was busy.
    pub passed: u64,
}

impl Counts {
    fn plus(self, more: Self) -> Self {
        Self {
            dropped: self.dropped + more.dropped,
            kept: self.kept + more.kept,
            passed: self.passed + more.passed,
        }
    }
}

/// What is being done.
#[derive(Debug)]
enum Stage {
    /// Looking whether it waits for packets.
    Looking { before: Option<Look> },
    /// Waiting for the state of the thread in its next call.
    Observing { kernel: Box<Kernel>, call: Call, since: Instant },
    /// A filter is there.
    Filtering { kernel: Box<Kernel>, call: Call, since: Instant, judged: Judged },
}

/// When it was last looked whether a filter is of use.
#[derive(Debug)]
struct Judged {
    when: Instant,
    counts: Counts,
}

impl Judged {
    fn new(kernel: &Kernel) -> Self {
        Self { when: Instant::now(), counts: counted(kernel) }
    }

    /// Looks again when it is time; `None` if the filter is of no use.
    fn again(self, kernel: &Kernel) -> Option<Self> {
        if self.when.elapsed() < TRIAL {
            return Some(self);
        }
        let (before, now) = (self.counts, Self::new(kernel));
        let dropped = now.counts.dropped - before.dropped;
        let delivered = now.counts.kept + now.counts.passed - before.kept - before.passed;
        (dropped * LEAST_SHARE >= delivered).then_some(now)
    }
}

/// Watches one process.
#[derive(Debug)]
pub struct Watcher {
    pid: u32,
    process: OwnedFd,
    stage: Stage,
    not_before: Instant,
    pause: Duration,
    /// Receive calls that no filter is made for, until then.
    refused: Vec<(Call, Instant)>,
    /// By filters that are gone.
    counts: Counts,
    without: Option<Protection>,
}

impl Watcher {
    /// Watches the process `pid`.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn new(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            process: open_process(pid)?,
            stage: Stage::Looking { before: None },
            not_before: Instant::now(),
            pause: SHORTEST_PAUSE,
            refused: Vec::new(),
            counts: Counts::default(),
            without: None,
        })
    }

    /// Makes filters that lack a protection, for the tests of it.
    #[must_use]
    pub fn without(self, protection: Protection) -> Self {
        Self { without: Some(protection), ..self }
    }

    /// Readable when the process has ended.
    #[must_use]
    pub fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// Readable when [`Self::work`] has something to do at once.
    #[must_use]
    pub fn events(&self) -> Option<BorrowedFd<'_>> {
        match &self.stage {
            Stage::Looking { .. } => None,
            Stage::Observing { kernel, .. } | Stage::Filtering { kernel, .. } => {
                Some(kernel.events())
            }
        }
    }

    /// All that filters of this process have done.
    #[must_use]
    pub fn counts(&self) -> Counts {
        match &self.stage {
            Stage::Filtering { kernel, .. } => self.counts.plus(counted(kernel)),
            _ => self.counts,
        }
    }

    /// Does what there is to do: now and then, and when there are events.
    pub fn work(&mut self) -> Option<News> {
        match std::mem::replace(&mut self.stage, Stage::Looking { before: None }) {
            Stage::Looking { before } => self.look(before),
            Stage::Observing { mut kernel, call, since } => match kernel.event() {
                Some(event) if event.kind == EVENT_SNAPSHOT => {
                    let begun = self.begin(&mut kernel, call, &event);
                    Some(self.begun(begun, kernel, call))
                }
                _ if since.elapsed() > PATIENCE => None,
                _ => {
                    self.stage = Stage::Observing { kernel, call, since };
                    None
                }
            },
            Stage::Filtering { mut kernel, call, since, judged } => match kernel.event() {
                Some(event) if event.kind == EVENT_STOPPED => {
                    Some(self.end(*kernel, call, since, Stopped::of(&event)))
                }
                _ => match judged.again(&kernel) {
                    Some(judged) => {
                        self.stage = Stage::Filtering { kernel, call, since, judged };
                        None
                    }
                    None => {
                        self.refused.push((call, Instant::now() + LONGEST_PAUSE));
                        Some(self.end(*kernel, call, since, Stopped::Useless))
                    }
                },
            },
        }
    }

    fn look(&mut self, before: Option<Look>) -> Option<News> {
        let now = Look::at(self.pid)?;
        self.stage = Stage::Looking { before: Some(now) };
        let before = before?;
        let time = Instant::now();
        let call = now.call.filter(|_| now.sleeps >= before.sleeps + SLEEPS)?;
        self.refused.retain(|(_, until)| *until > time);
        let is_refused = self.refused.iter().any(|(refused, _)| *refused == call);
        if before.call != Some(call) || is_refused || time < self.not_before {
            return None;
        }
        match self.observe(call) {
            Ok(kernel) => {
                self.stage = Stage::Observing { kernel, call, since: time };
                None
            }
            Err(reason) => Some(self.refuse(call, reason)),
        }
    }

    /// Looks at the socket, and has the kernel watch for the call.
    fn observe(&self, call: Call) -> Result<Box<Kernel>, NoFilter> {
        let socket = Socket::of(&self.process, call.fd)?;
        socket.header()?;
        if socket.has_filter() {
            return Err(Unsuitable::OwnFilter.into());
        }
        // While there is a copy, the process does not have it for itself.
        drop(socket);
        let mut kernel = Box::new(Kernel::load(self.without)?);
        kernel.attach(self.pid, call.number, call.fd)?;
        Ok(kernel)
    }

    /// Makes a filter for a thread that entered its receive call.
    fn begin(&self, kernel: &mut Kernel, call: Call, event: &Event) -> Result<(), NoFilter> {
        let memory = ProcessMemory::of(self.pid)?;
        let region = explore(&snapshot(&event.registers), &memory)?;
        let socket = Socket::of(&self.process, call.fd)?;
        let header = socket.header()?;
        if socket.has_filter() {
            return Err(Unsuitable::OwnFilter.into());
        }
        // Everything is let through until the thread is as expected, and the
        // socket its own again.
        socket.attach(kernel.gate()?)?;
        drop(socket);
        let installed = kernel.install(&region, event.sk, header);
        if installed.is_err() {
            let _ = Socket::of(&self.process, call.fd)?.detach();
        }
        Ok(installed?)
    }

    fn begun(&mut self, begun: Result<(), NoFilter>, kernel: Box<Kernel>, call: Call) -> News {
        match begun {
            Ok(()) => {
                let (since, judged) = (Instant::now(), Judged::new(&kernel));
                self.stage = Stage::Filtering { kernel, call, since, judged };
                News::Begun { fd: call.fd, resume: call.resume }
            }
            Err(reason) => self.refuse(call, reason),
        }
    }

    fn refuse(&mut self, call: Call, reason: NoFilter) -> News {
        self.refused.push((call, Instant::now() + LONGEST_PAUSE));
        News::Not { fd: call.fd, resume: call.resume, reason }
    }

    /// Takes the filter off; the kernel let every packet through before it
    /// told why.
    fn end(&mut self, mut kernel: Kernel, call: Call, since: Instant, reason: Stopped) -> News {
        let _ = kernel.uninstall();
        if reason.is_ours()
            && let Ok(socket) = Socket::of(&self.process, call.fd)
        {
            // Or else the gate stays, which lets everything through.
            let _ = socket.detach();
        }
        let counts = counted(&kernel);
        self.counts = self.counts.plus(counts);
        self.pause = if since.elapsed() > LONGEST_PAUSE {
            SHORTEST_PAUSE
        } else {
            (self.pause * 2).min(LONGEST_PAUSE)
        };
        self.not_before = Instant::now() + self.pause;
        News::Ended { fd: call.fd, resume: call.resume, reason, counts }
    }

    /// Takes the filter off, if there is one, and says what filters did.
    pub fn finish(mut self) -> Counts {
        let stage = std::mem::replace(&mut self.stage, Stage::Looking { before: None });
        if let Stage::Filtering { kernel, call, since, .. } = stage {
            let _ = self.end(*kernel, call, since, Stopped::Finished);
        }
        self.counts
    }
}

fn counted(kernel: &Kernel) -> Counts {
    let gate = kernel.counted();
    Counts { dropped: gate.dropped, kept: gate.kept, passed: gate.passed }
}

//! The gap profiler.

mod calibration;
mod frames;
mod kernel;
mod layout;
mod spaces;
mod turns;

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

pub use crate::unavailable::Unavailable;

use crate::costs::Costs;
use crate::profile::{Counted, Lost, Profile, ProfiledGap};
use frames::{Frames, Registers};
use kernel::Kernel;
pub(crate) use layout::read;
use layout::{
    EVENT_SITE, EVENT_SPACE, Gap, GapKey, NO_CALL, SiteEvent, SiteKey, SpaceEvent, Thread, Totals,
};
use spaces::Spaces;
use turns::{Turns, Used};
use ub_report::Process;
use ub_report::calls;

/// Address space of a process that only prepares to become the program: not
/// reported.
const LAUNCHER: u32 = 0;
/// Address space of a process that was running before.
const ATTACHED: u32 = 1;

/// Why something cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// There is no profiler here.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// There is no such process.
    #[error("process {pid}: {error}")]
    NoProcess {
        /// Its number.
        pid: u32,
        /// What the system answered.
        error: io::Error,
    },
    /// There is no such control group.
    #[error("{} is not a control group of version 2: {error}", path.display())]
    NoCgroup {
        /// Where it should be.
        path: PathBuf,
        /// What the system answered.
        error: io::Error,
    },
}

/// Watches programs until [`Profiler::finish`].
#[derive(Debug)]
pub struct Profiler {
    kernel: Kernel,
    spaces: Spaces,
    frames: Frames,
    costs: Costs,
    turns: Turns,
}

impl Profiler {
    /// Loads the BPF programs and measures what they cost.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub fn new() -> Result<Self, Unavailable> {
        Self::with_cgroup(None)
    }

    /// Whether [`Self::new`] would work: loads the programs and lets them go.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub fn check() -> Result<(), Unavailable> {
        Kernel::load(None).map(drop)
    }

    /// The same, watching every thread in the control group at `path`, a
    /// folder of a cgroup2 file system, and below it.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn of_cgroup(path: &Path) -> Result<Self, WatchError> {
        let fail = |error| WatchError::NoCgroup { path: path.to_owned(), error };
        if !path.join("cgroup.procs").exists() || !path.join("cgroup.controllers").exists() {
            return Err(fail(io::ErrorKind::NotFound.into()));
        }
        // The number of a control group is that of its folder.
        let number = fs::metadata(path).map_err(fail)?.ino();
        Ok(Self::with_cgroup(Some(number))?)
    }

    fn with_cgroup(cgroup: Option<u64>) -> Result<Self, Unavailable> {
        let costs = Costs::measure();
        let kernel = Kernel::load(cgroup)?;
        let current = Rc::clone(&kernel.spaces);
        let mut profiler = Self {
            kernel,
            spaces: Spaces::new(move |process| current.borrow().get(&process, 0).ok()),
            frames: Frames::default(),
            costs,
            turns: Turns::default(),
        };
        // Before anything can be watched, so that nobody else counts on.
        profiler.kernel.totals.set(
            0,
            Totals { spaces: u64::from(ATTACHED), ..Totals::default() },
            0,
        )?;
        profiler.attach_and_measure()?;
        profiler.start();
        Ok(profiler)
    }

    /// What is watched counts from now on; calls are timed.
    fn start(&mut self) {
        self.turns = Turns::default();
        self.turns.begin(false, self.used());
    }

    /// Only counts calls from now on, or times them. Timing takes longer than many a call,
    /// so that a program is only seen as it is while its calls are counted.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub fn only_count(&mut self, only: bool) -> Result<(), Unavailable> {
        self.kernel.only_count(only)?;
        let used = self.used();
        self.turns.end(used);
        self.turns.begin(only, used);
        Ok(())
    }

    /// The measured costs.
    #[must_use]
    pub fn costs(&self) -> Costs {
        self.costs
    }

    /// Watches the process `pid`, which has one thread and is about to
    /// execute a program: what it does before is not reported.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub fn watch_launcher(&mut self, pid: u32) -> Result<(), Unavailable> {
        self.start();
        self.watch_thread(pid, LAUNCHER)
    }

    /// Watches a running process, all its threads, and what it will start.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn watch_process(&mut self, pid: u32) -> Result<(), WatchError> {
        self.kernel.spaces.borrow_mut().insert(pid, ATTACHED, 0).map_err(Unavailable::from)?;
        let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        self.spaces.add(ATTACHED, pid, 0, program.trim_end().to_owned());
        self.start();
        let folder = Path::new("/proc").join(pid.to_string()).join("task");
        let mut watched = Vec::new();
        // Threads started meanwhile by one that was not yet watched.
        loop {
            let before = watched.len();
            let threads =
                fs::read_dir(&folder).map_err(|error| WatchError::NoProcess { pid, error })?;
            for entry in threads.flatten() {
                let tid = entry.file_name().to_str().and_then(|tid| tid.parse().ok());
                if let Some(tid) = tid.filter(|tid| !watched.contains(tid)) {
                    self.watch_thread(tid, ATTACHED)?;
                    watched.push(tid);
                }
            }
            if watched.len() == before {
                return Ok(());
            }
        }
    }

    fn watch_thread(&mut self, tid: u32, space: u32) -> Result<(), Unavailable> {
        const ONLY_NEW: u64 = 1;
        let cpu_start = kernel::cpu_time(tid).unwrap_or(0);
        let thread = Thread { space, call: NO_CALL, cpu_start, ..Thread::default() };
        match self.kernel.threads.insert(tid, thread, ONLY_NEW) {
            Ok(()) => Ok(()),
            // Its parent was watched already.
            Err(_) if self.kernel.threads.get(&tid, 0).is_ok() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Readable when [`Profiler::take_events`] has something to do.
    #[must_use]
    pub fn events(&self) -> BorrowedFd<'_> {
        self.kernel.events.as_fd()
    }

    /// Learns of new address spaces and addresses, while the processes are
    /// there to be asked.
    pub fn take_events(&mut self) {
        let mut sites = VecDeque::new();
        loop {
            // A process may end at any moment, so asking comes first and what
            // takes longer when nobody has news.
            while let Some(event) = self.kernel.events.next() {
                match layout::read::<u32>(&event) {
                    Some(EVENT_SPACE) => {
                        if let Some(event) = layout::read::<SpaceEvent>(&event) {
                            let SpaceEvent { space, process, parent, .. } = event;
                            self.spaces.add(space, process, parent, event.program());
                        }
                    }
                    Some(EVENT_SITE) => {
                        if let Some(event) = layout::read::<SiteEvent>(&event) {
                            self.spaces.ask(event.space, event.resume);
                            sites.push_back(event);
                        }
                    }
                    _ => {}
                }
            }
            let Some(event) = sites.pop_front() else {
                return;
            };
            if let Some(words) = caller(&mut self.spaces, &mut self.frames, &event) {
                let key = SiteKey { resume: event.resume, space: event.space, padding: 0 };
                // It only costs the name of the caller if this fails.
                let _ = self.kernel.sites.insert(key, words, 0);
            }
        }
    }

    /// Looks again at what the watched processes have mapped; for libraries
    /// that were loaded meanwhile, every now and then.
    pub fn look_again(&mut self) {
        self.spaces.refresh_all();
    }

    /// Stops watching and says what was counted.
    #[must_use]
    pub fn finish(mut self) -> Profile {
        self.take_events();
        self.look_again();
        self.kernel.detach();
        self.turns.end(self.used());
        let passages = self.passages();
        let mut gaps = Vec::with_capacity(passages.len());
        for (key, gap) in passages {
            if key.space == LAUNCHER || calibration::is_own(key.space) {
                continue;
            }
            gaps.push(self.named(&key, &gap));
        }
        gaps.sort_by(|a, b| b.count.cmp(&a.count).then(a.resume.cmp(&b.resume)));
        let totals = self.kernel.totals();
        let processes = self
            .spaces
            .iter()
            .map(|(number, space)| Process {
                space: u64::from(number),
                pid: Some(space.process),
                name: space.program.clone(),
            })
            .collect();
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let Turns { timed, counted, .. } = self.turns;
        Profile {
            elapsed_ns: nanoseconds(timed.elapsed),
            cpu_ns: timed.used.cpu_ns,
            counted: Counted {
                elapsed_ns: nanoseconds(counted.elapsed),
                calls: counted.used.counted,
                cpu_ns: counted.used.cpu_ns,
            },
            costs: self.costs,
            lost: Lost {
                events: totals.events_lost,
                passages: totals.passages_lost,
                threads: totals.threads_lost,
            },
            processes,
            gaps,
        }
    }

    /// The passages of all gaps, summed over CPUs.
    fn passages(&self) -> Vec<(GapKey, Gap)> {
        let mut all = Vec::new();
        for (key, values) in self.kernel.gaps.iter().flatten() {
            let mut sum = Gap::default();
            values.iter().for_each(|value| sum.add(value));
            all.push((key, sum));
        }
        all
    }

    fn named(&mut self, key: &GapKey, gap: &Gap) -> ProfiledGap {
        let mut name = |address| {
            if address == 0 { None } else { self.spaces.name(key.space, address) }
        };
        ProfiledGap {
            space: u64::from(key.space),
            thread: key.thread,
            resume: key.resume,
            caller: key.caller,
            function: name(key.resume),
            calling: name(key.caller),
            call: (key.call != NO_CALL).then(|| calls::name(key.call)),
            next: calls::name(key.next),
            count: gap.count,
            gap_ns: gap.gap_ns,
            call_ns: gap.call_ns,
            bytes: gap.bytes,
            gap_log2: gap.gap_log2.to_vec(),
            call_log2: gap.call_log2.to_vec(),
        }
    }

    /// What everything watched has used so far.
    fn used(&self) -> Used {
        let reported = |space: u32| space != LAUNCHER && !calibration::is_own(space);
        let threads = &self.kernel.threads;
        // Each once: where one ends meanwhile, going through them begins anew.
        let mut running: HashMap<u32, Thread> = threads.iter().flatten().collect();
        let ended = self.kernel.cpu_times.iter().flatten();
        let ended: u64 = ended.filter(|(space, _)| reported(*space)).map(|(_, time)| time).sum();
        let counted = self.kernel.totals().counted;
        // Who has ended since is among the ended.
        running.retain(|tid, _| threads.get(tid, 0).is_ok());
        let cpu_ns = |(tid, thread): (&u32, &Thread)| {
            Some(kernel::cpu_time(*tid)?.saturating_sub(thread.cpu_start))
        };
        let of_reported = running.iter().filter(|(_, thread)| reported(thread.space));
        Used {
            cpu_ns: ended + of_reported.filter_map(cpu_ns).sum::<u64>(),
            counted: counted + running.values().map(|thread| thread.counted).sum::<u64>(),
        }
    }
}

/// Words from the stack pointer to where a new site's function returns to.
fn caller(spaces: &mut Spaces, frames: &mut Frames, event: &SiteEvent) -> Option<u32> {
    let registers = Registers { sp: event.sp, bp: event.bp };
    let (process, mapping) = spaces.find(event.space, event.resume)?;
    let words = frames.return_address(process, &mapping, event.resume, registers)?;
    // The word must be there and point into code, or it is no caller.
    let caller = event.stack[..event.words as usize].get(words as usize)?;
    spaces.find(event.space, *caller)?;
    Some(words)
}

impl Gap {
    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.gap_ns += other.gap_ns;
        self.call_ns += other.call_ns;
        self.bytes += other.bytes;
        let both = self.gap_log2.iter_mut().zip(other.gap_log2);
        let both = both.chain(self.call_log2.iter_mut().zip(other.call_log2));
        both.for_each(|(sum, value)| *sum += value);
    }
}

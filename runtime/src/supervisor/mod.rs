//! Turns reports of the kernel module into installed fragments.
//!
//! The supervisor may fail at any report without harm to the program: what is
//! not installed runs natively. So nothing here panics on what the module,
//! the program or the translator does; it is counted, logged and passed over.

mod code;
mod counters;
mod dump;
mod judging;
mod lost;
mod payoff;
mod pipeline;
mod programs;
mod rebuilds;
mod room;
mod space;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use tracing::{debug, error, info, trace, warn};
use ub_translator::fragment::Parts;

use crate::abi::{Report, ReportKind, SessionConfig};
use crate::kernel::{Btc, InstallError, Kernel, Reading};
use code::Source;
pub use counters::{Counters, Failure, RefusedEntry};
use judging::Judging;
use lost::Lost;
pub use payoff::Holds;
pub use pipeline::{Pipeline, Reach, Refused, Slowed, Translator};
use programs::Programs;
use rebuilds::{Due, Rebuilds, Why};
use room::Room;
use space::{AddressSpace, Decision};

/// Translations of one address before code that keeps changing is given up.
const STALE_ATTEMPTS: u32 = 3;
/// Time given to a change of mappings before the code is read again.
const STALE_PAUSE: Duration = Duration::from_micros(200);
/// Address spaces remembered; a bound on memory if their ends go unreported.
const SPACES: usize = 1024;
/// Time after which control returns to the caller, who has others to answer:
/// `ub top` waits for its screen. One batch of translations may take longer.
const TURN: Duration = Duration::from_millis(50);

/// Handles the reports of one session.
#[derive(Debug)]
pub struct Supervisor<K, P> {
    kernel: K,
    pipeline: P,
    spaces: HashMap<Btc, AddressSpace>,
    counters: Counters,
    room: Room,
    rebuilds: Rebuilds,
    programs: Programs,
    lost: Lost,
    /// Of sessions that measure whether rides pay.
    judging: Option<Judging>,
}

impl<K: Kernel, P: Pipeline> Supervisor<K, P> {
    /// A supervisor that installs into `kernel` what `pipeline` makes, and keeps
    /// it whether it pays or not; see [`judge`](Self::judge).
    pub fn new(kernel: K, pipeline: P) -> Self {
        Self {
            kernel,
            pipeline,
            spaces: HashMap::new(),
            counters: Counters::default(),
            room: Room::default(),
            rebuilds: Rebuilds::default(),
            programs: Programs::default(),
            lost: Lost::default(),
            judging: None,
        }
    }

    /// Retires what does not pay, in a session that holds to `config` and
    /// measures: see [`SessionConfig::native_interval`]. `cycles_khz` is
    /// [`crate::abi::Info::cycles_khz`].
    #[must_use]
    pub fn judge(mut self, config: &SessionConfig, cycles_khz: u32) -> Self {
        self.judging = Judging::new(config, cycles_khz);
        self
    }

    /// For how long what does not pay stays away. For supervisors that
    /// [judge](Self::judge).
    #[must_use]
    pub fn hold_for(mut self, holds: Holds) -> Self {
        if let Some(judging) = &mut self.judging {
            judging.payoff.holds = holds;
        }
        self
    }

    /// Whether it retires what does not pay.
    pub fn judges(&self) -> bool {
        self.judging.is_some()
    }

    /// Retires everything and installs nothing more, as rides save next to nothing
    /// on this machine. For sessions that [judge](Self::judge).
    pub fn stay_native(&mut self) {
        if let Some(judging) = &mut self.judging {
            judging.stay_native(Instant::now());
        }
    }

    /// Does in advance what would keep the first hot gap waiting.
    pub fn warm_up(&mut self) {
        // A panic is counted when it keeps code from being translated.
        let pipeline = AssertUnwindSafe(|| self.pipeline.warm_up());
        let _ = catch_unwind(pipeline);
    }

    /// The session.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// When [`work`](Self::work) should be called again even if nothing is
    /// reported by then; `None` if nothing else is to be done.
    #[must_use]
    pub fn next_work(&self) -> Option<Instant> {
        let look = self.judging.as_ref().and_then(Judging::next);
        self.rebuilds.next().into_iter().chain(look).min()
    }

    /// Reads and handles pending reports, as many as can be handled without
    /// keeping the caller for long. [`Reading::Some`] says to call again.
    ///
    /// # Errors
    /// When the session cannot be read any more.
    pub fn work(&mut self) -> io::Result<Reading> {
        let mut reports = Vec::new();
        let turn_ends = Instant::now() + TURN;
        loop {
            reports.clear();
            let reading = self.kernel.read_reports(&mut reports)?;
            self.were_waiting(reports.len());
            for report in &reports {
                self.handle(report);
            }
            if reading != Reading::Some {
                self.make_up_for_lost();
            }
            self.judge_gaps(Instant::now());
            // Code without any fragment comes first.
            let rebuilt = reading == Reading::Empty && self.rebuild_one();
            // See CodeCache: bytes are trusted for one batch only.
            for space in self.spaces.values_mut() {
                space.code.clear();
                if reading != Reading::Some {
                    space.caught_up();
                }
            }
            if reading != Reading::Some && !rebuilt {
                return Ok(reading);
            }
            if Instant::now() >= turn_ends {
                return Ok(Reading::Some);
            }
        }
    }

    /// Translates one entry again; false if none waits.
    fn rebuild_one(&mut self) -> bool {
        let start = Instant::now();
        let Some(Due { btc, entry, pid, why, can_wait }) = self.rebuilds.take_due(start) else {
            return false;
        };
        // It may have been retired, its address space may have ended, or it may
        // have become part of the fragments that went on there.
        if let Some(space) = self.spaces.get(&btc)
            && space.has(entry)
            && (why == Why::Learned || space.is_worth_more(entry))
        {
            let reach = space.reach(entry);
            self.translate(Wanted { btc, address: entry, reach, pid });
            if can_wait {
                self.rebuilds.took(start.elapsed(), Instant::now());
            }
        }
        true
    }

    /// Handles one report.
    pub fn handle(&mut self, report: &Report) {
        self.counters.reports += 1;
        trace!(?report, "report");
        let btc = Btc(report.btc);
        match ReportKind::from_number(report.kind) {
            Some(ReportKind::HotGap) => self.hot(report),
            Some(ReportKind::Miss) => {
                let now = Instant::now();
                self.rebuilds.put_off(btc, now);
                if report.from == 0 {
                    self.left(btc, report, now);
                } else {
                    self.edge(btc, report, now);
                }
            }
            Some(ReportKind::BtcGone) => {
                self.gone(btc);
                if let Some(judging) = &mut self.judging {
                    judging.forget(btc);
                }
                self.room.appeared();
            }
            Some(ReportKind::Retired) => {
                if let Some(judging) = &mut self.judging {
                    judging.payoff.forget_range(btc, &(report.address..report.from));
                }
                if let Some(space) = self.spaces.get_mut(&btc) {
                    space.forget(report.address..report.from);
                }
                self.room.appeared();
            }
            Some(ReportKind::Evicted) => {
                if let Some(space) = self.spaces.get_mut(&btc) {
                    space.evicted(report.address);
                }
            }
            Some(ReportKind::Linked) => {
                let now = Instant::now();
                let linked = self.space(btc).learn_link(report.from, report.address);
                if linked.more {
                    self.rebuilds.ask_for_more(btc, report.address, report.pid, now);
                }
                if let Some(before) = linked.rebuild {
                    self.rebuilds.ask(btc, report.from, report.pid, before, now);
                }
            }
            Some(ReportKind::Guard) => self.guarded(btc, report.address, report.pid),
            None => {
                self.counters.unknown_reports += 1;
                debug!(kind = report.kind, "unknown kind of report");
            }
        }
        if report.pid != 0
            && let Some(space) = self.spaces.get_mut(&btc)
        {
            space.thread.get_or_insert(report.pid);
        }
    }

    /// The memory of `btc`, made if necessary.
    fn space(&mut self, btc: Btc) -> &mut AddressSpace {
        if !self.spaces.contains_key(&btc) && self.spaces.len() >= SPACES {
            let oldest = self.spaces.iter().min_by_key(|(_, space)| space.last_used);
            if let Some(oldest) = oldest.map(|(btc, _)| *btc) {
                self.gone(oldest);
            }
        }
        let space = self.spaces.entry(btc).or_default();
        space.last_used = self.counters.reports;
        space
    }

    /// Forgets an address space, but not what it showed: the next process of its program
    /// needs that.
    fn gone(&mut self, btc: Btc) {
        self.learn_program(btc);
        self.spaces.remove(&btc);
    }

    /// Fragments are often left by a direct branch for code that has none:
    /// translates it, and, once no more is learned, has those with much code go
    /// that way rather than others.
    fn left(&mut self, btc: Btc, report: &Report, now: Instant) {
        let rebuild = self.space(btc).leading_to(report.address);
        self.extend(btc, report.address, report.pid);
        for (entry, before) in rebuild {
            self.rebuilds.ask(btc, entry, report.pid, before, now);
        }
    }

    /// Fragments are often left at an indirect branch for one target: makes
    /// sure that there is a fragment, and, if that happens very often, that
    /// those which contain the branch go on to it by themselves.
    fn edge(&mut self, btc: Btc, report: &Report, now: Instant) {
        let (site, target, pid) = (report.from, report.address, report.pid);
        let space = self.space(btc);
        space.learn(site, target);
        let rebuild = space.unpredicting(site, target, report.count);
        if !space.has(target) {
            self.extend(btc, target, pid);
        }
        for (entry, before) in rebuild {
            self.rebuilds.ask(btc, entry, pid, before, now);
        }
    }

    /// Fragments are often left by a guard at `address`: the first time, has
    /// them translated again without the assumption that it checks.
    fn guarded(&mut self, btc: Btc, address: u64, pid: u32) {
        let now = Instant::now();
        for (entry, before) in self.space(btc).learn_guard(address) {
            self.rebuilds.ask(btc, entry, pid, before, now);
        }
    }

    /// Makes the code at `address` part of the BTC, if that is worth trying.
    fn extend(&mut self, btc: Btc, address: u64, pid: u32) {
        let held = |judging: &Judging| judging.is_held(btc, address, Instant::now());
        if self.judging.as_ref().is_some_and(held) {
            self.counters.repeated_reports += 1;
            return;
        }
        match self.space(btc).decide(address) {
            Decision::Translate => {}
            Decision::AlreadyInstalled | Decision::KnownUseless => {
                self.counters.repeated_reports += 1;
                return;
            }
        }
        let reach = self.space(btc).first_reach(address);
        self.translate(Wanted { btc, address, reach, pid });
    }

    /// Translates and installs the code at `address`, if there is room.
    fn translate(&mut self, wanted: Wanted) {
        let Wanted { btc, address, .. } = wanted;
        if !self.room.try_now() {
            self.counters.passed_over += 1;
            return;
        }
        for _ in 0..STALE_ATTEMPTS {
            match self.attempt(wanted) {
                Attempt::Done => return,
                Attempt::Again => {
                    self.counters.stale_retries += 1;
                    self.space(btc).code.clear();
                    std::thread::sleep(STALE_PAUSE);
                }
            }
        }
        // Not marked as useless: what is being written now may settle.
        self.counters.fail(Failure::Stale);
        debug!(btc = btc.0, address, "code keeps changing");
    }

    /// One translation, verification and install.
    fn attempt(&mut self, wanted: Wanted) -> Attempt {
        let Wanted { btc, address, reach, pid } = wanted;
        let mut space = std::mem::take(self.space(btc));
        let (code, predicted) = space.for_translation();
        let mut source = Source::new(&self.kernel, btc, pid, code);
        let start = Instant::now();
        let result =
            pipeline::contained(&mut self.pipeline, address, reach, &mut source, predicted);
        self.counters.took(start.elapsed());
        let (sequence, gone) = (source.sequence(), source.gone());
        let (unsettled, denied) = (source.unsettled(), source.denied());
        let attempt = match result {
            Err(refused) if unsettled && !gone && refused.failure == Failure::Unsupported => {
                debug!(btc = btc.0, address, %refused, "mappings are being changed");
                Attempt::Again
            }
            Err(refused) => {
                self.refused(btc, address, gone, &refused, &mut space);
                if denied && refused.failure == Failure::Unsupported {
                    space.mark_unreadable(address);
                }
                Attempt::Done
            }
            Ok(_) if gone => {
                self.counters.fail(Failure::Gone);
                debug!(btc = btc.0, address, "address space gone");
                Attempt::Done
            }
            Ok(fragment) if !pipeline::leads_somewhere(&fragment) => {
                space.mark_useless(address);
                self.counters.refuse(address, Failure::Useless, "leads nowhere");
                debug!(btc = btc.0, address, "leads nowhere");
                Attempt::Done
            }
            Ok(fragment) => match sequence {
                Some(sequence) => {
                    let result = self.kernel.install(btc, sequence, &fragment);
                    self.installed(wanted, result, fragment.parts(), &mut space)
                }
                // A fragment of code that was never read cannot be.
                None => {
                    space.mark_useless(address);
                    self.counters.fail(Failure::TranslatorBug);
                    error!(btc = btc.0, address, "a fragment without sources");
                    Attempt::Done
                }
            },
        };
        *self.space(btc) = space;
        if gone {
            self.gone(btc);
        }
        attempt
    }

    /// Accounts for a translation that did not yield a fragment.
    fn refused(
        &mut self,
        btc: Btc,
        address: u64,
        gone: bool,
        refused: &Refused,
        space: &mut AddressSpace,
    ) {
        let failure = if gone { Failure::Gone } else { refused.failure };
        self.counters.refuse(address, failure, refused);
        match failure {
            Failure::Unsupported | Failure::Gone => {
                debug!(btc = btc.0, address, %refused, "not translated");
            }
            _ => error!(btc = btc.0, address, ?failure, %refused, "not translated"),
        }
        space.mark_useless(address);
        if failure == Failure::Panic {
            // The panic may have left it half-filled.
            space.code.clear();
        }
    }

    /// Accounts for an install.
    fn installed(
        &mut self,
        wanted: Wanted,
        result: Result<(), InstallError>,
        parts: &Parts,
        space: &mut AddressSpace,
    ) -> Attempt {
        let Wanted { btc, address, reach, pid } = wanted;
        match result {
            Ok(()) => {
                let now = Instant::now();
                if space.installed(parts, reach) {
                    if space.is_gap(address) {
                        self.rebuilds.ask(btc, address, pid, 0, now);
                    } else {
                        self.rebuilds.ask_for_more(btc, address, pid, now);
                    }
                }
                if let Some(judging) = &mut self.judging {
                    judging.installed(btc, address, now);
                }
                self.room.appeared();
                self.counters.installed += 1;
                self.counters.code_bytes += parts.code.len() as u64;
                self.counters.guest_instructions += u64::from(parts.guest_instructions);
                debug!(
                    btc = btc.0,
                    address,
                    bytes = parts.code.len(),
                    instructions = parts.guest_instructions,
                    exits = parts.exits.len(),
                    ?reach,
                    "installed"
                );
            }
            Err(InstallError::Stale) => return Attempt::Again,
            Err(InstallError::Exists) => {
                space.installed(parts, reach);
            }
            Err(InstallError::Full) => {
                self.counters.fail(Failure::NoRoom);
                self.room.exhausted();
                info!(btc = btc.0, address, passing_over = self.room.pause(), "no room");
            }
            Err(InstallError::Gone) => {
                self.counters.fail(Failure::Gone);
                debug!(btc = btc.0, address, "address space gone");
            }
            Err(error @ InstallError::Refused(_)) => {
                self.counters.refuse(address, Failure::ModuleRefused, &error);
                space.mark_useless(address);
                warn!(btc = btc.0, address, %error, "not installed");
            }
        }
        Attempt::Done
    }
}

/// A translation to be made.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    btc: Btc,
    address: u64,
    reach: Reach,
    /// A process to read from.
    pid: u32,
}

enum Attempt {
    Done,
    Again,
}

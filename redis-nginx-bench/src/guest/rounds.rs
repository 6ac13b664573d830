//! Measures in rounds: the native program and the one under `ub` run side by
//! side, one of them idle, and are loaded in turns. Both live through all
//! rounds, so that learning a program is part of the warm-up and not of the
//! figures.

use std::io::{self, Write as _};
use std::time::Duration;

use super::launch::{How, Launcher, Session};
use super::subject::{self, Findings, Load, Subject};
use super::{Amount, machine, modules, prepare_with, sample, scale};
use crate::content::Digest;
use crate::cost::Settled;
use crate::events::{End, Event, RoundsPlan, Sample, Work};
use crate::plan::{Mode, Workload};
use crate::{Error, Result};

/// Share of the wanted operations that the first, untimed load has; its rate
/// says how many are wanted.
const PILOT_SHARE: u32 = 4;

/// Does `plan` and prints the events.
///
/// # Errors
/// If the machine cannot be prepared or the events cannot be written. What
/// goes wrong with one workload is an event.
pub fn run(plan: &RoundsPlan) -> Result<()> {
    let launcher = prepare_with(&plan.plan)?;
    say(Event::Machine { machine: machine()? })?;
    let mut counted = Vec::new();
    for work in &plan.work {
        if let Some(error) = missing(&launcher, work) {
            say(Event::Failed { work: *work, error, missing: true })?;
            continue;
        }
        let first = !counted.contains(&work.workload);
        counted.push(work.workload);
        let measured = measure(&launcher, work, plan.count_native && first, &mut say);
        if let Err(error) = measured {
            say(Event::Failed { work: *work, error: error.to_string(), missing: false })?;
        }
    }
    Ok(())
}

/// What `work` needs and is not there.
fn missing(launcher: &Launcher, work: &Work) -> Option<String> {
    if matches!(work.workload, Workload::Packets { .. }) && !launcher.plan().prepare_guest {
        return Some("a veth pair is made in guests only".into());
    }
    let program = launcher.missing_program(work.workload)?;
    Some(format!("{} is missing", program.display()))
}

/// Takes the events of a measurement.
type Say<'a> = &'a mut dyn FnMut(Event) -> Result<()>;

fn say(event: Event) -> Result<()> {
    let mut line = serde_json::to_vec(&event)
        .map_err(|error| Error::output("ub-bench-guest", error.to_string()))?;
    line.push(b'\n');
    let mut output = io::stdout().lock();
    output.write_all(&line).and_then(|()| output.flush()).map_err(Error::io("writing an event"))
}

/// A running program and what is known of it.
pub(super) struct Side<'a> {
    mode: Mode,
    subject: Box<dyn Subject + 'a>,
    findings: Findings,
    /// Operations of the timed loads.
    operations: u64,
    /// The session after the warm-up.
    earlier: Option<Session>,
}

impl<'a> Side<'a> {
    pub(super) fn start(launcher: &'a Launcher, work: &Work, mode: Mode) -> Result<Self> {
        let how = how(mode);
        let subject = subject::start(launcher, work.workload, how)?;
        Ok(Self { mode, subject, findings: Findings::default(), operations: 0, earlier: None })
    }

    /// How it runs.
    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// The process that does the work.
    pub(super) fn worker(&mut self) -> u32 {
        self.subject.running().worker()
    }

    pub(super) fn sample(&mut self, load: &Load) -> Result<Sample> {
        let before = self.subject.running().cpu_time()?;
        let timed = self.subject.load(load, &mut self.findings)?;
        let cpu = self.subject.running().cpu_time()?.since(before);
        self.operations += timed.round.operations;
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let (cpu_ns, user_ns) = (nanoseconds(cpu.total), nanoseconds(cpu.user));
        Ok(Sample { round: timed.round, cpu_ns, user_ns, latency: timed.latency })
    }

    /// Checks the data and ends the program.
    pub(super) fn finish(mut self) -> Result<(Mode, End)> {
        let later = self.subject.running().session_so_far()?;
        // A program that was let go before its rounds was not counted in them.
        let counts = later
            .zip(self.earlier.as_ref().filter(|earlier| !earlier.ended))
            .map(|(later, earlier)| later.counts.since(&earlier.counts, self.operations));
        self.subject.check(&mut self.findings)?;
        self.subject.stop()?;
        // Waits for the supervisor, which outlives the program by a moment.
        let session = self.subject.running().session(None, self.operations)?;
        let Findings { digest, faults, .. } = self.findings;
        let report = session.map(|session| session.report);
        Ok((self.mode, End { digest: digest.finish(), faults, counts, report }))
    }
}

fn how(mode: Mode) -> How {
    match mode {
        Mode::Native => How::Native,
        Mode::Ub => How::Ub,
    }
}

/// Does one work; `count` says whether the native program's calls are counted.
pub(super) fn measure(launcher: &Launcher, work: &Work, count: bool, say: Say<'_>) -> Result<()> {
    let modes = work.modes(launcher.plan());
    // Before the others or behind them, in turns: a machine that slowly gets
    // faster or slower favours nobody.
    let unloaded_first = work.launch.is_multiple_of(2);
    let mut unloaded = None;
    if unloaded_first {
        unloaded = without_modules(launcher, work, &modes)?;
    }
    modules::with(launcher, &modes, || {
        let operations = compare(launcher, work, &modes, unloaded, say)?;
        if count && modes.contains(&Mode::Ub) {
            count_native(launcher, work, operations, say)?;
        }
        Ok(())
    })?;
    if !unloaded_first && let Some(samples) = without_modules(launcher, work, &modes)? {
        say(Event::Unloaded { work: *work, samples })?;
    }
    Ok(())
}

/// Measures the native program while the modules are not loaded, if it is this
/// driver that loads them for others.
fn without_modules(
    launcher: &Launcher,
    work: &Work,
    modes: &[Mode],
) -> Result<Option<Vec<Sample>>> {
    if launcher.plan().modules.is_empty() || !modes.contains(&Mode::Ub) {
        return Ok(None);
    }
    let mut sides = [Side::start(launcher, work, Mode::Native)?];
    let amount = pilot(launcher, &mut sides[0])?;
    let load = Load { operations: amount.operations, duration: amount.timed };
    warm_up(launcher, &mut sides, &amount)?;
    let [mut side] = sides;
    let samples = (0..work.rounds).map(|_| side.sample(&load)).collect::<Result<_>>()?;
    side.finish()?;
    Ok(Some(samples))
}

/// Loads the programs in turns; returns the operations of a load.
fn compare(
    launcher: &Launcher,
    work: &Work,
    modes: &[Mode],
    unloaded: Option<Vec<Sample>>,
    say: Say<'_>,
) -> Result<u64> {
    let mut sides =
        modes.iter().map(|mode| Side::start(launcher, work, *mode)).collect::<Result<Vec<_>>>()?;
    let native = sides
        .iter_mut()
        .find(|side| side.mode == Mode::Native)
        .ok_or_else(|| Error::Plan("modes lacks \"native\"".into()))?;
    let amount = pilot(launcher, native)?;
    let load = Load { operations: amount.operations, duration: amount.timed };
    let settled = warm_up(launcher, &mut sides, &amount)?;
    say(Event::Warm { work: *work, operations: load.operations, settled })?;
    if let Some(samples) = unloaded {
        say(Event::Unloaded { work: *work, samples })?;
    }
    for round in 0..work.rounds {
        let mut samples = Vec::new();
        for side in &mut sides {
            samples.push((side.mode, side.sample(&load)?));
        }
        tracing::info!("{} round {round}: {}", work.workload, rates(&samples));
        say(Event::Round { work: *work, samples })?;
        // The next round goes the other way: a machine that slowly gets faster
        // or slower favours nobody.
        sides.reverse();
    }
    let ends = sides.into_iter().map(Side::finish).collect::<Result<_>>()?;
    say(Event::Finished { work: *work, ends })?;
    Ok(load.operations)
}

fn rates(samples: &[(Mode, Sample)]) -> String {
    let words: Vec<String> = samples
        .iter()
        .map(|(mode, sample)| format!("{mode} {:.0} ops/s", sample.round.ops_per_s()))
        .collect();
    words.join(", ")
}

/// Finds out how many operations fill the wanted time, natively.
pub(super) fn pilot(launcher: &Launcher, native: &mut Side) -> Result<Amount> {
    let plan = launcher.plan();
    let (low, high) = plan.operations;
    let timed = Duration::from_millis(plan.timed_ms);
    let warmup = Duration::from_millis(plan.warmup_ms);
    let mut load = Load { operations: low, duration: timed / PILOT_SHARE };
    // The first load pays for cold caches and connections.
    native.subject.load(&load, &mut native.findings)?;
    loop {
        let round = native.subject.load(&load, &mut native.findings)?.round;
        // A short load says little: packets, for one, wait in the socket's
        // buffer from the last one.
        if round.seconds >= load.duration.as_secs_f64() / 2.0 || load.operations >= high {
            return Ok(scale(round.ops_per_s(), timed, warmup, low, high));
        }
        load.operations = (4 * load.operations).min(high);
    }
}

/// Loads every program until nothing changes any more.
pub(super) fn warm_up(
    launcher: &Launcher,
    sides: &mut [Side],
    amount: &Amount,
) -> Result<Option<Settled>> {
    let load = Load { operations: amount.warmup_operations, duration: amount.warmup };
    let mut settled = None;
    for side in sides {
        let subject = &mut *side.subject;
        if amount.warmup > Duration::ZERO {
            subject.load(&load, &mut side.findings)?;
        }
        let own = subject::settle(subject, launcher, how(side.mode), &load, &mut side.findings)?;
        settled = settled.or(own);
        side.earlier = subject.running().session_so_far()?;
        // What was computed so far differs between the modes.
        side.findings.digest = Digest::default();
    }
    Ok(settled)
}

/// Counts the native program's calls.
fn count_native(launcher: &Launcher, work: &Work, operations: u64, say: Say<'_>) -> Result<()> {
    let amount = Amount {
        operations: operations.div_ceil(2),
        timed: Duration::from_millis(launcher.plan().timed_ms / 2),
        warmup_operations: 0,
        warmup: Duration::ZERO,
        exact: true,
    };
    let session = sample(launcher, work.workload, How::Count, &amount)?.session;
    if let Some(session) = session {
        say(Event::Counted { workload: work.workload, counts: session.counts })?;
    }
    Ok(())
}

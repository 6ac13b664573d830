//! What the supervisor does about gaps that pay, or do not.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::{debug, info};

use super::payoff::{Holds, PERIOD, Payoff};
use super::{Pipeline, Supervisor};
use crate::abi::{GapInfo, GapReason, GapState, NATIVE_NEVER, Report, SessionConfig, Verdict};
use crate::kernel::{Btc, Kernel};

/// The longest time between two looks, of sessions in which nothing happens.
const LONGEST_PERIOD: Duration = Duration::from_secs(1);
/// Long gaps remembered until a shorter one has paid.
const WAITING: usize = 1024;

/// What is needed to judge, of sessions that measure.
#[derive(Debug)]
pub(super) struct Judging {
    gap_short_ns: u64,
    cycles_khz: u32,
    pub(super) payoff: Payoff,
    /// Long hot gaps, with a process to read from.
    waiting: HashMap<(Btc, u64), u32>,
    /// When to look again; `None` while there is nothing to look at.
    next: Option<Instant>,
    period: Duration,
    /// Samples of all gaps at the last look.
    sampled: u64,
    /// Whether nothing is to ride, since rides cannot pay on this machine.
    stays_native: bool,
}

impl Judging {
    /// `None` if a session with these thresholds does not measure.
    pub(super) fn new(config: &SessionConfig, cycles_khz: u32) -> Option<Self> {
        (config.native_interval != NATIVE_NEVER).then(|| Self {
            gap_short_ns: config.gap_short_ns,
            cycles_khz,
            payoff: Payoff::default(),
            waiting: HashMap::new(),
            next: None,
            period: PERIOD,
            sampled: 0,
            stays_native: false,
        })
    }

    /// Nothing is to ride from now on.
    pub(super) fn stay_native(&mut self, now: Instant) {
        self.stays_native = true;
        self.waiting.clear();
        // What rides now is retired at once.
        if self.next.is_some() {
            self.next = Some(now);
        }
    }

    /// Whether `entry` is to stay native at `now`.
    pub(super) fn is_held(&self, btc: Btc, entry: u64, now: Instant) -> bool {
        self.stays_native || self.payoff.is_held(btc, entry, now)
    }

    /// What is to be done about `gap`.
    fn decide(&mut self, gap: &GapInfo, now: Instant) -> Option<Verdict> {
        if self.stays_native {
            let rides = gap.state == GapState::Translated as u32;
            return rides.then(|| native_verdict(Btc(gap.btc), gap.address));
        }
        let decision = self.payoff.look(gap, now);
        self.payoff.verdict(gap, decision, self.cycles_khz, now)
    }

    /// When the next look is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// A fragment was installed: there is something to look at.
    pub(super) fn installed(&mut self, btc: Btc, entry: u64, now: Instant) {
        self.payoff.installed(btc, entry, now);
        self.waiting.remove(&(btc, entry));
        self.period = PERIOD;
        self.next.get_or_insert(now + PERIOD);
    }

    /// The address space ended.
    pub(super) fn forget(&mut self, btc: Btc) {
        self.payoff.forget(btc);
        self.waiting.retain(|(space, _), _| *space != btc);
    }

    /// Whether the hot gap of `report` is a long one, to be tried later.
    fn must_wait(&mut self, report: &Report) -> bool {
        if self.payoff.has_paid() || report.gap_ns <= self.gap_short_ns {
            return false;
        }
        if self.waiting.len() < WAITING {
            self.waiting.insert((Btc(report.btc), report.address), report.pid);
        }
        true
    }

    /// The long gaps whose time has come.
    fn take_waiting(&mut self) -> Vec<(Btc, u64, u32)> {
        if !self.payoff.has_paid() {
            return Vec::new();
        }
        self.waiting.drain().map(|((btc, address), pid)| (btc, address, pid)).collect()
    }

    /// Sets the time of the next look: soon while samples come in.
    fn schedule(&mut self, sampled: u64, now: Instant) {
        let quiet = sampled == self.sampled;
        self.sampled = sampled;
        self.period = if quiet { (2 * self.period).min(LONGEST_PERIOD) } else { PERIOD };
        self.next = Some(now + self.period);
    }
}

/// Keeps a gap native for as long as can be: nothing about the machine changes
/// before the next boot.
fn native_verdict(btc: Btc, address: u64) -> Verdict {
    Verdict {
        btc: btc.0,
        address,
        hold_ns: u64::try_from(Holds::default().longest.as_nanos()).unwrap_or(u64::MAX),
        reason: GapReason::Machine as u32,
        ..Default::default()
    }
}

impl<K: Kernel, P: Pipeline> Supervisor<K, P> {
    /// Makes the hot gap of `report` part of the BTC, unless it is a long one
    /// and no gap has paid so far.
    pub(super) fn hot(&mut self, report: &Report) {
        let (btc, address) = (Btc(report.btc), report.address);
        if self.judging.as_ref().is_some_and(|judging| judging.stays_native) {
            self.tell(&native_verdict(btc, address));
            return;
        }
        if self.judging.as_mut().is_some_and(|judging| judging.must_wait(report)) {
            self.tell_why(btc, address, GapReason::Waits);
            return;
        }
        self.recall_program(btc, report.pid);
        self.space(btc).learn_gap(address);
        self.extend(btc, address, report.pid);
        if self.spaces.get(&btc).is_some_and(|space| space.is_useless(address)) {
            self.tell_why(btc, address, GapReason::Refused);
        }
    }

    /// Tells the module, for whoever asks, why a hot gap has no fragment.
    fn tell_why(&mut self, btc: Btc, address: u64, reason: GapReason) {
        let reason = reason as u32;
        self.tell(&Verdict { btc: btc.0, address, reason, ..Default::default() });
    }

    fn tell(&mut self, verdict: &Verdict) {
        if let Err(error) = self.kernel.judge(verdict) {
            let Verdict { btc, address, .. } = verdict;
            debug!(btc, address, %error, "no record of this gap");
        }
    }

    /// Looks at what was measured, if it is time, and acts on it.
    pub(super) fn judge_gaps(&mut self, now: Instant) {
        let Some(judging) = &mut self.judging else { return };
        if judging.next.is_none_or(|next| now < next) {
            return;
        }
        let gaps = match self.kernel.gaps() {
            Ok(gaps) => gaps,
            Err(error) => {
                debug!(%error, "cannot read what was measured");
                judging.next = Some(now + LONGEST_PERIOD);
                return;
            }
        };
        for gap in &gaps {
            let Some(verdict) = judging.decide(gap, now) else { continue };
            if let Err(error) = self.kernel.judge(&verdict) {
                debug!(btc = gap.btc, address = gap.address, %error, "verdict not accepted");
                continue;
            }
            if verdict.hold_ns > 0 {
                self.counters.retired_unpaid += 1;
                if let Some(space) = self.spaces.get_mut(&Btc(gap.btc)) {
                    space.retired(gap.address);
                }
                info!(
                    btc = gap.btc,
                    address = format_args!("{:#x}", gap.address),
                    reason = GapReason::from_number(verdict.reason).map(GapReason::name),
                    native_ns = gap.native_ns,
                    ride_ns = gap.ride_ns,
                    saved_ps = verdict.saved_ps,
                    error_ps = verdict.saved_error_ps,
                    hold_s = verdict.hold_ns / 1_000_000_000,
                    "retired"
                );
            }
        }
        judging.schedule(gaps.iter().map(|gap| gap.native_sampled + gap.ride_sampled).sum(), now);
        for (btc, address, pid) in judging.take_waiting() {
            self.space(btc).learn_gap(address);
            self.extend(btc, address, pid);
        }
    }
}

//! What the supervisor does about gaps that pay, or do not.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::{debug, info};

use super::payoff::{Decision, PERIOD, Payoff};
use super::{Pipeline, Supervisor};
use crate::abi::{GapReason, NATIVE_NEVER, Report, SessionConfig, Verdict};
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
        })
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

impl<K: Kernel, P: Pipeline> Supervisor<K, P> {
    /// Makes the hot gap of `report` part of the BTC, unless it is a long one
    /// and no gap has paid so far.
    pub(super) fn hot(&mut self, report: &Report) {
        let (btc, address) = (Btc(report.btc), report.address);
        if self.judging.as_mut().is_some_and(|judging| judging.must_wait(report)) {
            self.tell(btc, address, GapReason::Waits);
            return;
        }
        self.space(btc).learn_gap(address);
        self.extend(btc, address, report.pid);
        if self.spaces.get(&btc).is_some_and(|space| space.is_useless(address)) {
            self.tell(btc, address, GapReason::Refused);
        }
    }

    /// Tells the module, for whoever asks, why a hot gap has no fragment.
    fn tell(&mut self, btc: Btc, address: u64, reason: GapReason) {
        let verdict = Verdict { btc: btc.0, address, reason: reason as u32, ..Default::default() };
        if let Err(error) = self.kernel.judge(&verdict) {
            debug!(btc = btc.0, address, %error, "no record of this gap");
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
            let decision = judging.payoff.look(gap, now);
            let verdict = judging.payoff.verdict(gap, decision, judging.cycles_khz, now);
            let Some(verdict) = verdict else { continue };
            if let Err(error) = self.kernel.judge(&verdict) {
                debug!(btc = gap.btc, address = gap.address, %error, "verdict not accepted");
                continue;
            }
            if let Decision::Retire(reason, hold, _) = decision {
                self.counters.retired_unpaid += 1;
                if let Some(space) = self.spaces.get_mut(&Btc(gap.btc)) {
                    space.retired(gap.address);
                }
                info!(
                    btc = gap.btc,
                    address = format_args!("{:#x}", gap.address),
                    reason = reason.name(),
                    native_ns = gap.native_ns,
                    ride_ns = gap.ride_ns,
                    saved_ps = verdict.saved_ps,
                    error_ps = verdict.saved_error_ps,
                    hold_s = hold.as_secs(),
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

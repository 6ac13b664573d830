//! Whether rides pay, gap by gap: a decision from measured times, without any
//! system call or clock of its own.
//!
//! The module samples each gap's passages natively and in rides, at random.
//! Here the samples of one and the same period are compared, so that a program
//! that changes what it does is not judged by the mixture. See [`saving`]
//! for how.

mod saving;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::abi::{GapInfo, GapReason, GapState, Verdict};
use crate::kernel::Btc;
use saving::FEWEST;
pub(super) use saving::Saving;

/// Time between two looks at the measurements.
pub(super) const PERIOD: Duration = Duration::from_millis(250);
/// Looks that are remembered: of a gap that is passed often, what is older than ten
/// seconds does not count.
const LOOKS: usize = 40;
/// Samples of either kind until which looks are taken for one: a gap that is seldom
/// passed is judged as well, by what came in a longer time.
const LOOK: usize = 4;
/// Samples of either kind that are remembered of one look.
const LOOK_MOST: usize = 256;
/// Samples of either kind after which a saving that cannot be shown is none.
const ENOUGH: usize = 128;
/// Fragments come one after the other, and rides end where they are still
/// missing. So nothing is measured before there was no new one for this long ...
const SETTLED: Duration = Duration::from_millis(750);
/// ... or the gap's own fragment has been there for this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// For how long a gap that did not pay goes native.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holds {
    /// After its first retirement; doubled for each further one.
    pub first: Duration,
    /// At most.
    pub longest: Duration,
}

impl Default for Holds {
    fn default() -> Self {
        Self { first: Duration::from_secs(5), longest: Duration::from_secs(3600) }
    }
}

impl Holds {
    /// What is not set is as by default, unless the other one asks for more or less: the
    /// longest is never below the first.
    #[must_use]
    pub fn of_seconds(first: Option<u64>, longest: Option<u64>) -> Self {
        let default = Self::default();
        let [first, longest] = [first, longest].map(|seconds| seconds.map(Duration::from_secs));
        Self {
            first: first.unwrap_or(longest.map_or(default.first, |most| most.min(default.first))),
            longest: longest
                .unwrap_or(first.map_or(default.longest, |least| least.max(default.longest))),
        }
    }

    /// After so many earlier retirements.
    fn after(self, retirements: u32) -> Duration {
        let hold = self.first.checked_mul(1 << retirements.min(20));
        hold.map_or(self.longest, |hold| hold.min(self.longest))
    }
}

/// What is to be done about a translated gap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Decision {
    /// It is too early to tell.
    Measure,
    /// It stays.
    Keep(Saving),
    /// It goes, and stays away for so long.
    Retire(GapReason, Duration, Saving),
}

/// New samples of one look.
#[derive(Debug, Default)]
struct Look {
    native: Vec<u32>,
    ride: Vec<u32>,
}

impl Look {
    fn is_complete(&self) -> bool {
        self.native.len().min(self.ride.len()) >= LOOK
    }

    /// Adds what is newer, each newest first.
    fn add(&mut self, native: &[u32], ride: &[u32]) {
        for (known, new) in [(&mut self.native, native), (&mut self.ride, ride)] {
            known.splice(0..0, new.iter().copied());
            known.truncate(LOOK_MOST);
        }
    }
}

/// The measurements of one gap.
#[derive(Debug)]
struct Trial {
    /// When its fragment came first, since it was last retired.
    since: Instant,
    /// Newest first.
    looks: VecDeque<Look>,
    /// Samples of the module that were taken over or passed over.
    native_seen: u64,
    ride_seen: u64,
    retirements: u32,
    held_until: Option<Instant>,
    /// What was told to the module, and when.
    told: Option<(GapReason, Instant)>,
    /// Since when it pays.
    pays_since: Option<Instant>,
}

impl Trial {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            looks: VecDeque::new(),
            native_seen: 0,
            ride_seen: 0,
            retirements: 0,
            held_until: None,
            told: None,
            pays_since: None,
        }
    }

    /// Takes over what is new in `gap`, or only notes that it was seen.
    fn look(&mut self, gap: &GapInfo, counts: bool) {
        let native = latest(gap.native_sampled, &mut self.native_seen, &gap.native_cycles);
        let ride = latest(gap.ride_sampled, &mut self.ride_seen, &gap.ride_cycles);
        if counts {
            if self.looks.front().is_none_or(Look::is_complete) {
                self.looks.push_front(Look::default());
                self.looks.truncate(LOOKS);
            }
            self.looks[0].add(native, ride);
        } else {
            self.looks.clear();
        }
    }

    /// Judges by the latest looks, as few as suffice.
    fn judge(&self) -> Judgement {
        let (mut native, mut ride) = (Vec::new(), Vec::new());
        let mut last = Judgement::Open(None);
        let mut next = FEWEST;
        for look in &self.looks {
            native.extend_from_slice(&look.native);
            ride.extend_from_slice(&look.ride);
            let fewer = native.len().min(ride.len());
            if fewer < next {
                continue;
            }
            // Not at every step: each is another chance to err.
            next = 2 * fewer;
            let Some(saving) = Saving::of(&native, &ride) else { continue };
            if saving.is_positive() {
                return Judgement::Pays(saving);
            }
            if saving.is_negative() {
                return Judgement::Slower(saving);
            }
            last = if fewer >= ENOUGH {
                Judgement::NoGain(saving)
            } else {
                Judgement::Open(Some(saving))
            };
        }
        last
    }

    fn retire(&mut self, now: Instant, hold: Duration) {
        self.retirements += 1;
        self.held_until = Some(now + hold);
        self.pays_since = None;
        self.looks.clear();
    }
}

/// The samples that came since `seen`, newest first; as many as were kept.
fn latest<'a>(count: u64, seen: &mut u64, cycles: &'a [u32]) -> &'a [u32] {
    // The module starts over with each fragment.
    let new = if count < *seen { count } else { count - *seen };
    *seen = count;
    &cycles[..usize::try_from(new).unwrap_or(usize::MAX).min(cycles.len())]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Judgement {
    Open(Option<Saving>),
    Pays(Saving),
    Slower(Saving),
    NoGain(Saving),
}

/// The measurements of all gaps of a session.
#[derive(Debug, Default)]
pub(super) struct Payoff {
    pub(super) holds: Holds,
    trials: HashMap<(Btc, u64), Trial>,
    /// When the last fragment was installed, by address space.
    installed: HashMap<Btc, Instant>,
    /// Whether any gap has paid: then long ones are worth trying.
    paid: bool,
}

impl Payoff {
    /// A fragment for `entry` was installed.
    pub(super) fn installed(&mut self, btc: Btc, entry: u64, now: Instant) {
        self.installed.insert(btc, now);
        let trial = self.trials.entry((btc, entry)).or_insert_with(|| Trial::new(now));
        if trial.held_until.take().is_some() {
            trial.since = now;
        }
        // Its rides are others from now on; the module starts over as well.
        trial.looks.clear();
        trial.ride_seen = 0;
    }

    /// Whether `entry` was retired and its time is not over.
    pub(super) fn is_held(&self, btc: Btc, entry: u64, now: Instant) -> bool {
        let trial = self.trials.get(&(btc, entry));
        trial.and_then(|trial| trial.held_until).is_some_and(|until| now < until)
    }

    /// Whether a gap has paid, so that longer ones may be tried.
    pub(super) fn has_paid(&self) -> bool {
        self.paid
    }

    /// The address space ended.
    pub(super) fn forget(&mut self, btc: Btc) {
        self.trials.retain(|(space, _), _| *space != btc);
        self.installed.remove(&btc);
    }

    /// The code in `range` changed: what was measured there is void.
    pub(super) fn forget_range(&mut self, btc: Btc, range: &std::ops::Range<u64>) {
        self.trials.retain(|(space, entry), _| *space != btc || !range.contains(entry));
    }

    /// Takes over what the module measured of `gap` and decides.
    pub(super) fn look(&mut self, gap: &GapInfo, now: Instant) -> Decision {
        let btc = Btc(gap.btc);
        let translated = gap.state == GapState::Translated as u32;
        let Some(trial) = self.trials.get_mut(&(btc, gap.address)) else {
            return Decision::Measure;
        };
        let installed = self.installed.get(&btc).copied().unwrap_or(trial.since);
        let settled = now.saturating_duration_since(installed) >= SETTLED
            || now.saturating_duration_since(trial.since) >= PATIENCE;
        let hold = self.holds.after(trial.retirements);
        trial.look(gap, translated && settled);
        if !translated || !settled {
            return Decision::Measure;
        }
        match trial.judge() {
            Judgement::Open(_) => Decision::Measure,
            Judgement::Pays(saving) => {
                self.paid = true;
                let since = *trial.pays_since.get_or_insert(now);
                // It pays for longer than it was away: that is forgotten.
                if now.saturating_duration_since(since) > hold {
                    trial.retirements = 0;
                }
                Decision::Keep(saving)
            }
            Judgement::Slower(saving) => {
                trial.retire(now, hold);
                Decision::Retire(GapReason::Slower, hold, saving)
            }
            Judgement::NoGain(saving) => {
                trial.retire(now, hold);
                Decision::Retire(GapReason::NoGain, hold, saving)
            }
        }
    }

    /// The verdict to tell the module, unless it was told much the same
    /// within the last second. Cycles are of a counter of `khz`.
    pub(super) fn verdict(
        &mut self,
        gap: &GapInfo,
        decision: Decision,
        khz: u32,
        now: Instant,
    ) -> Option<Verdict> {
        const AGAIN: Duration = Duration::from_secs(1);
        let (reason, hold, saving) = match decision {
            Decision::Measure => return None,
            Decision::Keep(saving) => (GapReason::Pays, Duration::ZERO, saving),
            Decision::Retire(reason, hold, saving) => (reason, hold, saving),
        };
        let trial = self.trials.get_mut(&(Btc(gap.btc), gap.address))?;
        if trial.told.is_some_and(|(told, when)| {
            told == reason && gap.reason == reason as u32 && now.duration_since(when) < AGAIN
        }) && hold.is_zero()
        {
            return None;
        }
        trial.told = Some((reason, now));
        let picoseconds = |cycles: f64| cycles * 1e9 / f64::from(khz.max(1));
        Some(Verdict {
            btc: gap.btc,
            address: gap.address,
            hold_ns: u64::try_from(hold.as_nanos()).unwrap_or(u64::MAX),
            saved_ps: picoseconds(saving.cycles) as i64,
            saved_error_ps: picoseconds(saving.error) as u64,
            reason: reason as u32,
            reserved: 0,
        })
    }
}

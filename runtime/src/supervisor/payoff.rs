//! Whether rides pay, gap by gap: a decision from measured times, without any
//! system call or clock of its own.
//!
//! The module samples each gap's passages natively and in rides, at random.
//! Here the samples of one and the same period are compared, so that a program
//! that changes what it does is not judged by the mixture. The comparison is
//! Yuen's: means of what is left when a fifth at either end is left out, and
//! their standard error from the winsorised variances. Interrupts and cold
//! caches put a long tail on both kinds of passage, which would decide a
//! difference of plain means; a difference of medians would say nothing of a gap
//! that takes several ways through the code, some of them slower in a ride.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::abi::{GapInfo, GapReason, GapState, Verdict};
use crate::kernel::Btc;

/// Time between two looks at the measurements.
pub(super) const PERIOD: Duration = Duration::from_millis(250);
/// Looks that are remembered: what is older than ten seconds does not count.
const LOOKS: usize = 40;
/// Samples of either kind without which nothing is decided.
const FEWEST: usize = 16;
/// Standard errors between nought and a difference that is believed, of many
/// samples. Three, because the same question is asked four times a second.
const CONFIDENT: f64 = 3.0;
/// Added to that, divided by the samples that are left after trimming: the
/// error itself is uncertain when it comes from few (Student's distribution).
const UNCERTAIN: f64 = 15.0;
/// Samples of either kind after which a saving that cannot be shown is none.
const ENOUGH: usize = 128;
/// Fragments come one after the other, and rides end where they are still
/// missing. So nothing is measured before there was no new one for this long ...
const SETTLED: Duration = Duration::from_millis(750);
/// ... or the gap's own fragment has been there for this long.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long a gap goes native after its first retirement. Doubled for
/// each further one.
const FIRST_HOLD: Duration = Duration::from_secs(5);
/// The longest time for which a gap goes native.
const LONGEST_HOLD: Duration = Duration::from_secs(3600);

/// What a ride saves, in cycles a passage.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Saving {
    /// The difference of the trimmed means; negative if the ride is slower.
    pub(super) cycles: f64,
    /// Its standard error.
    pub(super) error: f64,
    /// Half the width of the interval in which it is believed to lie.
    margin: f64,
}

impl Saving {
    /// Yuen's comparison; `None` of too few samples.
    pub(super) fn of(native: &[u32], ride: &[u32]) -> Option<Self> {
        let (native, ride) = (Trimmed::of(native)?, Trimmed::of(ride)?);
        let error = (native.squared_error + ride.squared_error).sqrt();
        let margin = error * (CONFIDENT + UNCERTAIN / native.left.min(ride.left) as f64);
        Some(Self { cycles: native.mean - ride.mean, error, margin })
    }

    fn is_positive(self) -> bool {
        self.cycles > self.margin
    }

    fn is_negative(self) -> bool {
        -self.cycles > self.margin
    }
}

/// A mean without the fifth of the samples at either end.
struct Trimmed {
    /// How many samples are left.
    left: usize,
    mean: f64,
    squared_error: f64,
}

impl Trimmed {
    fn of(samples: &[u32]) -> Option<Self> {
        if samples.len() < FEWEST {
            return None;
        }
        let mut sorted: Vec<f64> = samples.iter().map(|sample| f64::from(*sample)).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (count, cut) = (sorted.len(), sorted.len() / 5);
        let (low, high) = (sorted[cut], sorted[count - 1 - cut]);
        let left = count - 2 * cut;
        let mean = sorted[cut..count - cut].iter().sum::<f64>() / left as f64;
        let winsorised = || sorted.iter().map(|sample| sample.clamp(low, high));
        let center = winsorised().sum::<f64>() / count as f64;
        let squares: f64 = winsorised().map(|sample| (sample - center).powi(2)).sum();
        // The sum is (n - 1) times the winsorised variance.
        let squared_error = squares / (left as f64 * (left - 1) as f64);
        Some(Self { left, mean, squared_error })
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
            self.looks.push_front(Look { native: native.to_vec(), ride: ride.to_vec() });
            self.looks.truncate(LOOKS);
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

    fn hold(&self) -> Duration {
        FIRST_HOLD
            .checked_mul(1 << self.retirements.min(20))
            .map_or(LONGEST_HOLD, |hold| hold.min(LONGEST_HOLD))
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
                if now.saturating_duration_since(since) > trial.hold() {
                    trial.retirements = 0;
                }
                Decision::Keep(saving)
            }
            Judgement::Slower(saving) => {
                Decision::Retire(GapReason::Slower, Self::retire(trial, now), saving)
            }
            Judgement::NoGain(saving) => {
                Decision::Retire(GapReason::NoGain, Self::retire(trial, now), saving)
            }
        }
    }

    fn retire(trial: &mut Trial, now: Instant) -> Duration {
        let hold = trial.hold();
        trial.retirements += 1;
        trial.held_until = Some(now + hold);
        trial.pays_since = None;
        trial.looks.clear();
        hold
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::GAP_SAMPLES;

    const BTC: Btc = Btc(3);
    const GAP: u64 = 0x40_1000;
    const KHZ: u32 = 2_000_000;

    /// Numbers without order, the same in each run.
    struct Noise(u32);

    impl Noise {
        /// `center` and up to a tenth more or less; once in sixteen times an
        /// interrupt of twenty thousand cycles comes in between.
        fn around(&mut self, center: u32) -> u32 {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = center - center / 10 + (self.0 >> 8) % (center / 5);
            if self.0 >> 28 == 0 { value + 20_000 } else { value }
        }
    }

    /// A module that measures one gap.
    struct Fake {
        gap: GapInfo,
        noise: Noise,
    }

    impl Fake {
        fn new(seed: u32) -> Self {
            let state = GapState::Translated as u32;
            let gap = GapInfo { btc: BTC.0, address: GAP, state, ..Default::default() };
            Self { gap, noise: Noise(seed) }
        }

        /// Adds samples, as many as come in one look.
        fn run(&mut self, native: (u32, usize), ride: (u32, usize)) {
            let Self { gap, noise } = self;
            for (cycles, count, (center, samples)) in [
                (&mut gap.native_cycles, &mut gap.native_sampled, native),
                (&mut gap.ride_cycles, &mut gap.ride_sampled, ride),
            ] {
                for _ in 0..samples {
                    cycles.copy_within(..GAP_SAMPLES - 1, 1);
                    cycles[0] = noise.around(center);
                    *count += 1;
                }
            }
        }
    }

    /// Looks at `fake` until there is a decision, at most for ten seconds.
    fn decide(
        payoff: &mut Payoff,
        fake: &mut Fake,
        now: &mut Instant,
        native: (u32, usize),
        ride: (u32, usize),
    ) -> Decision {
        for _ in 0..LOOKS {
            fake.run(native, ride);
            *now += PERIOD;
            match payoff.look(&fake.gap, *now) {
                Decision::Measure => {}
                decided => return decided,
            }
        }
        Decision::Measure
    }

    fn translated() -> (Payoff, Fake, Instant) {
        let (mut payoff, now) = (Payoff::default(), Instant::now());
        payoff.installed(BTC, GAP, now);
        (payoff, Fake::new(7), now)
    }

    #[test]
    fn a_fifth_of_interrupts_does_not_move_the_mean() {
        let mut samples = vec![100; 80];
        samples.extend([50_000; 10]);
        let all = Saving::of(&samples, &[100; 20]).unwrap();
        assert_eq!((all.cycles, all.error), (0.0, 0.0));
        assert_eq!(Saving::of(&samples, &[100; FEWEST - 1]), None);
    }

    #[test]
    fn yuens_figures_are_those_of_the_book() {
        // Ten each of 1..=10 and 3..=12: 3..=8 are left of the first, mean 5.5;
        // the winsorised squares are 3 * 2 * 2.5^2 + 2 * (1.5^2 + 0.5^2) = 42.5.
        let ten: Vec<u32> = (1..=10).flat_map(|n| [n; 10]).collect();
        let later: Vec<u32> = (3..=12).flat_map(|n| [n; 10]).collect();
        let saving = Saving::of(&later, &ten).unwrap();
        assert!((saving.cycles - 2.0).abs() < 1e-9, "{saving:?}");
        let expected = (2.0 * 425.0 / (60.0 * 59.0_f64)).sqrt();
        assert!((saving.error - expected).abs() < 1e-9, "{saving:?} {expected}");
    }

    #[test]
    fn what_is_faster_stays() {
        let (mut payoff, mut fake, mut now) = translated();
        let decision = decide(&mut payoff, &mut fake, &mut now, (1000, 8), (800, 32));
        let Decision::Keep(saving) = decision else { panic!("{decision:?}") };
        assert!((150.0..250.0).contains(&saving.cycles), "{saving:?}");
        assert!(payoff.has_paid());
        let verdict = payoff.verdict(&fake.gap, decision, KHZ, now).unwrap();
        assert_eq!((verdict.reason, verdict.hold_ns), (GapReason::Pays as u32, 0));
        assert!((75_000..125_000).contains(&verdict.saved_ps), "{verdict:?}");
        // Told once a second, and no more.
        fake.gap.reason = GapReason::Pays as u32;
        assert_eq!(payoff.verdict(&fake.gap, decision, KHZ, now), None);
        assert!(payoff.verdict(&fake.gap, decision, KHZ, now + Duration::from_secs(2)).is_some());
    }

    #[test]
    fn what_is_slower_goes_within_five_seconds_and_stays_away() {
        let (mut payoff, mut fake, mut now) = translated();
        let start = now;
        let decision = decide(&mut payoff, &mut fake, &mut now, (1000, 8), (1300, 32));
        assert!(now - start < Duration::from_secs(5), "{:?}", now - start);
        let Decision::Retire(GapReason::Slower, hold, saving) = decision else {
            panic!("{decision:?}")
        };
        assert_eq!(hold, FIRST_HOLD);
        assert!(saving.cycles < -200.0, "{saving:?}");
        assert!(payoff.is_held(BTC, GAP, now + hold - PERIOD));
        assert!(!payoff.is_held(BTC, GAP, now + hold));
        assert!(!payoff.has_paid());
    }

    #[test]
    fn each_time_it_stays_away_for_longer() {
        let (mut payoff, mut fake, mut now) = translated();
        for times in 0..16 {
            let decision = decide(&mut payoff, &mut fake, &mut now, (1000, 8), (1300, 32));
            let Decision::Retire(_, hold, _) = decision else { panic!("{decision:?}") };
            assert_eq!(hold, (FIRST_HOLD * (1 << times)).min(LONGEST_HOLD));
            now += hold;
            payoff.installed(BTC, GAP, now);
            fake.gap.ride_sampled = 0;
        }
    }

    #[test]
    fn having_paid_for_long_makes_up_for_it() {
        let (mut payoff, mut fake, mut now) = translated();
        decide(&mut payoff, &mut fake, &mut now, (1000, 8), (1300, 32));
        now += FIRST_HOLD;
        payoff.installed(BTC, GAP, now);
        fake.gap.ride_sampled = 0;
        let end = now + 4 * FIRST_HOLD;
        while now < end {
            let decision = decide(&mut payoff, &mut fake, &mut now, (1000, 8), (800, 32));
            assert!(matches!(decision, Decision::Keep(_)), "{decision:?}");
        }
        let mut decision = Decision::Measure;
        while !matches!(decision, Decision::Retire(..)) {
            decision = decide(&mut payoff, &mut fake, &mut now, (1000, 8), (1300, 32));
        }
        assert!(matches!(decision, Decision::Retire(_, FIRST_HOLD, _)), "{decision:?}");
    }

    #[test]
    fn no_difference_is_no_gain() {
        let (mut payoff, mut fake, mut now) = translated();
        let decision = decide(&mut payoff, &mut fake, &mut now, (1000, 16), (1000, 32));
        assert!(matches!(decision, Decision::Retire(GapReason::NoGain, ..)), "{decision:?}");
    }

    /// How often chance decides: of gaps without any difference, few may be
    /// found slower or faster.
    #[test]
    fn chance_seldom_decides() {
        let wrong = (0..400)
            .filter(|seed| {
                let (mut payoff, mut now) = (Payoff::default(), Instant::now());
                payoff.installed(BTC, GAP, now);
                let mut fake = Fake::new(*seed);
                let decision = decide(&mut payoff, &mut fake, &mut now, (1000, 16), (1000, 32));
                !matches!(decision, Decision::Retire(GapReason::NoGain, ..))
            })
            .count();
        assert!(wrong <= 400 / 20, "{wrong} of 400");
    }

    #[test]
    fn too_few_samples_decide_nothing() {
        let (mut payoff, mut fake, mut now) = translated();
        let decision = decide(&mut payoff, &mut fake, &mut now, (1000, 0), (9000, 32));
        assert_eq!(decision, Decision::Measure);
    }

    #[test]
    fn a_change_of_phase_is_noticed_within_two_seconds() {
        let (mut payoff, mut fake, mut now) = translated();
        for _ in 0..60 {
            decide(&mut payoff, &mut fake, &mut now, (1000, 8), (700, 32));
        }
        // Longer gaps, which lose: the old short ones do not count against it.
        let change = now;
        let mut decision = Decision::Measure;
        while !matches!(decision, Decision::Retire(GapReason::Slower, ..)) {
            decision = decide(&mut payoff, &mut fake, &mut now, (40_000, 8), (50_000, 32));
            assert!(now - change <= Duration::from_secs(2), "{decision:?}");
        }
    }

    #[test]
    fn a_change_of_phase_alone_is_no_loss() {
        let (mut payoff, mut fake, mut now) = translated();
        for turn in 0..20 {
            let length = if turn % 2 == 0 { 1000 } else { 3000 };
            for _ in 0..8 {
                let decision = decide(
                    &mut payoff,
                    &mut fake,
                    &mut now,
                    (length, 20),
                    (length - length / 4, 32),
                );
                assert!(matches!(decision, Decision::Keep(_)), "turn {turn}: {decision:?}");
            }
        }
    }

    #[test]
    fn nothing_counts_before_fragments_have_settled() {
        let (mut payoff, mut fake, mut now) = translated();
        // A new fragment with every look: rides are cut short by what is missing.
        let start = now;
        while now + PERIOD < start + PATIENCE {
            payoff.installed(BTC, GAP + 0x100, now);
            let decision = {
                fake.run((1000, 16), (5000, 32));
                now += PERIOD;
                payoff.look(&fake.gap, now)
            };
            assert_eq!(decision, Decision::Measure);
        }
        now += SETTLED;
        let decision = decide(&mut payoff, &mut fake, &mut now, (1000, 16), (800, 32));
        assert!(matches!(decision, Decision::Keep(_)), "{decision:?}");
    }

    #[test]
    fn other_code_is_another_gap() {
        let (mut payoff, mut fake, mut now) = translated();
        decide(&mut payoff, &mut fake, &mut now, (1000, 8), (1300, 32));
        assert!(payoff.is_held(BTC, GAP, now));
        payoff.forget_range(BTC, &(GAP..GAP + 1));
        assert!(!payoff.is_held(BTC, GAP, now));
    }
}

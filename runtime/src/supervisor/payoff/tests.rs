//! Decisions about gaps that a module seems to measure.

use super::*;
use crate::abi::GAP_SAMPLES;

const BTC: Btc = Btc(3);
const GAP: u64 = 0x40_1000;
const KHZ: u32 = 2_000_000;
const FIRST_HOLD: Duration = Duration::from_secs(5);

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

/// For how long a gap that never pays stays away, time after time.
fn holds_of_sixteen(holds: Holds) -> Vec<Duration> {
    let (mut payoff, mut fake, mut now) = translated();
    payoff.holds = holds;
    let retire = |_| {
        let decision = decide(&mut payoff, &mut fake, &mut now, (1000, 8), (1300, 32));
        let Decision::Retire(_, hold, _) = decision else { panic!("{decision:?}") };
        now += hold;
        payoff.installed(BTC, GAP, now);
        fake.gap.ride_sampled = 0;
        hold
    };
    (0..16).map(retire).collect()
}

#[test]
fn each_time_it_stays_away_for_longer() {
    let seconds =
        |first: u64, longest| move |times: u32| Duration::from_secs((first << times).min(longest));
    let expected: Vec<_> = (0..16).map(seconds(5, 3600)).collect();
    assert_eq!(holds_of_sixteen(Holds::default()), expected);
    let holds = Holds { first: Duration::from_secs(2), longest: Duration::from_secs(9) };
    let expected: Vec<_> = (0..16).map(seconds(2, 9)).collect();
    assert_eq!(holds_of_sixteen(holds), expected);
}

#[test]
fn the_longest_hold_is_no_shorter_than_the_first() {
    assert_eq!(Holds::of_seconds(None, None), Holds::default());
    assert_eq!(Holds::of_seconds(Some(5), Some(3600)), Holds::default());
    let day = Holds::of_seconds(Some(86_400), None);
    assert_eq!(
        (day.first, day.longest),
        (Duration::from_secs(86_400), Duration::from_secs(86_400))
    );
    assert_eq!(Holds::of_seconds(None, Some(2)).first, Duration::from_secs(2));
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

/// A loss that is passed a few times a second is one for hours.
#[test]
fn what_is_seldom_passed_is_judged_in_time() {
    for (ride, pays) in [(1300, false), (800, true)] {
        let (mut payoff, mut fake, mut now) = translated();
        let start = now;
        let mut decision = Decision::Measure;
        for look in 0.. {
            // Of so many looks as are remembered fewer have samples than are needed.
            if look % 8 == 0 {
                fake.run((1000, 1), (ride, 1));
            }
            now += PERIOD;
            decision = payoff.look(&fake.gap, now);
            if decision != Decision::Measure {
                break;
            }
            assert!(now - start < Duration::from_secs(150));
        }
        assert_eq!(matches!(decision, Decision::Keep(_)), pays, "{decision:?}");
    }
}

/// Without the one kind, the other is not kept for ever.
#[test]
fn what_is_remembered_is_bounded() {
    let (mut payoff, mut fake, mut now) = translated();
    for _ in 0..100 {
        decide(&mut payoff, &mut fake, &mut now, (1000, 0), (9000, 32));
    }
    let kept = payoff.trials[&(BTC, GAP)].looks.iter().map(|look| look.ride.len()).sum::<usize>();
    assert!((1..=LOOK_MOST).contains(&kept), "{kept}");
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
            let decision =
                decide(&mut payoff, &mut fake, &mut now, (length, 20), (length - length / 4, 32));
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

//! What riding would gain, from a profile made without it.
//!
//! With δ the measured cost of a switch, ω the rest of the call and a the
//! user time per call, removing every switch saves δ / (a + ω + δ) of the
//! time: the performance-degradation formula of Magoutis et al., "The Case
//! Against User-Level Networking", turned around. More than that is saved where
//! a crossing makes the code on both sides slower, which is measured
//! ([`Refill`](crate::costs::Refill)); less, because translated code is slower
//! than the original and a ride costs something itself. Gaps that would lose
//! are left out, as the module retires their fragments.

mod allowed;
mod ride;

use std::fmt::Write;

use serde::Serialize;
use ub_report::units::{duration, grouped};

use crate::costs::Costs;
use crate::profile::{Profile, ProfiledGap};
use allowed::is_allowed;

pub use ride::RideCosts;

/// Version of the JSON form.
pub const SCHEMA: u32 = 1;
/// Below this share of the CPU time in switches, there is nothing to gain.
const NOT_BOUND: f64 = 0.02;
/// Below this share of one CPU, a program waits most of the time.
const MOSTLY_WAITS: f64 = 0.2;
/// Gaps from 2 to this power nanoseconds are the scheduler's work rather
/// than the program's, and do not count as user time.
const PREEMPTED_LOG2: usize = 17;
/// What is expected, and from what.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What was measured on this machine.
    pub costs: Costs,
    /// What a ridden call costs that does nothing, in nanoseconds.
    pub ride_ns: f64,
    /// What was assumed about rides.
    pub ride: RideCosts,
    /// System calls.
    pub calls: u64,
    /// CPU time without what the profiler used, in nanoseconds.
    pub busy_ns: f64,
    /// `busy_ns` of the observed time.
    pub busy_share: f64,
    /// Share of `busy_ns` that goes into switches, δ / (a + ω + δ).
    pub bound: f64,
    /// The same with what the code on both sides pays for having been left: no
    /// ride can save more.
    pub crossing: f64,
    /// Share of `busy_ns` that riding should save.
    pub saved: f64,
    /// How much more a program limited by the CPU should get done: 0.1 is
    /// 10 % more.
    pub gain: f64,
    /// Share of the system calls that should be ridden.
    pub ridden_share: f64,
    /// The verdict in words.
    pub verdict: Verdict,
    /// The gaps, the one that saves most first.
    pub gaps: Vec<PredictedGap>,
}

/// The answer to "should I".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No system calls were seen.
    Nothing,
    /// Switches are too small a part.
    NotBound,
    /// Switches matter, but its gaps are too long for translated code to win.
    DoesNotPay,
    /// It should get faster.
    Pays,
}

/// One gap, all threads together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PredictedGap {
    /// Where it starts and which call it goes to.
    pub label: String,
    /// Passages.
    pub count: u64,
    /// User time, in nanoseconds.
    pub user_ns: f64,
    /// The rest of the call before it, in nanoseconds; waiting included.
    pub call_ns: f64,
    /// δ / (a + ω + δ).
    pub bound: f64,
    /// What the call and the gap pay for having been left, in nanoseconds.
    pub refill_ns: f64,
    /// Nanoseconds saved at each passage; negative if it would lose.
    pub saved_ns: f64,
    /// Whether it should ride.
    pub rides: bool,
}

/// Says what riding would gain.
#[must_use]
pub fn predict(profile: &Profile, ride: RideCosts) -> Prediction {
    let calls = profile.calls();
    let costs = &profile.costs;
    let mut gaps: Vec<PredictedGap> = Vec::new();
    for gap in profile.gaps.iter().filter(|gap| gap.timed() > 0) {
        let predicted = predicted(gap, profile, ride);
        match gaps.iter_mut().find(|known| known.label == predicted.label) {
            Some(known) => known.merge(&predicted),
            None => gaps.push(predicted),
        }
    }
    let total = |gap: &PredictedGap| gap.saved_ns * gap.count as f64;
    gaps.sort_by(|a, b| total(b).total_cmp(&total(a)));

    let busy_ns = busy(profile, &gaps);
    let bound = (calls as f64 * costs.switch_ns / busy_ns).min(1.0);
    let refill: f64 = gaps.iter().map(|gap| gap.refill_ns * gap.count as f64).sum();
    let crossing = (bound + refill / busy_ns).min(1.0);
    let riding = || gaps.iter().filter(|gap| gap.rides);
    let ridden: u64 = riding().map(|gap| gap.count).sum();
    // Whatever the noise of the measurements says, the rides themselves remain.
    let ride_ns = ride.call_ns(costs.instruction_ns);
    let most = crossing.min(1.0 - ridden as f64 * ride_ns / busy_ns).max(0.0);
    let saved = (riding().map(total).sum::<f64>() / busy_ns).clamp(0.0, most);
    let verdict = if calls == 0 {
        Verdict::Nothing
    } else if bound < NOT_BOUND {
        Verdict::NotBound
    } else if saved < NOT_BOUND / 2.0 {
        Verdict::DoesNotPay
    } else {
        Verdict::Pays
    };
    Prediction {
        schema: SCHEMA,
        costs: *costs,
        ride_ns,
        ride,
        calls,
        busy_ns,
        busy_share: busy_ns / (profile.elapsed_ns as f64).max(1.0),
        bound,
        crossing,
        saved,
        gain: saved / (1.0 - saved).max(0.01),
        ridden_share: ridden as f64 / calls.max(1) as f64,
        verdict,
        gaps,
    }
}

/// CPU time without what the profiler used, in nanoseconds: what the scheduler
/// counted less what a null call pays for being watched. Other calls pay less,
/// as they touch anyway much of what the profiler touches; so where nothing
/// waits, it is at least the sum of what was seen.
fn busy(profile: &Profile, gaps: &[PredictedGap]) -> f64 {
    let Costs { switch_ns, overhead_ns, .. } = profile.costs;
    let (calls, cpu_ns) = (profile.calls() as f64, profile.cpu_ns as f64);
    let seen: f64 =
        gaps.iter().map(|gap| gap.count as f64 * (switch_ns + gap.user_ns + gap.call_ns)).sum();
    let counted = (cpu_ns - overhead_ns * calls).max(calls * switch_ns).max(1.0);
    if seen < cpu_ns { counted.max(seen) } else { counted }
}

fn predicted(gap: &ProfiledGap, profile: &Profile, ride: RideCosts) -> PredictedGap {
    let switch_ns = profile.costs.switch_ns;
    let user_ns = (typical(gap) - profile.costs.empty_gap_ns).max(0.0);
    let call_ns = (gap.call_ns as f64 / gap.timed() as f64 - profile.costs.empty_call_ns).max(0.0);
    let refill = ride.refill(profile.costs.refill);
    let refill_user_ns = refill.of_time(user_ns);
    // Copying takes as long either way.
    let copied_ns = gap.bytes as f64 / gap.timed() as f64 * profile.costs.copied_byte_ns;
    let path_ns = (call_ns - copied_ns).max(0.0);
    let refill_ns = refill.of_time(path_ns) + refill_user_ns;
    let instruction_ns = profile.costs.instruction_ns;
    let slower_ns = ride.slower_ns(user_ns - refill_user_ns, instruction_ns);
    let ride_ns = ride.call_ns(instruction_ns);
    let saved_ns = switch_ns + refill_ns - ride_ns - slower_ns;
    // A ride begins after a call that it could have made as well.
    let can_ride =
        is_allowed(&gap.next) && gap.call.as_deref().is_some_and(is_allowed) && gap.resume != 0;
    let from = gap.from().unwrap_or_default();
    PredictedGap {
        label: format!("{from} -> {}", gap.next),
        count: gap.count,
        user_ns,
        call_ns,
        bound: switch_ns / (user_ns + call_ns + switch_ns).max(1e-9),
        refill_ns,
        saved_ns,
        rides: can_ride && saved_ns > 0.0 && ride.may_pay(),
    }
}

/// Mean length of a gap in nanoseconds, without the passages in which the
/// thread was taken off its CPU.
fn typical(gap: &ProfiledGap) -> f64 {
    let preempted = gap.gap_log2.iter().enumerate().skip(PREEMPTED_LOG2);
    let (mut time, mut count) = (0.0, 0);
    for (power, passages) in preempted {
        // The middle of what the element stands for, on its logarithmic scale.
        time += *passages as f64 * (1u64 << power) as f64 * std::f64::consts::SQRT_2;
        count += passages;
    }
    let timed = gap.timed();
    let mean = gap.gap_ns as f64 / timed.max(1) as f64;
    let rest = timed - count;
    // A program most of whose gaps are that long does compute.
    if count == 0 || rest <= timed / 2 {
        return mean;
    }
    // The estimate of what was taken away is coarse: it must not go below
    // what was seen of the rest.
    ((gap.gap_ns as f64 - time) / rest as f64).min(mean).max(shortest(gap))
}

/// Lower end of the first element in use.
fn shortest(gap: &ProfiledGap) -> f64 {
    let first = gap.gap_log2.iter().position(|count| *count > 0).unwrap_or(0);
    (1u64 << first) as f64
}

impl PredictedGap {
    fn merge(&mut self, other: &Self) {
        let (ours, theirs) = (self.count as f64, other.count as f64);
        let mean = |a: f64, b: f64| (a * ours + b * theirs) / (ours + theirs);
        self.user_ns = mean(self.user_ns, other.user_ns);
        self.call_ns = mean(self.call_ns, other.call_ns);
        self.saved_ns = mean(self.saved_ns, other.saved_ns);
        self.bound = mean(self.bound, other.bound);
        self.refill_ns = mean(self.refill_ns, other.refill_ns);
        self.rides = self.saved_ns > 0.0 && (self.rides || other.rides);
        self.count += other.count;
    }
}

impl Prediction {
    /// For terminals; `most` is the number of gaps shown.
    #[must_use]
    pub fn text(&self, most: usize) -> String {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let mut out = String::new();
        let mut line = |figure: String, what: &str| {
            let _ = writeln!(out, "{figure:>18}  {what}");
        };
        line(grouped(self.calls), "system calls");
        let Costs { switch_ns, refill, .. } = self.costs;
        let refill = self.ride.refill(refill);
        line(duration(switch_ns), "for each switch, measured here");
        line(duration(refill.most_ns), "at most that code on either side pays besides");
        line(duration(self.ride_ns), "for a ridden call that does nothing");
        line(percent(self.busy_share), "of a CPU in use");
        line(percent(self.bound), "of that in switches");
        line(percent(self.crossing), "with what they cause: no ride can save more");
        line(percent(self.ridden_share), "of the system calls should be ridden");
        line(percent(self.saved), "of the CPU time should be saved");
        let _ = write!(out, "\n {}\n\n", self.verdict_text());
        if self.gaps.is_empty() || most == 0 || self.verdict == Verdict::NotBound {
            return out;
        }
        let _ = writeln!(
            out,
            " {:>12} {:>9} {:>9} {:>8} {:>9}  gap ({} of {})",
            "passages",
            "user",
            "call",
            "bound",
            "saved",
            self.gaps.len().min(most),
            self.gaps.len()
        );
        for gap in self.gaps.iter().take(most) {
            let saved = if gap.rides { duration(gap.saved_ns) } else { "native".to_owned() };
            let _ = writeln!(
                out,
                " {:>12} {:>9} {:>9} {:>8} {:>9}  {}",
                grouped(gap.count),
                duration(gap.user_ns),
                duration(gap.call_ns),
                percent(gap.bound),
                saved,
                gap.label
            );
        }
        let ride = self.ride;
        let RideCosts { fragment_instructions, call_instructions, .. } = ride;
        let _ = if ride.measured.is_some() {
            writeln!(
                out,
                "\n Measured in rides of this machine: a call that does nothing, what crossings cost calls\n \
                 that do something, and that translated code takes {:.2} times as long.",
                ride.translated()
            )
        } else {
            writeln!(
                out,
                "\n Assumed: a ridden call takes {call_instructions} instructions; translated code takes \
                 {} times\n as long.",
                ride.translated()
            )
        };
        let _ = writeln!(
            out,
            " Assumed: what a gap has beyond {fragment_instructions} instructions takes {:.2} times as long.\n",
            ride.linked.max(ride.translated())
        );
        out
    }

    fn verdict_text(&self) -> String {
        match self.verdict {
            Verdict::Nothing => "No system calls were seen; expect nothing.".to_owned(),
            Verdict::NotBound => {
                let waits = if self.busy_share < MOSTLY_WAITS { " It mostly waits." } else { "" };
                format!("This program is not bound by system calls; expect nothing.{waits}")
            }
            Verdict::DoesNotPay if !self.ride.may_pay() => {
                "Rides cost more than system calls on this machine; expect nothing.".to_owned()
            }
            Verdict::DoesNotPay => {
                "Its gaps are too long for what a switch costs here; expect nothing.".to_owned()
            }
            Verdict::Pays => format!(
                "Expect up to {:.0} % more work done where the CPU is the limit.",
                (100.0 * self.gain).max(1.0)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::costs::Refill;
    use crate::costs::exercise::{Exercise, Times};
    use crate::profile::tests::gap;

    const NO_COST: RideCosts = RideCosts {
        translated: 1.0,
        linked: 1.0,
        fragment_instructions: 128.0,
        call_instructions: 0.0,
        measured: None,
    };
    /// 20 ns for a ride, and code that takes half as long again.
    const SOME_COST: RideCosts = RideCosts {
        translated: 1.5,
        linked: 1.5,
        fragment_instructions: 128.0,
        call_instructions: 20.0,
        measured: None,
    };

    /// Costs of 100 ns for each switch; the profiler sees 150 ns of an empty
    /// gap and 50 ns of an empty call, and adds 100 ns.
    fn profile(gaps: Vec<ProfiledGap>, cpu_ns: u64) -> Profile {
        Profile {
            elapsed_ns: cpu_ns,
            cpu_ns,
            costs: Costs {
                switch_ns: 100.0,
                empty_gap_ns: 150.0,
                empty_call_ns: 50.0,
                overhead_ns: 100.0,
                instruction_ns: 1.0,
                copied_byte_ns: 0.0,
                refill: Refill::default(),
            },
            gaps,
            ..Profile::default()
        }
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn without_costs_of_its_own_a_ride_saves_every_switch() {
        // 1000 passages: 100 ns of user time, 200 ns of call, 100 ns switch,
        // 100 ns of profiler.
        let prediction =
            predict(&profile(vec![gap("read", "write", 1000, 250, 250)], 500_000), NO_COST);
        let only = &prediction.gaps[0];
        assert!(close(only.user_ns, 100.0) && close(only.call_ns, 200.0), "{only:?}");
        assert!(close(only.bound, 0.25) && close(prediction.bound, 0.25), "{prediction:?}");
        assert!(close(prediction.saved, 0.25) && close(prediction.gain, 1.0 / 3.0));
        assert_eq!(prediction.verdict, Verdict::Pays);
        assert!(prediction.text(5).contains("33 % more work"), "{}", prediction.text(5));
    }

    #[test]
    fn slower_code_and_the_ride_itself_are_subtracted() {
        let costs = SOME_COST;
        let prediction =
            predict(&profile(vec![gap("read", "write", 1000, 250, 250)], 500_000), costs);
        assert!(close(prediction.gaps[0].saved_ns, 30.0));
        assert!(close(prediction.saved, 30.0 / 400.0));
    }

    #[test]
    fn what_is_beyond_a_fragment_is_linked() {
        let costs = RideCosts { translated: 1.0, linked: 2.0, ..NO_COST };
        // 150 ns of user time at 1 ns each: 22 more than a fragment has.
        let prediction =
            predict(&profile(vec![gap("read", "write", 1000, 300, 250)], 500_000), costs);
        assert!(close(prediction.gaps[0].saved_ns, 100.0 - 22.0), "{prediction:?}");
    }

    #[test]
    fn code_that_was_left_saves_what_it_pays_for_that() {
        let mut profile = profile(vec![gap("read", "write", 1000, 250, 250)], 500_000);
        // Half of what the call (200 ns) and the gap (100 ns) take.
        profile.costs.refill = Refill { most_ns: 500.0, within_ns: 1000.0 };
        let prediction = predict(&profile, NO_COST);
        assert!(close(prediction.gaps[0].saved_ns, 250.0), "{prediction:?}");
        assert!(close(prediction.bound, 0.25) && close(prediction.crossing, 0.625));
        assert!(close(prediction.saved, 0.625), "{prediction:?}");
        // Of a call that copies half of the time, half pays.
        profile.gaps[0].bytes = 100 * profile.gaps[0].count;
        profile.costs.copied_byte_ns = 1.0;
        let copying = predict(&profile, NO_COST);
        assert!(close(copying.gaps[0].saved_ns, 200.0), "{copying:?}");
        profile.costs.copied_byte_ns = 0.0;
        // That is then no user time any more that translation makes slower.
        let prediction = predict(&profile, SOME_COST);
        assert!(close(prediction.gaps[0].saved_ns, 250.0 - 20.0 - 25.0), "{prediction:?}");
    }

    #[test]
    fn long_gaps_stay_native_and_cost_nothing() {
        let costs = SOME_COST;
        let gaps =
            vec![gap("read", "write", 1000, 250, 250), gap("write", "read", 1000, 10_000, 250)];
        let prediction = predict(&profile(gaps, 20_000_000), costs);
        assert!(prediction.gaps[0].rides && !prediction.gaps[1].rides);
        assert!(close(prediction.ridden_share, 0.5));
        assert!(prediction.saved > 0.0);
        let only_long =
            predict(&profile(vec![gap("write", "read", 1000, 3000, 250)], 3_000_000), costs);
        assert_eq!(only_long.verdict, Verdict::DoesNotPay);
    }

    #[test]
    fn a_program_that_computes_is_told_to_expect_nothing() {
        let prediction =
            predict(&profile(vec![gap("read", "write", 10, 1 << 20, 250)], 1_000_000_000), NO_COST);
        assert_eq!(prediction.verdict, Verdict::NotBound);
        assert!(prediction.text(5).contains("not bound by system calls; expect nothing"));
        let once =
            predict(&profile(vec![gap("read", "write", 1, 1 << 29, 250)], 1_000_000_000), NO_COST);
        assert_eq!(once.verdict, Verdict::NotBound);
        assert_eq!(predict(&Profile::default(), NO_COST).verdict, Verdict::Nothing);
    }

    #[test]
    fn calls_that_never_ride_save_nothing() {
        let gaps =
            vec![gap("read", "clone", 1000, 250, 250), gap("clone", "write", 1000, 250, 250)];
        let prediction = predict(&profile(gaps, 1_000_000), NO_COST);
        assert!(prediction.gaps.iter().all(|gap| !gap.rides));
        assert_eq!(prediction.verdict, Verdict::DoesNotPay);
    }

    #[test]
    fn being_taken_off_the_cpu_is_not_user_time() {
        let mut mixed = gap("read", "write", 1000, 256, 250);
        let preempted = 1 << 20;
        mixed.count += 10;
        mixed.gap_log2[20] = 10;
        mixed.gap_ns += 10 * preempted + 10 * preempted * 41 / 100;
        let predicted = &predict(&profile(vec![mixed.clone()], 500_000), NO_COST).gaps[0];
        assert!(predicted.user_ns < 300.0, "{predicted:?}");
        // As the plain mean, they would dominate.
        assert!(mixed.gap_ns / mixed.count > 10_000);
    }

    #[test]
    fn what_was_measured_in_rides_replaces_what_is_assumed() {
        let measured = Exercise {
            native: Times::of([100.0, 200.0, 300.0]),
            ridden: Times::of([30.0, 180.0, 130.0]),
        };
        let gaps = || profile(vec![gap("read", "write", 1000, 250, 250)], 1_000_000);
        let assumed = predict(&gaps(), SOME_COST);
        let prediction = predict(&gaps(), RideCosts { measured: Some(measured), ..SOME_COST });
        assert!(close(assumed.ride_ns, 20.0) && close(prediction.ride_ns, 30.0));
        // Of the 300 ns, 100 are left without a crossing: besides the switch it
        // costs 100 ns, which is half of what the message takes without it, and
        // of the 100 ns of user time as well as of the 200 ns of the call.
        let gap = &prediction.gaps[0];
        assert!(close(gap.refill_ns, 150.0), "{gap:?}");
        // Half of the user time is the program's: it takes 1.5 times as long.
        assert!(close(gap.saved_ns, 100.0 + 150.0 - 30.0 - 25.0), "{gap:?}");
        assert!(prediction.text(5).contains("Measured in rides"));
        assert!(!assumed.text(5).contains("Measured in rides"));
    }

    #[test]
    fn where_rides_cost_more_than_calls_nothing_is_promised() {
        let times = |ns| Times::of([ns, 2.0 * ns, 3.0 * ns]);
        let measured = Some(Exercise { native: times(100.0), ridden: times(110.0) });
        let gaps = vec![gap("read", "write", 1000, 10, 250)];
        let prediction = predict(&profile(gaps, 1_000_000), RideCosts { measured, ..SOME_COST });
        assert_eq!((prediction.gain, prediction.ridden_share), (0.0, 0.0));
        assert!(prediction.text(5).contains("Rides cost more than system calls on this machine"));
    }

    #[test]
    fn threads_count_together() {
        let mut second = gap("read", "write", 3000, 550, 250);
        second.thread = 9;
        let gaps = vec![gap("read", "write", 1000, 250, 250), second];
        let prediction = predict(&profile(gaps, 2_000_000), NO_COST);
        assert_eq!(prediction.gaps.len(), 1);
        assert!(close(prediction.gaps[0].user_ns, 325.0), "{prediction:?}");
    }
}

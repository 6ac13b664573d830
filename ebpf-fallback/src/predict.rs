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
mod limits;
mod ride;
#[cfg(test)]
mod tests;

use std::fmt::Write;

use serde::Serialize;
use ub_report::units::{duration, grouped};

use crate::costs::Costs;
use crate::profile::{Counted, Profile, ProfiledGap};
use allowed::is_allowed;

pub use limits::Limits;
pub use ride::RideCosts;

/// Version of the JSON form.
pub const SCHEMA: u32 = 2;
/// Below this share of the CPU time in switches, there is nothing to gain.
const NOT_BOUND: f64 = 0.02;
/// From this share of the calls on that should be ridden and are not tried, that is said
/// with the verdict.
const HARDLY_TRIED: f64 = 0.9;
/// Below this share of one CPU, a program waits most of the time.
const MOSTLY_WAITS: f64 = 0.2;
/// How many times what the profiler takes of a null call it takes of others, at most.
const MOST_DISTURBED: f64 = 3.0;
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
    /// System calls that were timed; all that follows is of these.
    pub calls: u64,
    /// Those that were only counted.
    pub counted: Counted,
    /// CPU time of the calls that were timed and of the gaps between them, without what the
    /// profiler used, in nanoseconds.
    pub busy_ns: f64,
    /// Share of one CPU that the program uses.
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
    /// What sessions leave alone.
    pub limits: Limits,
    /// Share of the calls that should be ridden which a session with these limits would
    /// not try.
    pub untried: f64,
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
    /// Passages that a session would try, by its limits.
    pub tried: u64,
}

/// Says what riding would gain, and how much of that a session with these limits
/// would try.
#[must_use]
pub fn predict(profile: &Profile, ride: RideCosts, limits: Limits) -> Prediction {
    let calls = profile.calls();
    let costs = &profile.costs;
    let rates = limits::rates(profile);
    let mut gaps: Vec<PredictedGap> = Vec::new();
    for gap in profile.gaps.iter().filter(|gap| gap.timed() > 0) {
        let mut predicted = predicted(gap, profile, ride);
        if limits.admit(rates[&gap.thread], predicted.user_ns) {
            predicted.tried = predicted.count;
        }
        match gaps.iter_mut().find(|known| known.label == predicted.label) {
            Some(known) => known.merge(&predicted),
            None => gaps.push(predicted),
        }
    }
    let total = |gap: &PredictedGap| gap.saved_ns * gap.count as f64;
    gaps.sort_by(|a, b| total(b).total_cmp(&total(a)));

    let busy_ns = busy(profile);
    let bound = (calls as f64 * costs.switch_ns / busy_ns).min(1.0);
    let refill: f64 = gaps.iter().map(|gap| gap.refill_ns * gap.count as f64).sum();
    let crossing = (bound + refill / busy_ns).min(1.0);
    let riding = || gaps.iter().filter(|gap| gap.rides);
    let ridden: u64 = riding().map(|gap| gap.count).sum();
    let tried: u64 = riding().map(|gap| gap.tried).sum();
    // Whatever the noise of the measurements says, the rides themselves remain.
    let ride_ns = ride.call_ns(costs.instruction_ns);
    let most = crossing.min(1.0 - ridden as f64 * ride_ns / busy_ns).max(0.0);
    let saved = (riding().map(total).sum::<f64>() / busy_ns).clamp(0.0, most);
    let verdict = if calls + profile.counted.calls == 0 {
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
        counted: profile.counted,
        busy_ns,
        busy_share: busy_share(profile, busy_ns),
        bound,
        crossing,
        saved,
        gain: saved / (1.0 - saved).max(0.01),
        ridden_share: ridden as f64 / calls.max(1) as f64,
        limits,
        untried: (ridden - tried) as f64 / ridden.max(1) as f64,
        verdict,
        gaps,
    }
}

/// CPU time of the calls that were timed without what the profiler used, in nanoseconds.
///
/// What a call pays for being timed is often more than the call itself takes, and not what
/// a null call pays. So it is what calls took that were only counted, which costs little. Where
/// there are too few of these, it is what the scheduler counted less what a null call pays.
fn busy(profile: &Profile) -> f64 {
    let Costs { switch_ns, overhead_ns, .. } = profile.costs;
    let (calls, cpu_ns) = (profile.calls() as f64, profile.cpu_ns as f64);
    let least_ns = (cpu_ns - MOST_DISTURBED * overhead_ns * calls).max(0.0);
    let busy_ns = match counted_call_ns(profile) {
        // It may have done something else while its calls were timed.
        Some(call_ns) => (calls * call_ns).clamp(least_ns, cpu_ns),
        None => cpu_ns - overhead_ns * calls,
    };
    busy_ns.max(calls * switch_ns).max(1.0)
}

/// CPU time for each of the calls that were only counted, with the gap before it and without
/// the counting, in nanoseconds.
///
/// Counting takes more of a call that uses the caches than of a null call, or of any call while
/// the processor is slow; but not as much more as timing does, which touches more memory.
/// The middle of the two is taken.
fn counted_call_ns(profile: &Profile) -> Option<f64> {
    let Counted { calls, cpu_ns, .. } = profile.counted;
    if !profile.counted.is_enough() {
        return None;
    }
    let Costs { overhead_ns, counting_ns, .. } = profile.costs;
    let call_ns = cpu_ns as f64 / calls as f64;
    let timed_call_ns = profile.cpu_ns as f64 / (profile.calls() as f64).max(1.0);
    let of_null_calls = (overhead_ns - counting_ns).max(1.0);
    let more = ((timed_call_ns - call_ns) / of_null_calls).clamp(0.5, MOST_DISTURBED);
    Some((call_ns - counting_ns * f64::midpoint(1.0, more)).max(0.0))
}

/// Share of one CPU: of the time in which calls were only counted, if that is known.
fn busy_share(profile: &Profile, busy_ns: f64) -> f64 {
    let counted = &profile.counted;
    let (busy_ns, elapsed_ns) = match counted_call_ns(profile) {
        Some(call_ns) => (counted.calls as f64 * call_ns, counted.elapsed_ns),
        None => (busy_ns, profile.elapsed_ns),
    };
    busy_ns / (elapsed_ns as f64).max(1.0)
}

fn predicted(gap: &ProfiledGap, profile: &Profile, ride: RideCosts) -> PredictedGap {
    let switch_ns = profile.costs.switch_ns;
    let user_ns = (typical(gap) - profile.costs.empty_gap_ns).max(0.0);
    let call_ns = (gap.call_ns as f64 / gap.timed_calls().max(1) as f64
        - profile.costs.empty_call_ns)
        .max(0.0);
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
        tried: 0,
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
        self.tried += other.tried;
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
        line(grouped(self.calls + self.counted.calls), "system calls");
        if self.counted.calls > 0 {
            line(grouped(self.calls), "of them timed; the others were only counted");
        }
        let Costs { switch_ns, refill, .. } = self.costs;
        let refill = self.ride.refill(refill);
        line(duration(switch_ns), "for each switch, measured here");
        line(duration(refill.most_ns), "at most that code on either side pays besides");
        line(duration(self.ride_ns), "for a ridden call that does nothing");
        line(percent(self.busy_share), "of a CPU in use");
        line(percent(self.bound), "of that in switches");
        line(percent(self.crossing), "with what they cause: no ride can save more");
        line(percent(self.ridden_share), "of the system calls should be ridden");
        if self.untried > 0.0 {
            line(percent(self.untried), "of these are left alone as sessions are set");
        }
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
                "Rides do not pay on this machine; expect nothing.".to_owned()
            }
            Verdict::DoesNotPay => {
                "Its gaps are too long for what a switch costs here; expect nothing.".to_owned()
            }
            Verdict::Pays => format!(
                "Expect up to {:.0} % more work done where the CPU is the limit{}.",
                (100.0 * self.gain).max(1.0),
                self.unless_tried()
            ),
        }
    }

    /// What the verdict depends on, if sessions would leave most of it alone.
    fn unless_tried(&self) -> String {
        if self.untried < HARDLY_TRIED {
            return String::new();
        }
        let Limits { min_rate, gap_max_ns } = self.limits;
        format!(
            ", if sessions are set to\n try it: they leave threads alone that make fewer than {} \
             system calls a second\n (min_rate), and gaps that take longer than {} (gap_max_us)",
            grouped(min_rate.into()),
            duration(gap_max_ns)
        )
    }
}

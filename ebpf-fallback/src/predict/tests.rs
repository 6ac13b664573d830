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
/// gap and 50 ns of an empty call, and adds 100 ns, 10 ns where it counts.
fn profile(gaps: Vec<ProfiledGap>, cpu_ns: u64) -> Profile {
    Profile {
        elapsed_ns: cpu_ns,
        cpu_ns,
        costs: Costs {
            switch_ns: 100.0,
            empty_gap_ns: 150.0,
            empty_call_ns: 50.0,
            overhead_ns: 100.0,
            counting_ns: 10.0,
            instruction_ns: 1.0,
            copied_byte_ns: 0.0,
            refill: Refill::default(),
        },
        gaps,
        ..Profile::default()
    }
}

/// Without limits.
fn predict(profile: &Profile, ride: RideCosts) -> Prediction {
    super::predict(profile, ride, Limits { min_rate: 0, gap_max_ns: f64::INFINITY })
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
    let prediction = predict(&profile(vec![gap("read", "write", 1000, 250, 250)], 500_000), costs);
    assert!(close(prediction.gaps[0].saved_ns, 30.0));
    assert!(close(prediction.saved, 30.0 / 400.0));
}

#[test]
fn what_is_beyond_a_fragment_is_linked() {
    let costs = RideCosts { translated: 1.0, linked: 2.0, ..NO_COST };
    // 150 ns of user time at 1 ns each: 22 more than a fragment has.
    let prediction = predict(&profile(vec![gap("read", "write", 1000, 300, 250)], 500_000), costs);
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
    let gaps = vec![gap("read", "write", 1000, 250, 250), gap("write", "read", 1000, 10_000, 250)];
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
fn calls_that_were_only_counted_say_how_long_calls_take() {
    // 1000 calls were timed, in 500 us of which 100 us are the profiler's if its calls pay
    // what null calls pay: then each takes 400 ns.
    let timed = profile(vec![gap("read", "write", 1000, 250, 250)], 500_000);
    let with = |calls, cpu_ns| {
        let counted = Counted { elapsed_ns: 400_000_000, calls, cpu_ns };
        predict(&Profile { counted, ..timed.clone() }, NO_COST)
    };
    let few = with(999, 100_000);
    assert!(close(few.busy_ns, 400_000.0) && close(few.saved, 0.25), "{few:?}");
    assert!(close(few.busy_share, 0.8), "{few:?}");
    // They do: of 410 ns, 10 are for counting, and 90 more for timing.
    let equal = with(2000, 820_000);
    assert!(close(equal.busy_ns, 400_000.0) && close(equal.saved, 0.25), "{equal:?}");
    assert!(close(equal.busy_share, 0.002), "{equal:?}");
    // They pay twice as much for timing: 15 ns for counting are between that and once.
    assert!(close(with(2000, 640_000).busy_ns, 305_000.0));
    // The program did something else meanwhile.
    assert!(close(with(2000, 90_000_000).busy_ns, 500_000.0));
    assert!(close(with(2000, 0).busy_ns, 200_000.0));
    let counted = Counted { elapsed_ns: 99_999_999, calls: 2000, cpu_ns: 0 };
    let short = predict(&Profile { counted, ..timed.clone() }, NO_COST);
    assert!(close(short.busy_ns, 400_000.0));
}

#[test]
fn calls_that_never_ride_save_nothing() {
    let gaps = vec![gap("read", "clone", 1000, 250, 250), gap("clone", "write", 1000, 250, 250)];
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
        native: Times { null_call_ns: 100.0, code_alone_ns: 100.0, message_ns: 300.0 },
        ridden: Times { null_call_ns: 30.0, code_alone_ns: 150.0, message_ns: 130.0 },
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
    let times = |ns| Times { null_call_ns: ns, code_alone_ns: ns, message_ns: 3.0 * ns };
    let measured = Some(Exercise { native: times(100.0), ridden: times(110.0) });
    let gaps = vec![gap("read", "write", 1000, 10, 250)];
    let prediction = predict(&profile(gaps, 1_000_000), RideCosts { measured, ..SOME_COST });
    assert_eq!((prediction.gain, prediction.ridden_share), (0.0, 0.0));
    assert!(prediction.text(5).contains("Rides do not pay on this machine"));
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

#[test]
fn what_sessions_leave_alone_is_said() {
    // A thousand calls in half a millisecond: two million a second; 100 ns of user time.
    let profile = profile(vec![gap("read", "write", 1000, 250, 250)], 500_000);
    for (min_rate, gap_max_ns, untried) in
        [(1_900_000, 101.0, 0.0), (2_100_000, 101.0, 1.0), (1_900_000, 99.0, 1.0)]
    {
        let limits = Limits { min_rate, gap_max_ns };
        let prediction = super::predict(&profile, NO_COST, limits);
        assert!(close(prediction.untried, untried), "{prediction:?}");
        let text = prediction.text(5);
        assert_eq!(text.contains("(min_rate)"), untried > 0.0, "{text}");
        assert_eq!(text.contains("100.0 %  of these are left alone"), untried > 0.0, "{text}");
    }
}

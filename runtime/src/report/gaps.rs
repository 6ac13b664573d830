//! What the module knows about a gap, as a row of the report.

use ub_report::calls;
use ub_report::model::Gain;
use ub_report::{GapRow, GapState, Timing};

use crate::abi::{self, GapInfo, GapReason, NO_CALL};

/// The row of a gap, without names. `khz` is the frequency of the clock that
/// gaps are timed with.
pub(super) fn row(info: &GapInfo, khz: u32) -> GapRow {
    let reason = GapReason::from_number(info.reason);
    let judged = info.saved_error_ps > 0;
    GapRow {
        space: info.btc,
        address: info.address,
        to: (info.next_call != NO_CALL).then(|| calls::name(info.next_call)),
        count: info.passages,
        ridden: info.ridden,
        native: timing(info.native_sampled, info.native_ns, &info.native_cycles, khz),
        ride: timing(info.ride_sampled, info.ride_ns, &info.ride_cycles, khz),
        gain: judged.then(|| Gain {
            ns: info.saved_ps as f64 / 1e3,
            error_ns: Some(info.saved_error_ps as f64 / 1e3),
        }),
        state: state(info, reason),
        reason: reason.map(|reason| explain(reason, info)),
        ..GapRow::default()
    }
}

/// Whether there is anything to tell: a passage was seen to its end, or
/// something was decided. The others are in the module's table because a
/// sample was begun.
pub(super) fn has_a_story(info: &GapInfo) -> bool {
    let is_cold = info.state == abi::GapState::Cold as u32;
    info.native_sampled + info.ride_sampled > 0 || !is_cold
}

fn timing(samples: u64, mean_ns: u64, cycles: &[u32], khz: u32) -> Timing {
    Timing { samples, mean_ns: mean_ns as f64, error_ns: standard_error(cycles, khz) }
}

/// Standard error in nanoseconds of the mean of samples in cycles, of which
/// those that are not there are zero.
fn standard_error(cycles: &[u32], khz: u32) -> Option<f64> {
    let samples: Vec<_> = cycles.iter().filter(|c| **c > 0).map(|c| f64::from(*c)).collect();
    if samples.len() < 2 || khz == 0 {
        return None;
    }
    let count = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / count;
    let variance = samples.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (count - 1.0);
    Some((variance / count).sqrt() * 1e6 / f64::from(khz))
}

fn state(info: &GapInfo, reason: Option<GapReason>) -> GapState {
    match abi::GapState::from_number(info.state) {
        Some(abi::GapState::Translated) => GapState::Riding,
        Some(abi::GapState::Retired) => GapState::Retired,
        Some(abi::GapState::Hot) if reason == Some(GapReason::Refused) => GapState::Refused,
        Some(abi::GapState::Hot) => GapState::Hot,
        Some(abi::GapState::Cold) | None => GapState::Native,
    }
}

/// The reason, for people.
fn explain(reason: GapReason, info: &GapInfo) -> String {
    let held = || {
        if info.held_ns == 0 {
            return String::new();
        }
        format!("; tried again in {:.0} s at the earliest", info.held_ns as f64 / 1e9)
    };
    match reason {
        GapReason::Rare => "not passed often enough".to_owned(),
        GapReason::Long => "takes longer than a ride may".to_owned(),
        GapReason::Reported => "waits for its translation".to_owned(),
        GapReason::Waits => "long: tried when shorter gaps have paid".to_owned(),
        GapReason::Refused => "could not be translated".to_owned(),
        GapReason::Measuring => "too few samples to judge".to_owned(),
        GapReason::Pays => "saves time, with confidence".to_owned(),
        GapReason::Slower => format!("cost time, with confidence{}", held()),
        GapReason::NoGain => format!("no saving could be shown{}", held()),
        GapReason::Machine => "rides do not pay on this machine".to_owned(),
        GapReason::Unmeasured => "not judged in this session".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> GapInfo {
        let mut info = GapInfo {
            btc: 3,
            address: 0x1000,
            passages: 1000,
            ridden: 900,
            native_sampled: 60,
            native_ns: 300,
            ride_sampled: 50,
            ride_ns: 100,
            next_call: 1,
            state: abi::GapState::Translated as u32,
            reason: GapReason::Pays as u32,
            saved_ps: 200_500,
            saved_error_ps: 1500,
            ..Default::default()
        };
        info.native_cycles[..4].copy_from_slice(&[900, 1100, 900, 1100]);
        info
    }

    #[test]
    fn a_judged_gap_has_its_gain() {
        let row = row(&info(), 1_000_000);
        assert_eq!(row.to.as_deref(), Some("write"));
        assert_eq!((row.count, row.ridden, row.state), (1000, 900, GapState::Riding));
        assert_eq!(row.gain, Some(Gain { ns: 200.5, error_ns: Some(1.5) }));
        // Deviation of 115.47 cycles over the root of four samples, 1 GHz.
        assert!((row.native.error_ns.unwrap() - 57.735).abs() < 0.001, "{:?}", row.native);
        assert_eq!(row.ride.error_ns, None);
    }

    #[test]
    fn a_sample_that_was_only_begun_is_no_story() {
        let cold = abi::GapState::Cold as u32;
        let begun = GapInfo { native_sampled: 0, ride_sampled: 0, state: cold, ..info() };
        assert!(!has_a_story(&begun));
        assert!(has_a_story(&GapInfo { native_sampled: 1, ..begun }));
        assert!(has_a_story(&GapInfo { state: abi::GapState::Retired as u32, ..begun }));
    }

    #[test]
    fn every_state_and_reason_is_told_apart() {
        let mut info = GapInfo { next_call: NO_CALL, ..info() };
        info.saved_error_ps = 0;
        info.held_ns = 8_000_000_000;
        for (state, reason, expected, words) in [
            (abi::GapState::Cold, GapReason::Rare, GapState::Native, "often"),
            (abi::GapState::Hot, GapReason::Reported, GapState::Hot, "translation"),
            (abi::GapState::Hot, GapReason::Refused, GapState::Refused, "not be translated"),
            (abi::GapState::Retired, GapReason::Slower, GapState::Retired, "again in 8 s"),
        ] {
            (info.state, info.reason) = (state as u32, reason as u32);
            let row = row(&info, 0);
            assert_eq!((row.state, row.to.as_deref(), row.gain), (expected, None, None));
            assert!(row.reason.unwrap().contains(words));
        }
    }
}

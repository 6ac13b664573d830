//! Native and translated in turn, so that what else the machine does meets
//! both alike.

use std::hint::black_box;
use std::time::Duration;

use anyhow::Result;

use crate::kernels::Prepared;

/// How long one batch of calls takes at least: far above the clock's
/// resolution, far below a scheduler's time slice.
const BATCH: Duration = Duration::from_micros(400);

/// What one kernel costs; times in nanoseconds a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Median of the native batches.
    pub native: f64,
    /// Median of the translated batches.
    pub translated: f64,
    /// Median over the rounds of translated time by native time.
    pub ratio: f64,
    /// Lower and upper quartile of the same.
    pub quartiles: (f64, f64),
}

/// CPU time of this thread: what other programs take does not count, only
/// what they do to caches and frequency.
fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the structure it is given. The clock exists since 2.6.12,
    // so it cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Nanoseconds since `start`, for each of `calls` calls.
fn each(start: Duration, calls: u32) -> f64 {
    (now() - start).as_nanos() as f64 / f64::from(calls)
}

/// Measures `rounds` rounds of four batches each: native, translated,
/// translated, native. A round's ratio compares its own halves, so a change
/// of the CPU's speed that is slow against a round cancels out.
///
/// # Errors
/// If a translated call fails.
pub fn measure(prepared: &mut Prepared, rounds: usize) -> Result<Cost> {
    let calls = calls_per_batch(prepared);
    let mut native = Vec::with_capacity(2 * rounds);
    let mut translated = Vec::with_capacity(2 * rounds);
    let mut ratios = Vec::with_capacity(rounds);
    // One round to warm up both.
    for round in 0..=rounds {
        let a = native_batch(prepared, calls);
        let b = translated_batch(prepared, calls)?;
        let c = translated_batch(prepared, calls)?;
        let d = native_batch(prepared, calls);
        if round > 0 {
            native.extend([a, d]);
            translated.extend([b, c]);
            ratios.push((b + c) / (a + d));
        }
    }
    let quartiles = (quantile(&mut ratios, 0.25), quantile(&mut ratios, 0.75));
    Ok(Cost {
        native: quantile(&mut native, 0.5),
        translated: quantile(&mut translated, 0.5),
        ratio: quantile(&mut ratios, 0.5),
        quartiles,
    })
}

fn calls_per_batch(prepared: &Prepared) -> u32 {
    let mut calls = 1;
    loop {
        let nanoseconds = native_batch(prepared, calls) * f64::from(calls);
        if nanoseconds >= BATCH.as_nanos() as f64 || calls > 1 << 24 {
            return calls;
        }
        calls *= 2;
    }
}

fn native_batch(prepared: &Prepared, calls: u32) -> f64 {
    let start = now();
    for _ in 0..calls {
        black_box(prepared.native());
    }
    each(start, calls)
}

fn translated_batch(prepared: &mut Prepared, calls: u32) -> Result<f64> {
    let start = now();
    for _ in 0..calls {
        black_box(prepared.translated()?);
    }
    Ok(each(start, calls))
}

/// The value below which the share `q` of `values` lies; linear between
/// neighbours. Sorts them. NaN if there are none.
pub fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = q * last as f64;
    let (low, high) = (values[at.floor() as usize], values[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_linear_between_values() {
        let mut values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&mut values, 0.0), 1.0);
        assert_eq!(quantile(&mut values, 0.5), 2.5);
        assert_eq!(quantile(&mut values, 1.0), 4.0);
        assert!(quantile(&mut [], 0.5).is_nan());
    }
}

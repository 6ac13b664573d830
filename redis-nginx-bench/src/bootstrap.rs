//! Confidence intervals by resampling (the percentile bootstrap).
//!
//! Rounds of one pair of processes have more in common with each other than
//! with those of another pair (address layout, allocation order), so values
//! come in clusters, one per pair, and both levels are resampled.

use serde::{Deserialize, Serialize};

use crate::content::Random;

/// Resamples per interval. Enough for the tails that a comparison of a
/// hundred cells asks for.
const RESAMPLES: usize = 10_000;
/// Seed of the resampling: the same samples give the same interval.
const SEED: u64 = 0x626f_6f74;

/// A figure and the range in which it may well lie.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// The figure of the samples themselves.
    pub estimate: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Whether `value` is within.
    #[must_use]
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}

/// The interval of `statistic` over all values of `clusters`, which holds the
/// true one with probability `level`. `None` without values.
pub fn interval<T: Copy>(
    clusters: &[Vec<T>],
    level: f64,
    statistic: impl Fn(&[T]) -> Option<f64>,
) -> Option<Interval> {
    interval_of_two(clusters, &[vec![()]], level, |values, _| statistic(values))
}

/// As [`interval`], of a statistic of two independent sets of samples.
pub fn interval_of_two<A: Copy, B: Copy>(
    first: &[Vec<A>],
    second: &[Vec<B>],
    level: f64,
    statistic: impl Fn(&[A], &[B]) -> Option<f64>,
) -> Option<Interval> {
    let estimate = statistic(&first.concat(), &second.concat())?;
    let mut random = Random::new(SEED);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let mut values: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            resample(first, &mut random, &mut a);
            resample(second, &mut random, &mut b);
            statistic(&a, &b).filter(|value| value.is_finite())
        })
        .collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let tail = (1.0 - level) / 2.0;
    // Outward, so that the interval is never narrower than asked for.
    let low = (last as f64 * tail).floor() as usize;
    Some(Interval { estimate, low: values[low], high: values[last - low] })
}

/// As many clusters as there are, drawn with replacement, and of each as many
/// values as it has, drawn likewise.
fn resample<T: Copy>(clusters: &[Vec<T>], random: &mut Random, out: &mut Vec<T>) {
    out.clear();
    for _ in clusters {
        let cluster = &clusters[random.below(clusters.len())];
        out.extend((0..cluster.len()).map(|_| cluster[random.below(cluster.len())]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::median;

    /// Values around `center` that look like noise of 5 %.
    fn noisy(seed: u64, center: f64, count: usize) -> Vec<f64> {
        let mut random = Random::new(seed);
        (0..count)
            .map(|_| {
                let noise: f64 = (0..6).map(|_| random.below(1001) as f64 / 1000.0 - 0.5).sum();
                center * (1.0 + 0.07 * noise)
            })
            .collect()
    }

    #[test]
    fn identical_values_have_no_width() {
        let interval = interval(&[vec![3.0; 10]], 0.95, median).unwrap();
        assert_eq!(interval, Interval { estimate: 3.0, low: 3.0, high: 3.0 });
    }

    #[test]
    fn nothing_has_no_interval() {
        assert_eq!(interval(&[], 0.95, median), None);
        assert_eq!(interval(&[vec![]], 0.95, median), None);
    }

    /// Of many experiments whose truth is known, about 95 of 100 intervals
    /// hold it: that is what the number means. The seeds are fixed, so this
    /// comes out the same every time.
    #[test]
    fn intervals_cover_the_truth_as_often_as_they_say() {
        let covered = (0..200)
            .filter(|seed| {
                let samples = noisy(*seed, 100.0, 12);
                interval(&[samples], 0.95, median).unwrap().contains(100.0)
            })
            .count();
        assert!((180..=199).contains(&covered), "{covered} of 200");
    }

    #[test]
    fn clusters_that_differ_widen_the_interval() {
        let one = [noisy(1, 100.0, 20)];
        let two = [noisy(1, 90.0, 10), noisy(2, 110.0, 10)];
        let width = |clusters: &[Vec<f64>]| {
            let interval = interval(clusters, 0.95, median).unwrap();
            interval.high - interval.low
        };
        assert!(width(&two) > 2.0 * width(&one));
    }

    #[test]
    fn a_ratio_of_two_sets() {
        let (old, new) = ([noisy(3, 100.0, 20)], [noisy(4, 80.0, 20)]);
        let ratio = |new: &[f64], old: &[f64]| Some(median(new)? / median(old)?);
        let interval = interval_of_two(&new, &old, 0.99, ratio).unwrap();
        assert!(interval.high < 1.0 && interval.contains(0.8), "{interval:?}");
    }
}

//! What a ride saves, from samples natively and in rides.
//!
//! The comparison is Yuen's: means of what is left when a fifth at either end is
//! left out, and their standard error from the winsorised variances. Interrupts
//! and cold caches put a long tail on both kinds of passage, which would decide
//! a difference of plain means; a difference of medians would say nothing of a
//! gap that takes several ways through the code, some of them slower in a ride.

/// Samples of either kind without which nothing is decided.
pub(super) const FEWEST: usize = 16;
/// Standard errors between nought and a difference that is believed, of many
/// samples. Three, because the same question is asked four times a second.
const CONFIDENT: f64 = 3.0;
/// Added to that, divided by the samples that are left after trimming: the
/// error itself is uncertain when it comes from few (Student's distribution).
const UNCERTAIN: f64 = 15.0;

/// What a ride saves, in cycles a passage.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(in super::super) struct Saving {
    /// The difference of the trimmed means; negative if the ride is slower.
    pub(in super::super) cycles: f64,
    /// Its standard error.
    pub(in super::super) error: f64,
    /// Half the width of the interval in which it is believed to lie.
    margin: f64,
}

impl Saving {
    /// Yuen's comparison; `None` of too few samples.
    pub(in super::super) fn of(native: &[u32], ride: &[u32]) -> Option<Self> {
        let (native, ride) = (Trimmed::of(native)?, Trimmed::of(ride)?);
        let error = (native.squared_error + ride.squared_error).sqrt();
        let margin = error * (CONFIDENT + UNCERTAIN / native.left.min(ride.left) as f64);
        Some(Self { cycles: native.mean - ride.mean, error, margin })
    }

    pub(super) fn is_positive(self) -> bool {
        self.cycles > self.margin
    }

    pub(super) fn is_negative(self) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}

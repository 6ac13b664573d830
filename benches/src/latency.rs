//! How long translating and verifying takes, over many functions.

use std::fmt;
use std::time::{Duration, Instant};

use ub_translator::fragment::{Fragment, Translated};
use ub_translator::verifier::{Features, Policy, verify};
use ub_translator::{CpuFeatures, Options, TranslateError, translate};

use crate::library::{Function, Library};
use crate::measure::quantile;

/// Promised: median of the time for one instruction of the guest.
pub const PROMISED_NANOSECONDS: f64 = 1000.0;
/// Promised: time for a region of [`REGION`] instructions.
pub const PROMISED_REGION: Duration = Duration::from_micros(150);
/// Size of the region in the published system, which took 1.3 s for it.
pub const REGION: u32 = 85;

/// Translates and verifies on this machine with the defaults.
pub struct Translator {
    options: Options,
    policy: Policy,
}

impl Default for Translator {
    fn default() -> Self {
        Self { options: Options::new(CpuFeatures::host()), policy: Policy::new(Features::host()) }
    }
}

impl Translator {
    /// Translates `function`.
    ///
    /// # Errors
    /// The translator's own.
    pub fn translate(
        &self,
        library: &mut Library,
        function: &Function,
    ) -> Result<Fragment<Translated>, TranslateError> {
        translate(function.address, library, &self.options)
    }

    /// Whether the verifier accepts `fragment`.
    ///
    /// # Errors
    /// Its reason, if not.
    pub fn verify(&self, fragment: Fragment<Translated>) -> Result<(), String> {
        verify(fragment, &self.policy).map(|_| ()).map_err(|error| error.to_string())
    }
}

/// What one function took.
#[derive(Debug, Clone, Copy)]
struct Sample {
    instructions: u32,
    /// The best of some repetitions.
    translate: Duration,
    /// The best of some repetitions.
    verify: Duration,
    /// Both, the first time.
    first: Duration,
}

/// The times of the functions of one file.
#[derive(Debug, Default)]
pub struct Latency {
    name: String,
    samples: Vec<Sample>,
    /// Functions whose first instruction no fragment can hold.
    useless: usize,
    /// Functions that failed: bugs.
    failed: Vec<String>,
}

impl Latency {
    /// Translates and verifies each function `repetitions` times, and keeps
    /// the shortest of each: what interrupts add is not the translator's. The
    /// first time of each, with cold caches, is kept apart. `name` is for the
    /// table.
    #[must_use]
    pub fn measure(
        name: &str,
        library: &mut Library,
        functions: &[Function],
        repetitions: usize,
    ) -> Self {
        let translator = Translator::default();
        let mut this = Self { name: name.to_owned(), ..Self::default() };
        for function in functions {
            match sample(&translator, library, function, repetitions) {
                Ok(Some(sample)) => this.samples.push(sample),
                Ok(None) => this.useless += 1,
                Err(error) => this.failed.push(format!("{}: {error}", function.name())),
            }
        }
        this
    }

    /// All of `others` together.
    #[must_use]
    pub fn total(others: &[Self]) -> Self {
        let mut this = Self { name: "all".to_owned(), ..Self::default() };
        for other in others {
            this.samples.extend(&other.samples);
            this.useless += other.useless;
            this.failed.extend(other.failed.iter().cloned());
        }
        this
    }

    /// Functions that the translator or the verifier failed on, with reasons.
    #[must_use]
    pub fn failed(&self) -> &[String] {
        &self.failed
    }

    /// Nanoseconds an instruction at quantile `q` over the functions, by what
    /// `time` picks.
    fn per_instruction(&self, time: impl Fn(&Sample) -> Duration, q: f64) -> f64 {
        let mut values: Vec<f64> = self
            .samples
            .iter()
            .map(|sample| time(sample).as_nanos() as f64 / f64::from(sample.instructions.max(1)))
            .collect();
        quantile(&mut values, q)
    }

    /// Median of the time for one instruction, in nanoseconds.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.per_instruction(Sample::both, 0.5)
    }

    /// The size closest to [`REGION`] instructions, and the median time of the
    /// functions of this size.
    #[must_use]
    pub fn region(&self) -> Option<(u32, Duration)> {
        let distance = |sample: &&Sample| sample.instructions.abs_diff(REGION);
        let size = self.samples.iter().min_by_key(distance)?.instructions;
        let same = self.samples.iter().filter(|sample| sample.instructions == size);
        let mut times: Vec<f64> = same.map(|sample| sample.both().as_secs_f64()).collect();
        Some((size, Duration::from_secs_f64(quantile(&mut times, 0.5))))
    }
}

impl Sample {
    fn both(&self) -> Duration {
        self.translate + self.verify
    }
}

fn sample(
    translator: &Translator,
    library: &mut Library,
    function: &Function,
    repetitions: usize,
) -> Result<Option<Sample>, String> {
    let mut best: Option<Sample> = None;
    for _ in 0..repetitions.max(1) {
        let start = Instant::now();
        let fragment = match translator.translate(library, function) {
            Ok(fragment) => fragment,
            Err(TranslateError::Useless { .. }) => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let translate = start.elapsed();
        let instructions = fragment.parts().guest_instructions;
        let start = Instant::now();
        translator.verify(fragment)?;
        let verify = start.elapsed();
        best = Some(match best {
            None => Sample { instructions, translate, verify, first: translate + verify },
            Some(best) => Sample {
                translate: best.translate.min(translate),
                verify: best.verify.min(verify),
                ..best
            },
        });
    }
    Ok(best)
}

/// A table of one line for each file.
pub struct Table<'a>(pub &'a [Latency]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<14}{:>10}{:>14}{:>9}{:>8}   ns per instruction of the guest: median, p90, p99\n\
             {:<14}{:>10}{:>14}{:>9}{:>8}{:>24}{:>24}{:>24}{:>24}",
            "file",
            "functions",
            "instructions",
            "useless",
            "failed",
            "",
            "",
            "",
            "",
            "",
            "translate",
            "verify",
            "both",
            "both, the first time"
        )?;
        for latency in self.0 {
            let instructions: u64 =
                latency.samples.iter().map(|sample| u64::from(sample.instructions)).sum();
            write!(
                f,
                "{:<14}{:>10}{instructions:>14}{:>9}{:>8}",
                latency.name,
                latency.samples.len(),
                latency.useless,
                latency.failed.len()
            )?;
            let times: [fn(&Sample) -> Duration; 4] = [
                |sample| sample.translate,
                |sample| sample.verify,
                Sample::both,
                |sample| sample.first,
            ];
            for time in times {
                for q in [0.5, 0.9, 0.99] {
                    write!(f, "{:>8.0}", latency.per_instruction(time, q))?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(instructions: u32, microseconds: u64) -> Sample {
        let translate = Duration::from_micros(microseconds);
        Sample { instructions, translate, verify: Duration::ZERO, first: translate }
    }

    #[test]
    fn the_region_nearest_to_the_promise_is_found() {
        let samples = vec![sample(10, 1), sample(84, 7), sample(200, 2), sample(84, 9)];
        let latency = Latency { samples, ..Latency::default() };
        assert_eq!(latency.region(), Some((84, Duration::from_micros(8))));
        assert_eq!(Latency::default().region(), None);
    }

    #[test]
    fn functions_of_the_c_library_pass_the_verifier() {
        let path = crate::library::path_of("libc.so").unwrap();
        let (mut library, functions) = Library::open(&path).unwrap();
        let few: Vec<_> = functions.into_iter().filter(Function::is_selected).collect();
        assert_eq!(few.len(), crate::library::FUNCTIONS.len(), "{few:?}");
        let latency = Latency::measure("few", &mut library, &few, 1);
        assert_eq!(latency.failed(), [] as [String; 0]);
        assert_eq!(latency.samples.len() + latency.useless, few.len());
    }
}

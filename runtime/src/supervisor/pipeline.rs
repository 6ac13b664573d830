//! Translation followed by verification, with panics contained.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ub_translator::fragment::{ExitKind, Fragment, Verified};
use ub_translator::verifier::{self, Features, Policy};
use ub_translator::{CodeSource, CpuFeatures, Options, Predictions, SliceSource};

use super::counters::Failure;
use crate::abi::Info;

/// Why there is no verified fragment, for the counters and for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// For the counters.
    pub failure: Failure,
    /// For the log.
    pub message: String,
}

/// How much code a fragment is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Straight on to code that has a fragment: what shows soon where programs
    /// go from there.
    Near,
    /// All that is known to be run, or as much as may be.
    Far,
}

impl Reach {
    /// Most user instructions, if translations are limited to `most`.
    fn instructions(self, most: usize) -> usize {
        match self {
            Self::Near => most.min(NEAR),
            Self::Far => most,
        }
    }
}

/// Most user instructions of a fragment that is made before anything is known.
///
/// They count as run from then on. Where a branch in them is always taken,
/// those behind it are not.
const NEAR: usize = 32;
/// Most user instructions of a fragment otherwise. Between two system calls up to
/// three thousand different ones are run by redis and nginx, and going on from
/// one fragment to another takes some forty instructions. Larger fragments do
/// not take more translations: fewer are needed (`make bench-regions`).
const FAR: usize = 4096;
/// Most bytes of a fragment's code, if the module allows it: what so many
/// instructions take and a third more.
const CODE_BYTES: usize = 128 << 10;

/// `mov rax,[rbx]; add rax,1; syscall`
const SAMPLE: &[u8] = &[0x48, 0x8b, 0x03, 0x48, 0x83, 0xc0, 0x01, 0x0f, 0x05];
/// Where it stands: any address that a program could have code at.
const SAMPLE_AT: u64 = 0x40_1000;

/// Makes verified fragments. [`Translator`] is the real one.
pub trait Pipeline {
    /// Translates the code at `entry`, as much as `reach` says, and verifies the
    /// result. `predicted` is what is known of the branches in it.
    ///
    /// # Errors
    /// [`Refused`], with the reason.
    fn run(
        &mut self,
        entry: u64,
        reach: Reach,
        source: &mut dyn CodeSource,
        predicted: &Predictions,
    ) -> Result<Fragment<Verified>, Refused>;

    /// Does in advance what would make the first translation take longer.
    fn warm_up(&mut self) {}
}

/// A fragment to be made slow on purpose: for tests of what finds out whether
/// fragments pay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slowed {
    /// The user address that it stands for.
    pub entry: u64,
    /// `nop` instructions on the way in.
    pub nops: u32,
}

/// The translator and the verifier of this project.
#[derive(Debug)]
pub struct Translator {
    /// With the limits of fragments that reach far.
    options: Options,
    policy: Policy,
    slowed: Option<Slowed>,
}

impl Default for Translator {
    fn default() -> Self {
        let mut options = Options::new(CpuFeatures::host());
        options.max_instructions = FAR;
        options.max_code_bytes = CODE_BYTES;
        // 4-level paging also where there is 5-level: a fragment with constant
        // addresses beyond 47 bits is refused, and such programs are rare.
        Self { options, policy: Policy::new(Features::host()), slowed: None }
    }
}

impl Translator {
    /// Fragments for this machine within the limits of the module.
    #[must_use]
    pub fn new(info: &Info) -> Self {
        let Self { mut options, mut policy, slowed } = Self::default();
        options.max_code_bytes = options.max_code_bytes.min(info.max_code_bytes as usize);
        options.max_sources = options.max_sources.min(info.max_sources as usize);
        let exits = info.max_exits.min(info.max_fixups) as usize;
        options.max_exits = options.max_exits.min(exits);
        policy.max_code_bytes = policy.max_code_bytes.min(info.max_code_bytes as usize);
        policy.max_exits = policy.max_exits.min(info.max_exits as usize);
        policy.max_fixups = policy.max_fixups.min(info.max_fixups as usize);
        policy.max_sources = policy.max_sources.min(info.max_sources as usize);
        Self { options, policy, slowed }
    }

    /// Makes one fragment slow.
    #[must_use]
    pub fn slow_down(self, slowed: Option<Slowed>) -> Self {
        Self { slowed, ..self }
    }
}

impl Pipeline for Translator {
    fn run(
        &mut self,
        entry: u64,
        reach: Reach,
        source: &mut dyn CodeSource,
        predicted: &Predictions,
    ) -> Result<Fragment<Verified>, Refused> {
        let slowed = self.slowed.filter(|slowed| slowed.entry == entry);
        let mut options = self.options.clone();
        options.nops = slowed.map_or(0, |slowed| slowed.nops);
        options.max_instructions = reach.instructions(options.max_instructions);
        options.first_look = reach == Reach::Near;
        let fragment = ub_translator::translate_predicted(entry, source, &options, predicted);
        let fragment = fragment.map_err(|error| {
            let failure = match &error {
                ub_translator::TranslateError::Bug { .. } => Failure::TranslatorBug,
                _ => Failure::Unsupported,
            };
            Refused { failure, message: error.to_string() }
        })?;
        verifier::verify(fragment, &self.policy).map_err(|error| Refused {
            failure: Failure::VerifierRefused,
            message: error.to_string(),
        })
    }

    /// The first translation builds the decoder's and the verifier's tables, which
    /// takes as long as dozens of others.
    fn warm_up(&mut self) {
        let mut sample = SliceSource { address: SAMPLE_AT, bytes: SAMPLE };
        let made = self.run(SAMPLE_AT, Reach::Near, &mut sample, &Predictions::default());
        debug_assert!(made.is_ok(), "{made:?}");
    }
}

/// Runs `pipeline`; a panic in it becomes [`Failure::Panic`].
pub(super) fn contained<P: Pipeline + ?Sized>(
    pipeline: &mut P,
    entry: u64,
    reach: Reach,
    source: &mut dyn CodeSource,
    predicted: &Predictions,
) -> Result<Fragment<Verified>, Refused> {
    // What may be half-changed after a panic is the pipeline, which starts
    // each run from its options, and the source, which the caller discards.
    let result = catch_unwind(AssertUnwindSafe(|| pipeline.run(entry, reach, source, predicted)));
    result.unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "panic without a message".to_owned());
        Err(Refused { failure: Failure::Panic, message })
    })
}

/// Whether riding through `fragment` can lead anywhere: to a system call or to
/// more code. One that can only fault or stop costs more than it saves.
pub(super) fn leads_somewhere(fragment: &Fragment<Verified>) -> bool {
    fragment
        .parts()
        .exits
        .iter()
        .any(|exit| matches!(exit.kind, ExitKind::Syscall | ExitKind::Branch | ExitKind::Indirect))
}

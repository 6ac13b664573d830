//! From an entry address to a fragment.

use std::collections::{BTreeMap, BTreeSet};

use crate::assemble::assemble;
use crate::cpu::CpuFeatures;
use crate::displace;
use crate::error::TranslateError;
use crate::fragment::{Fixup, Fragment, Parts, Translated};
use crate::frame::WORK_LIMIT;
use crate::graph;
use crate::layout::layout;
use crate::liveness;
use crate::lower::{Lowered, lower};
use crate::region::discover;
use crate::source::CodeSource;
use crate::steps::Steps;
use crate::unroll::unroll;

/// What was seen to happen, for fragments that fit it. All of it only makes
/// them faster.
#[derive(Debug, Clone, Default)]
pub struct Predictions {
    /// Targets of indirect branches and returns, by the address of the
    /// branch, likeliest first. Up to 16 are used.
    pub targets: BTreeMap<u64, Vec<u64>>,
    /// Addresses for which fragments were left by BRANCH exits. A fragment
    /// that leads to one has it rather than other code.
    pub exit_targets: BTreeSet<u64>,
    /// Addresses that fragments have BRANCH exits for. Where these are no
    /// `exit_targets` they were hardly ever gone to, and a fragment has them
    /// only if nothing else is left to be had.
    pub exits: BTreeSet<u64>,
    /// Addresses that there are fragments for; see [`Options::joins`].
    pub entries: BTreeSet<u64>,
    /// Instructions whose memory operand has an index that did not fit into
    /// 32 bits: a GUARD exit was taken there.
    pub wide_indexes: BTreeSet<u64>,
}

/// What a translation may use.
#[derive(Debug, Clone)]
pub struct Options {
    /// Extensions that fragments may contain.
    pub cpu: CpuFeatures,
    /// Most user instructions in one fragment.
    pub max_instructions: usize,
    /// Most bytes of code in one fragment.
    pub max_code_bytes: usize,
    /// Whether the fragment is left where another one begins, rather than
    /// having a copy of that code.
    pub joins: bool,
    /// What was seen to happen.
    pub predictions: Predictions,
    /// `nop` instructions on the way in. They make a fragment slow on purpose,
    /// for tests of what finds out whether fragments pay.
    pub nops: u32,
    /// A mistake to make.
    #[cfg(feature = "planted-bugs")]
    pub planted: Option<crate::PlantedBug>,
}

impl Options {
    /// The defaults for a machine with these extensions: 512 instructions,
    /// 32 KiB of code, no predictions.
    #[must_use]
    pub fn new(cpu: CpuFeatures) -> Self {
        Self {
            cpu,
            max_instructions: 512,
            max_code_bytes: 32 * 1024,
            joins: false,
            predictions: Predictions::default(),
            nops: 0,
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }
}

/// Translates the region that starts at `entry`.
///
/// The result obeys `docs/fragment.md`; [`crate::verifier`] checks that
/// independently, and nothing else should be installed.
///
/// # Errors
/// [`TranslateError::Useless`] if the first instruction cannot be run,
/// [`TranslateError::NoRoom`] if the limits are too tight for anything, and
/// [`TranslateError::Bug`] if the translator fails.
pub fn translate(
    entry: u64,
    source: &mut dyn CodeSource,
    options: &Options,
) -> Result<Fragment<Translated>, TranslateError> {
    translate_predicted(entry, source, options, &options.predictions)
}

/// Like [`translate()`], with these predictions instead of those in `options`,
/// for callers whose predictions change all the time.
///
/// # Errors
/// Those of [`translate()`].
pub fn translate_predicted(
    entry: u64,
    source: &mut dyn CodeSource,
    options: &Options,
    predictions: &Predictions,
) -> Result<Fragment<Translated>, TranslateError> {
    let bug = |what: String| TranslateError::Bug { entry, what };
    let mut limit = options.max_instructions;
    let mut steps = Steps::new(source, options.cpu);
    steps.learn(predictions);
    loop {
        let region = discover(entry, &mut steps, predictions, limit, options.joins)
            .map_err(|reason| TranslateError::Useless { entry, reason })?;
        let mut graph = graph::build(&region, &steps, limit / 2);
        unroll(&mut graph);
        let layout = layout(&graph);
        let liveness = liveness::analyse(&graph, &layout, &steps);
        let displaced = displace::choose(&graph, &layout, &steps);
        let lowered = lower(&graph, &layout, &liveness, &steps, displaced, options.nops);
        let Lowered { emitter, exits } = match lowered {
            Ok(lowered) => lowered,
            Err(refused) => {
                let mut news = false;
                for (ip, reason) in refused {
                    news |= steps.refuse(ip, reason);
                }
                if !news {
                    return Err(bug("an instruction was refused twice".into()));
                }
                continue;
            }
        };
        #[cfg(feature = "planted-bugs")]
        let emitter = {
            let mut emitter = emitter;
            if let Some(planted) = options.planted {
                planted.plant(&mut emitter);
            }
            emitter
        };
        let assembled = assemble(&emitter).map_err(bug)?;
        // A path cannot be longer than all of it: no need to look for the longest.
        if assembled.code.len() > options.max_code_bytes || emitter.work() > WORK_LIMIT {
            if region.instructions <= 1 {
                return Err(TranslateError::NoRoom { entry, needed: assembled.code.len() });
            }
            limit = region.instructions / 2;
            continue;
        }
        return Ok(Fragment::new(Parts {
            entry,
            code: assembled.code,
            exits,
            fixups: assembled
                .fixups
                .into_iter()
                .map(|(fault, landing)| Fixup { fault, landing })
                .collect(),
            relocations: assembled.relocations,
            sources: region.sources(&steps),
            guest_instructions: u32::try_from(region.instructions).unwrap_or(u32::MAX),
            map: assembled.map,
        }));
    }
}

//! From an entry address to a fragment.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

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

/// The unit in which code is mapped.
const PAGE: u64 = 4096;

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
    /// Instructions that are run. A fragment whose entry is one of them has no
    /// others, unless it is a first look: see [`Options::first_look`].
    pub executed: HashSet<u64>,
    /// Addresses that there are fragments for; see [`Options::first_look`].
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
    /// Most ranges in [`Parts::sources`].
    pub max_sources: usize,
    /// Most entries in [`Parts::exits`], and in [`Parts::fixups`].
    pub max_exits: usize,
    /// Whether the fragment is to find out what is run. It follows no
    /// conditional branch, so that taking one shows, and is left where another
    /// fragment begins, rather than having a copy of that code.
    pub first_look: bool,
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
    /// 32 KiB of code, tables as the kernel module takes them, no predictions.
    #[must_use]
    pub fn new(cpu: CpuFeatures) -> Self {
        Self {
            cpu,
            max_instructions: 512,
            max_code_bytes: 32 * 1024,
            max_sources: 256,
            max_exits: 4096,
            first_look: false,
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
        let region = discover(entry, &mut steps, predictions, limit, options.first_look)
            .map_err(|reason| TranslateError::Useless { entry, reason })?;
        let mut graph = graph::build(&region, &steps, limit / 2);
        unroll(&mut graph);
        let layout = layout(&graph);
        let liveness = liveness::analyse(&graph, &layout, &steps);
        let displaced = displace::choose(&graph, &layout, &steps);
        let lowered = lower(&graph, &layout, &liveness, &steps, displaced, options.nops);
        let Lowered { mut emitter, exits } = match lowered {
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
        if let Some(planted) = options.planted {
            planted.plant(&mut emitter);
        }
        let work = emitter.count_work();
        let assembled = assemble(&emitter).map_err(bug)?;
        let mut sources = region.sources(&steps);
        if sources.len() > options.max_sources {
            sources = joined_on_pages(sources);
        }
        if assembled.code.len() > options.max_code_bytes
            || work > WORK_LIMIT
            || sources.len() > options.max_sources
            || exits.len().max(assembled.fixups.len()) > options.max_exits
        {
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
            sources,
            guest_instructions: u32::try_from(region.instructions).unwrap_or(u32::MAX),
            work,
            map: assembled.map,
        }));
    }
}

/// The ranges, with what lies between two of them on one page. Code changes by
/// pages, so these say as well when a fragment has to go.
fn joined_on_pages(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if (last.end - 1) / PAGE == range.start / PAGE => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SliceSource;

    #[test]
    fn ranges_are_joined_on_pages_only() {
        let ranges = vec![0x1000..0x1004, 0x1ffc..0x2000, 0x2004..0x2008, 0x2ff0..0x3004];
        assert_eq!(joined_on_pages(ranges), [0x1000..0x2000, 0x2004..0x3004]);
    }

    #[test]
    fn tables_are_kept_within_their_limits() {
        // Each 1000 bytes: jmp over what is there to the next.
        let mut bytes = vec![0xcc; 64 * 1000];
        for at in (0..bytes.len() - 1000).step_by(1000) {
            bytes[at] = 0xe9;
            bytes[at + 1..at + 5].copy_from_slice(&995_u32.to_le_bytes());
        }
        let sources = |most: usize| {
            let mut source = SliceSource { address: 0x10000, bytes: &bytes };
            let options = Options { max_sources: most, ..Options::new(CpuFeatures::all()) };
            let fragment = translate(0x10000, &mut source, &options).expect("a fragment");
            (fragment.parts().sources.len(), fragment.parts().guest_instructions)
        };
        assert_eq!(sources(64), (64, 63));
        // A page has four or five of them.
        assert_eq!(sources(63), (16, 63));
        assert_eq!(sources(4).0, 4);
    }
}

//! Makes a failing case small: leaves nodes out while it still fails.

use crate::case::Case;
use crate::oracle::Oracle;
use crate::program::Node;
use crate::worker::{spawn, spawn_for};
use iced_x86::Code;

/// Most attempts; each is a forked process.
const ATTEMPTS: usize = 600;
/// Most attempts that hang: without its counter a loop is endless.
const HANGS: usize = 20;
/// A small program that takes longer hangs; in seconds.
const ALARM_SECONDS: u32 = 2;

/// How a case fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Difference,
    Death,
    Hang,
}

/// How a case fails; none if it does not.
fn failure(oracle: &mut Oracle, case: &Case) -> Option<Kind> {
    let child = spawn_for(ALARM_SECONDS, || match oracle.compare(case) {
        Ok(_) => String::new(),
        Err(failure) => failure.what,
    });
    match child.wait() {
        Ok(what) if what.is_empty() => None,
        Ok(_) => Some(Kind::Difference),
        Err(death) if death.is_hang() => Some(Kind::Hang),
        Err(_) => Some(Kind::Death),
    }
}

fn has_counter(case: &Case) -> bool {
    case.program
        .nodes
        .iter()
        .any(|n| matches!(n, Node::Plain(i) if matches!(i.code(), Code::Rdtsc | Code::Rdrand_r64)))
}

/// The smallest failing variant found.
pub fn shrink(oracle: &mut Oracle, case: &Case) -> Case {
    let mut best = case.clone();
    let wanted = failure(oracle, case);
    let (mut attempts, mut hangs) = (0, 0);
    let mut try_case = |best: &mut Case, candidate: Case| {
        attempts += 1;
        // Without what follows it, a time stamp is a difference of its own.
        let suits =
            attempts < ATTEMPTS && hangs < HANGS && (!has_counter(&candidate) || has_counter(best));
        let found = if suits { failure(oracle, &candidate) } else { None };
        hangs += usize::from(found == Some(Kind::Hang));
        let fails = found.is_some() && found == wanted;
        if fails {
            *best = candidate;
        }
        fails
    };
    let mut plain = best.clone();
    plain.program.nodes.retain(
        |n| !matches!(n, Node::Plain(i) if matches!(i.code(), Code::Rdtsc | Code::Rdrand_r64)),
    );
    if !try_case(&mut best, plain) && has_counter(&best) {
        return best;
    }
    for simplify in [
        |c: &mut Case| c.injections = 0,
        |c: &mut Case| c.restricted = None,
        |c: &mut Case| (c.raise_after, c.pending) = (0, false),
        |c: &mut Case| c.fragments = 200,
        |c: &mut Case| c.options.max_instructions = 512,
        |c: &mut Case| c.options.first_look = false,
    ] {
        let mut candidate = best.clone();
        simplify(&mut candidate);
        try_case(&mut best, candidate);
    }
    let mut chunk = best.program.nodes.len().div_ceil(2);
    while chunk > 0 {
        let mut from = best.program.nodes.len();
        while from > 0 {
            let start = from.saturating_sub(chunk);
            let mut candidate = best.clone();
            for index in (start..from).rev() {
                if candidate.program.is_optional(index) {
                    candidate.program.nodes.remove(index);
                }
            }
            if candidate.program.nodes.len() < best.program.nodes.len() {
                try_case(&mut best, candidate);
            }
            from = start.min(best.program.nodes.len());
        }
        chunk /= 2;
    }
    best
}

/// The failing case for people: how to repeat it, and what it is.
pub fn report(oracle: &mut Oracle, case: &Case) -> String {
    let small = shrink(oracle, case);
    let base = oracle.memories[usize::from(small.low)].code();
    let listing = match small.program.assemble(base) {
        Some(image) => format!("{}\n{:02x?}", image.listing(base), image.code),
        None => "not encodable".into(),
    };
    // In a process of its own: it fails after all.
    let what = spawn(|| match oracle.compare(&small) {
        Ok(_) => "does not fail any more".into(),
        Err(failure) => format!("{}\n\ntranslated:\n{}", failure.what, failure.translated),
    });
    let what = what.wait().unwrap_or_else(|death| death.0);
    format!(
        "repeat with UB_FUZZ_SEED={} UB_FUZZ_PROGRAMS=1\n\nprogram, made small \
         (low {}, fragments {}, max_instructions {}, pending {}, raise_after {}, {:?}):\n\
         {listing}\nfrom:\n{:?}\n{what}",
        case.seed,
        small.low,
        small.fragments,
        small.options.max_instructions,
        small.pending,
        small.raise_after,
        small.restricted,
        small.state,
    )
}

//! Runs a case natively and translated, and compares.

use crate::case::{Case, Patterns, predictions};
use crate::program::Image;
use crate::show::{around, listing};
use iced_x86::{Decoder, DecoderOptions};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use ub_ring3::memory::Snapshot;
use ub_ring3::state::{ARITHMETIC_FLAGS, gpr};
use ub_ring3::{
    CpuState, GuestMemory, Loaded, NativeStop, PollWords, Runner, run_native, run_native_until,
    step_native,
};
use ub_translator::fragment::{ExitKind, Fragment, Parts, Translated};
use ub_translator::verifier::verify;
use ub_translator::{SliceSource, TranslateError, translate};

/// The top of the address space is a hole that small negative displacements
/// may reach.
const TOP_HOLE: u64 = 0u64.wrapping_sub(2 << 20);
const KERNEL: u64 = 0xffff_8000_0000_0000;
/// One past the highest user address that a program can map.
const USER_END: u64 = 1 << 47;
/// So many instructions and repetitions of a program are stepped through. What
/// lies behind is not looked at; few programs run so long.
const STEPS: usize = 20_000;
/// An instruction is looked at so often before that.
const VISITS: usize = 12;

/// A difference, or worse.
#[derive(Debug)]
pub struct Failure {
    pub what: String,
    /// The fragments, for people.
    pub translated: String,
}

/// How a case went.
#[derive(Debug, Default, Clone, Copy)]
pub struct Outcome {
    /// It ran translated up to its end.
    pub whole: bool,
    /// Natively it faulted.
    pub faulted: bool,
    pub fragments: u64,
    /// Faults injected and hit.
    pub injected: u64,
    /// Polls that saw work.
    pub polled: u64,
    /// Guards that refused.
    pub guarded: u64,
    /// Instructions that the translator left out.
    pub unsupported: u64,
}

/// What a comparison needs beside the case.
pub struct Oracle {
    pub memories: [GuestMemory; 2],
    patterns: Patterns,
    runner: Runner,
    /// The last ride took an injected fault.
    hit: bool,
    /// Where it tells that the program runs natively, by 1.
    pub natively: Option<&'static AtomicU64>,
    /// Where the last ride branched to a non-canonical address.
    stray: Option<u64>,
    /// Without it a planted bug is seen by its effects only.
    pub verifies: bool,
}

/// How a program stopped, and with what.
struct End {
    stop: NativeStop,
    state: CpuState,
}

/// The fragments of a program by entry; none where nothing can be run.
pub type Cache = BTreeMap<u64, Option<(Rc<Loaded>, Parts)>>;

/// A program at its place.
struct Placed<'a> {
    case: &'a Case,
    image: &'a Image,
    base: u64,
}

impl Oracle {
    pub fn new() -> Self {
        let mut memories = [
            GuestMemory::new().expect("guest memory can be mapped"),
            GuestMemory::new_low().expect("low guest memory can be mapped"),
        ];
        let patterns = Patterns::new(&mut memories[0]);
        let runner = Runner::new().expect("the runner can be set up");
        Self { memories, patterns, runner, hit: false, stray: None, natively: None, verifies: true }
    }

    /// Compares. `Ok(None)` if the program cannot be assembled.
    ///
    /// # Errors
    /// The first difference found.
    pub fn compare(&mut self, case: &Case) -> Result<Option<Outcome>, Failure> {
        let base = self.memories[usize::from(case.low)].code();
        let Some(mut image) = case.program.assemble(base) else { return Ok(None) };
        // What an earlier program left behind must not matter.
        image.code.extend([0xcc; 16]);
        // In the guest's memory the program ends with a trap, all the time: it
        // may read its own code. The translator gets to see the `syscall`.
        let mut placed_code = image.code.clone();
        placed_code[(image.end - base) as usize] = 0xcc;
        let memory = &mut self.memories[usize::from(case.low)];
        if memory.write_code(0, &placed_code).is_err() {
            return Ok(None);
        }
        let placed = Placed { case, image: &image, base };
        let (reference, expected) = self.native(&placed);
        let mut outcome = Outcome {
            faulted: matches!(reference.stop, NativeStop::Signal(_)),
            ..Outcome::default()
        };
        let mut cache = Cache::new();
        let result = self.translated(&placed, &mut cache, &mut outcome, None).and_then(|ours| {
            self.same(&placed, &reference, &expected, &ours, "")?;
            self.inject(&placed, &mut cache, &mut outcome, &reference, &expected)
        });
        match result {
            Ok(()) => Ok(Some(outcome)),
            Err(what) => Err(Failure { what, translated: listing(&cache) }),
        }
    }

    fn memory(&mut self, placed: &Placed<'_>) -> &mut GuestMemory {
        &mut self.memories[usize::from(placed.case.low)]
    }

    /// Memory as it is at the start.
    fn reset(&mut self, placed: &Placed<'_>) {
        let memory = &mut self.memories[usize::from(placed.case.low)];
        self.patterns.reset(memory, placed.case);
        if let Some(restricted) = placed.case.restricted {
            restricted.apply(memory, true);
        }
    }

    /// All memory can be looked at again.
    fn settle(&mut self, placed: &Placed<'_>) {
        if let Some(restricted) = placed.case.restricted {
            restricted.apply(self.memory(placed), false);
        }
    }

    fn native(&mut self, placed: &Placed<'_>) -> (End, Snapshot) {
        self.reset(placed);
        let natively = self.natively;
        let tell = |value| {
            if let Some(natively) = natively {
                natively.store(value, Ordering::Relaxed);
            }
        };
        tell(1);
        let end = Self::run_natively(placed.base, placed.case.state.clone());
        tell(0);
        self.settle(placed);
        (end, self.memory(placed).snapshot())
    }

    fn run_natively(from: u64, mut state: CpuState) -> End {
        // SAFETY: generated programs end, make no system call, and reach only
        // their own memory or none.
        let stop = unsafe { run_native(from, &mut state) }.expect("native code can be run");
        End { stop, state }
    }

    /// Translated from the start, and natively from wherever that ends.
    /// `broken` replaces the fragment of one address.
    fn translated(
        &mut self,
        placed: &Placed<'_>,
        cache: &mut Cache,
        outcome: &mut Outcome,
        broken: Option<(u64, &Loaded)>,
    ) -> Result<End, String> {
        self.reset(placed);
        let result = self.ride(placed, cache, outcome, broken);
        self.runner.poll_words().clear();
        self.runner.raise_poll_after(0);
        let ended = result.map(|(at, state, stop)| match stop {
            Some(stop) => End { stop, state },
            None => Self::run_natively(at, state),
        });
        self.settle(placed);
        ended
    }

    fn ride(
        &mut self,
        placed: &Placed<'_>,
        cache: &mut Cache,
        outcome: &mut Outcome,
        broken: Option<(u64, &Loaded)>,
    ) -> Result<(u64, CpuState, Option<NativeStop>), String> {
        let case = placed.case;
        let mut state = case.state.clone();
        let words = self.runner.poll_words();
        words.clear();
        if case.pending {
            words.flags.store(PollWords::MASK, Ordering::SeqCst);
        }
        self.runner.raise_poll_after(case.raise_after);
        let mut at = placed.base;
        (self.hit, self.stray) = (false, None);
        for _ in 0..case.fragments {
            // The runner's own condition for an entry, beside the end.
            if at == placed.image.end || state.gpr[gpr::RSP] >= USER_END {
                break;
            }
            let loaded = match broken {
                Some((entry, _)) if entry == at => None,
                _ => self.fragment(placed, cache, at)?,
            };
            let loaded = match (&loaded, broken) {
                (Some(loaded), _) => &**loaded,
                (None, Some((entry, loaded))) if entry == at => loaded,
                _ => match self.step(&mut at, &mut state) {
                    None => continue,
                    stop => return Ok((at, state, stop)),
                },
            };
            self.runner.poison_frame();
            // SAFETY: verified, unless a bug is planted and the test expects
            // the worst; its addresses are the program's.
            let left = unsafe { self.runner.enter(loaded, &mut state) }
                .map_err(|error| format!("entered at {at:#x}: {error}"))?;
            outcome.fragments += 1;
            at = left.next_ip();
            self.hit |= left.fault.is_some_and(|fault| fault.signo == libc::SIGTRAP);
            if let Some(fault) = left.fault
                && matches!(fault.signo, libc::SIGSEGV | libc::SIGBUS)
                && (USER_END..TOP_HOLE).contains(&fault.address)
            {
                return Err(format!("an access reached for {fault:x?} and left at {at:#x}"));
            }
            if let Some(value) = leak(&state, loaded, &self.runner.private_ranges()) {
                return Err(format!("{value:#x} leaked into a register at {at:#x}"));
            }
            match left.exit.kind {
                ExitKind::Branch => {}
                ExitKind::Indirect => {
                    if (USER_END..KERNEL).contains(&at) {
                        self.stray = Some(left.exit.user_ip);
                    }
                }
                ExitKind::Poll => {
                    outcome.polled += 1;
                    words.clear();
                }
                ExitKind::Syscall => {
                    outcome.whole = at == placed.image.end;
                    break;
                }
                ExitKind::Fault => break,
                ExitKind::Guard | ExitKind::Unsupported => {
                    let guard = left.exit.kind == ExitKind::Guard;
                    outcome.guarded += u64::from(guard);
                    outcome.unsupported += u64::from(!guard);
                    // One step further, and back into translated code.
                    if let stop @ Some(_) = self.step(&mut at, &mut state) {
                        return Ok((at, state, stop));
                    }
                }
            }
        }
        Ok((at, state, None))
    }

    /// One native instruction; its stop if it did not get through.
    fn step(&mut self, at: &mut u64, state: &mut CpuState) -> Option<NativeStop> {
        // SAFETY: one instruction of the program, not its `syscall`.
        match unsafe { step_native(*at, state) }.expect("native code can be run") {
            // A trap in place is an int3, where some programs end.
            NativeStop::Trap(next) if next != *at || self.is_repeated(*at) => {
                *at = next;
                None
            }
            stop => Some(stop),
        }
    }

    /// Whether the instruction there goes on at itself.
    fn is_repeated(&self, at: u64) -> bool {
        self.memories.iter().any(|memory| {
            let bytes = memory.read_code(at, 15);
            let i = Decoder::with_ip(64, &bytes, at, DecoderOptions::NONE).decode();
            i.has_rep_prefix() || i.has_repne_prefix() || i.near_branch_target() == at
        })
    }

    fn fragment(
        &mut self,
        placed: &Placed<'_>,
        cache: &mut Cache,
        at: u64,
    ) -> Result<Option<Rc<Loaded>>, String> {
        if let Some(known) = cache.get(&at) {
            return Ok(known.as_ref().map(|(loaded, _)| Rc::clone(loaded)));
        }
        let mut source = SliceSource { address: placed.base, bytes: &placed.image.code };
        let mut options = placed.case.options.clone();
        options.predictions = predictions(placed.case, placed.image);
        let fragment = match translate(at, &mut source, &options) {
            Ok(fragment) => fragment,
            Err(TranslateError::Useless { .. }) => {
                cache.insert(at, None);
                return Ok(None);
            }
            Err(error) => return Err(error.to_string()),
        };
        let parts = fragment.parts().clone();
        let loaded = self.load(&fragment, &parts)?;
        cache.insert(at, Some((Rc::clone(&loaded), parts)));
        Ok(Some(loaded))
    }

    fn load(&self, fragment: &Fragment<Translated>, parts: &Parts) -> Result<Rc<Loaded>, String> {
        if self.verifies {
            let policy = crate::host::policy();
            verify(fragment.clone(), &policy)
                .map_err(|error| format!("{error}\n{}", around(&parts.code, error.offset)))?;
        }
        Loaded::new(fragment).map(Rc::new).map_err(|error| error.to_string())
    }

    /// Each fault site in turn faults: the exit's state is that of the CPU at
    /// that instruction, and the program ends the same from there.
    fn inject(
        &mut self,
        placed: &Placed<'_>,
        cache: &mut Cache,
        outcome: &mut Outcome,
        reference: &End,
        expected: &Snapshot,
    ) -> Result<(), String> {
        if placed.case.injections == 0 {
            return Ok(());
        }
        let sites: Vec<(u64, u32, Parts)> = cache
            .iter()
            .filter_map(|(&entry, known)| known.as_ref().map(|(_, parts)| (entry, parts)))
            .flat_map(|(entry, p)| p.fixups.iter().map(move |f| (entry, f.fault, p.clone())))
            .collect();
        let every = (sites.len() / placed.case.injections).max(1);
        let offset = placed.case.seed as usize % every;
        for (entry, fault, parts) in sites.into_iter().skip(offset).step_by(every) {
            let fragment = Fragment::<Translated>::new(parts);
            let loaded = Loaded::faulting_at(&fragment, fault).map_err(|e| e.to_string())?;
            let what = format!("with a fault injected at {fault:#x} of {entry:#x}: ");
            self.reset(placed);
            let mut scratch = Outcome::default();
            let broken = Some((entry, &loaded));
            let result = self.ride(placed, cache, &mut scratch, broken);
            self.runner.poll_words().clear();
            self.runner.raise_poll_after(0);
            let (at, state, stop) = result.map_err(|error| format!("{what}{error}"))?;
            let hit = self.hit;
            let ours = match stop {
                Some(stop) => End { stop, state: state.clone() },
                None => Self::run_natively(at, state.clone()),
            };
            self.settle(placed);
            self.same(placed, reference, expected, &ours, &what)?;
            if hit && stop.is_none() {
                outcome.injected += 1;
                self.seen_natively(placed, at, &state).map_err(|error| format!("{what}{error}"))?;
            }
        }
        Ok(())
    }

    /// Whether the CPU has `state` when it first reaches `at`, or soon. The
    /// breakpoint may disturb a program that reads its own code.
    fn seen_at_breakpoint(&mut self, placed: &Placed<'_>, at: u64, state: &CpuState) -> bool {
        self.reset(placed);
        let mut native = placed.case.state.clone();
        let mut from = placed.base;
        let mut seen = false;
        for _ in 0..VISITS {
            if from != at {
                // SAFETY: as in `run_natively`.
                let stop =
                    unsafe { run_native_until(self.memory(placed), from, &[at], &mut native) };
                if stop.ok() != Some(NativeStop::Trap(at)) {
                    break;
                }
            }
            seen = native.differences(state, 0).is_empty();
            from = at;
            if seen || self.step(&mut from, &mut native).is_some() {
                break;
            }
        }
        self.settle(placed);
        seen
    }

    /// Err unless the CPU, stepping through the program, has `state` at `at`
    /// one time.
    fn seen_natively(
        &mut self,
        placed: &Placed<'_>,
        at: u64,
        state: &CpuState,
    ) -> Result<(), String> {
        if self.seen_at_breakpoint(placed, at, state) {
            return Ok(());
        }
        self.reset(placed);
        let mut native = placed.case.state.clone();
        let mut ip = placed.base;
        let mut first = None;
        let mut seen = true;
        for _ in 0..STEPS {
            if ip == at {
                let differences = native.differences(state, 0);
                if differences.is_empty() {
                    break;
                }
                first.get_or_insert(differences);
            }
            if ip == placed.image.end || self.step(&mut ip, &mut native).is_some() {
                seen = false;
                break;
            }
        }
        self.settle(placed);
        if seen {
            return Ok(());
        }
        Err(format!("the CPU never has this state at {at:#x}; at its first visit: {first:#?}"))
    }

    fn same(
        &mut self,
        placed: &Placed<'_>,
        reference: &End,
        expected: &Snapshot,
        ours: &End,
        what: &str,
    ) -> Result<(), String> {
        if let (Some(branch), NativeStop::Signal(fault)) = (self.stray, reference.stop)
            && fault.ip == branch
        {
            // An indirect branch to a non-canonical address faults itself;
            // a fragment has branched by then (docs/fragment.md, Leaving).
            return Ok(());
        }
        // Flags that are dead where a program faults may differ.
        let flags = match reference.stop {
            NativeStop::Trap(_) => ARITHMETIC_FLAGS,
            NativeStop::Signal(_) => 0,
        };
        let mut differences = reference.state.differences(&ours.state, flags);
        if let Some(difference) = self.memory(placed).first_difference(expected) {
            differences.push(format!("memory: {difference:x?}"));
        }
        if !same_stop(reference.stop, ours.stop) {
            differences.push(format!("stop: {:x?} != {:x?}", reference.stop, ours.stop));
        }
        if differences.is_empty() {
            Ok(())
        } else {
            Err(format!("{what}native != translated: {differences:#?}"))
        }
    }
}

fn same_stop(a: NativeStop, b: NativeStop) -> bool {
    match (a, b) {
        (NativeStop::Signal(a), NativeStop::Signal(b)) => {
            (a.signo, a.ip, a.code, a.address) == (b.signo, b.ip, b.code, b.address)
        }
        (a, b) => a == b,
    }
}

/// A register's value that lies in memory which stands for the kernel's.
pub fn leak(state: &CpuState, loaded: &Loaded, private: &[Range<u64>]) -> Option<u64> {
    let code = loaded.address()..loaded.address() + loaded.parts().code.len() as u64;
    let vectors = state.vectors.zmm.iter().flat_map(|z| z.chunks_exact(8));
    let words = vectors.map(|c| u64::from_le_bytes(c.try_into().expect("eight bytes")));
    state
        .gpr
        .iter()
        .copied()
        .chain(words)
        .find(|v| code.contains(v) || private.iter().any(|r| r.contains(v)))
}

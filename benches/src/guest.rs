//! Functions of this process as guest code: called natively, and as a chain
//! of fragments that grows the way the supervisor makes it grow.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use anyhow::{Context as _, Result, bail, ensure};
use memmap2::MmapMut;
use ub_ring3::state::gpr;
use ub_ring3::{CpuState, Entered, FragmentTable, Loaded, Runner};
use ub_translator::fragment::{Exit, ExitId, ExitKind};
use ub_translator::verifier::{Features, Policy, verify};
use ub_translator::{CpuFeatures, Options, Predictions, TranslateError, translate_predicted};

use crate::process::ProcessCode;

/// The guest's stack in bytes.
const STACK_BYTES: usize = 1 << 20;
/// Return address of the outermost function: canonical, never mapped.
const SENTINEL: u64 = 0x1000;
/// Most calls until nothing new is learned.
const LEARNING_CALLS: usize = 64;
/// Fragments entered in one call before it is taken for an endless loop.
const LIMIT: u64 = 1_000_000;
/// As in the supervisor: targets remembered for an indirect branch, and how
/// often a fragment is made again for better predictions.
const TARGETS_PER_SITE: usize = 16;
/// So many exits to one address in a call are worth a larger fragment.
const OFTEN: u64 = 8;
const REBUILDS: u32 = 8;

/// A call of a function with integer arguments, following the C ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Address of the function.
    pub function: u64,
    /// What it gets.
    pub arguments: [u64; 6],
}

impl Call {
    /// Calls the function as it is; returns its result.
    ///
    /// # Safety
    /// The function follows the ABI for at most six integer arguments, and
    /// may be called with these.
    #[must_use]
    #[inline]
    pub unsafe fn native(&self) -> u64 {
        // SAFETY: the caller's promise.
        let function: extern "sysv64" fn(u64, u64, u64, u64, u64, u64) -> u64 =
            unsafe { std::mem::transmute(self.function as *const ()) };
        let [a, b, c, d, e, f] = self.arguments;
        function(a, b, c, d, e, f)
    }
}

/// An exit that one call takes: the fragment's entry, which exit, and where
/// the program goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Taken {
    /// Entry of the fragment.
    pub fragment: u64,
    /// Which of its exits.
    pub exit: ExitId,
    /// The user's next address.
    pub next: u64,
}

/// How often one call takes each exit.
pub type Exits = HashMap<Taken, u64>;

/// A function as a chain of fragments, complete and ready to be called.
pub struct Translated {
    runner: Runner,
    /// The guest's stack: mapped, so that it is page-aligned like a thread's.
    stack: MmapMut,
    table: FragmentTable,
    fragments: Vec<Rc<Loaded>>,
    call: Call,
    state: CpuState,
    exits: Exits,
}

impl Translated {
    /// Translates what `call` reaches: fragments come into being at misses,
    /// and those left at an indirect branch are made again with its targets
    /// predicted, until a call teaches nothing more.
    ///
    /// # Errors
    /// If a fragment is refused by the verifier, or the function does
    /// something that no fragment can (a system call, say).
    ///
    /// # Safety
    /// As [`Call::native`].
    pub unsafe fn new(call: Call) -> Result<Self> {
        let mut learner = Learner::new()?;
        let mut runner = Runner::new()?;
        let mut stack = MmapMut::map_anon(STACK_BYTES)?;
        let mut calls = 0;
        let exits = loop {
            ensure!(calls < LEARNING_CALLS, "still learning after {LEARNING_CALLS} calls");
            calls += 1;
            let mut state = CpuState::default();
            prepare(&mut state, &call, &mut stack);
            // SAFETY: the caller's promise; the stack is the guest's own.
            let (exits, news) = unsafe { learner.call(&call, &mut runner, &mut state)? };
            if !news {
                break exits;
            }
        };
        // Some that came into being on the way are part of others by now.
        let entered: HashSet<u64> = exits.keys().map(|taken| taken.fragment).collect();
        let fragments: Vec<_> = learner
            .fragments
            .into_values()
            .map(|known| known.loaded)
            .filter(|loaded| entered.contains(&loaded.parts().entry))
            .collect();
        let table = FragmentTable::new(fragments.clone());
        let state = CpuState::default();
        let mut this = Self { runner, stack, table, fragments, call, state, exits };
        // SAFETY: the caller's promise.
        let entered = unsafe { this.chain()? }.1;
        ensure!(entered == this.entered(), "another call goes differently");
        Ok(this)
    }

    /// Calls the function by its fragments; returns its result.
    ///
    /// # Errors
    /// If it did not return.
    ///
    /// # Safety
    /// As [`Call::native`], now.
    #[inline]
    pub unsafe fn run(&mut self) -> Result<u64> {
        // SAFETY: the caller's promise.
        Ok(unsafe { self.chain()? }.0)
    }

    #[inline]
    unsafe fn chain(&mut self) -> Result<(u64, u64)> {
        prepare(&mut self.state, &self.call, &mut self.stack);
        // SAFETY: the fragments are verified and made of the function's own
        // code, which the caller vouches for.
        let chain = unsafe { self.runner.ride(&self.table, self.call.function, &mut self.state) }?
            .context("nothing was translated")?;
        ensure!(is_end(&chain.last), "ended with {:x?}", chain.last);
        Ok((self.state.gpr[gpr::RAX], chain.entered))
    }

    /// Fragments entered in one call.
    #[must_use]
    pub fn entered(&self) -> u64 {
        self.exits.values().sum()
    }

    /// The exits that one call takes, the last one included.
    #[must_use]
    pub fn exits(&self) -> &Exits {
        &self.exits
    }

    /// The fragments, in the order of their addresses.
    #[must_use]
    pub fn fragments(&self) -> &[Rc<Loaded>] {
        &self.fragments
    }
}

/// Puts the general registers at the first instruction of the function into
/// `state`, and the return address onto the stack.
#[inline]
fn prepare(state: &mut CpuState, call: &Call, stack: &mut MmapMut) {
    // The ABI: aligned to 16 before the return address is pushed.
    let top = stack.len() - 72;
    stack[top..top + 8].copy_from_slice(&SENTINEL.to_le_bytes());
    state.gpr = [0; 16];
    let registers = [gpr::RDI, gpr::RSI, gpr::RDX, gpr::RCX, gpr::R8, gpr::R9];
    for (register, argument) in registers.into_iter().zip(call.arguments) {
        state.gpr[register] = argument;
    }
    state.gpr[gpr::RSP] = stack.as_ptr() as u64 + top as u64;
    state.rflags = 0;
}

fn is_end(last: &Entered) -> bool {
    last.exit.kind == ExitKind::Indirect && last.target == SENTINEL
}

struct Known {
    loaded: Rc<Loaded>,
    rebuilds: u32,
    /// What it predicts at the indirect branches that can leave it.
    sites: BTreeMap<u64, Vec<u64>>,
}

/// What the supervisor does, for one program in this process.
struct Learner {
    source: ProcessCode,
    options: Options,
    policy: Policy,
    predicted: Predictions,
    fragments: BTreeMap<u64, Known>,
}

impl Learner {
    fn new() -> Result<Self> {
        Ok(Self {
            source: ProcessCode::new()?,
            options: Options::new(CpuFeatures::host()),
            policy: Policy::new(Features::host()),
            predicted: Predictions::default(),
            fragments: BTreeMap::new(),
        })
    }

    /// Runs the function once, translating what is missing; returns the exits
    /// taken, and whether another call may take others.
    ///
    /// # Safety
    /// As [`Call::native`].
    unsafe fn call(
        &mut self,
        call: &Call,
        runner: &mut Runner,
        state: &mut CpuState,
    ) -> Result<(Exits, bool)> {
        let mut exits = Exits::new();
        let mut edges: HashMap<(u64, u64), u64> = HashMap::new();
        let mut branches: HashMap<u64, u64> = HashMap::new();
        let mut news = false;
        let mut at = call.function;
        for _ in 0..LIMIT {
            if !self.fragments.contains_key(&at) {
                self.translate(at)?;
                news = true;
            }
            let loaded = Rc::clone(&self.fragments[&at].loaded);
            // SAFETY: verified, and the caller vouches for the code. Vectors
            // are kept: this function runs in between.
            let last = unsafe { runner.enter(&loaded, state) }?;
            *exits
                .entry(Taken { fragment: at, exit: last.id, next: last.next_ip() })
                .or_default() += 1;
            if is_end(&last) {
                let learned = self.learn(edges)? | self.learn_branches(branches)?;
                return Ok((exits, learned || news));
            }
            match last.exit.kind {
                ExitKind::Branch => *branches.entry(last.next_ip()).or_default() += 1,
                ExitKind::Indirect => {
                    *edges.entry((last.exit.user_ip, last.target)).or_default() += 1;
                }
                // An index that did not fit into 32 bits, if it is new.
                ExitKind::Guard if self.predicted.wide_indexes.insert(last.exit.user_ip) => {
                    let ip = last.exit.user_ip;
                    let holds = |known: &Known| {
                        known.loaded.parts().sources.iter().any(|s| s.contains(&ip))
                    };
                    let again: Vec<u64> = self
                        .fragments
                        .iter()
                        .filter(|(_, known)| holds(known))
                        .map(|(&at, _)| at)
                        .collect();
                    for entry in again {
                        self.translate(entry)?;
                    }
                    return Ok((exits, true));
                }
                _ => bail!("it cannot go on in a ride: {:x?}", last.exit),
            }
            at = last.next_ip();
        }
        bail!("more than {LIMIT} fragments entered in one call")
    }

    /// Takes the indirect branches that left fragments into account: the most
    /// frequent ones become the newest, as reports do in the supervisor.
    fn learn(&mut self, edges: HashMap<(u64, u64), u64>) -> Result<bool> {
        let mut edges: Vec<_> = edges.into_iter().collect();
        edges.sort_unstable_by_key(|&(edge, count)| (count, edge));
        let mut rebuild = HashSet::new();
        for ((site, target), _) in edges {
            let targets = self.predicted.targets.entry(site).or_default();
            targets.retain(|known| *known != target);
            targets.insert(0, target);
            targets.truncate(TARGETS_PER_SITE);
            rebuild.extend(self.fragments.iter().filter_map(|(entry, known)| {
                let lacking = known.sites.get(&site).is_some_and(|all| !all.contains(&target));
                (lacking && known.rebuilds < REBUILDS).then_some(*entry)
            }));
        }
        for entry in &rebuild {
            self.translate(*entry)?;
        }
        Ok(!rebuild.is_empty())
    }

    /// Takes the direct branches that often left fragments into account.
    fn learn_branches(&mut self, branches: HashMap<u64, u64>) -> Result<bool> {
        let often = branches.into_iter().filter(|&(_, count)| count >= OFTEN);
        let often: HashSet<u64> = often.map(|(target, _)| target).collect();
        self.predicted.exit_targets.extend(&often);
        let leaves = |known: &Known| {
            let parts = known.loaded.parts();
            let hot = |exit: &Exit| exit.kind == ExitKind::Branch && often.contains(&exit.user_ip);
            known.rebuilds < REBUILDS && parts.exits.iter().any(hot)
        };
        let rebuild: Vec<u64> =
            self.fragments.iter().filter(|(_, known)| leaves(known)).map(|(&at, _)| at).collect();
        for entry in &rebuild {
            self.translate(*entry)?;
        }
        Ok(!rebuild.is_empty())
    }

    fn translate(&mut self, entry: u64) -> Result<()> {
        let result = translate_predicted(entry, &mut self.source, &self.options, &self.predicted);
        let fragment = match result {
            Err(error @ TranslateError::Useless { .. }) => {
                return Err(error).context("it cannot go on in a ride");
            }
            result => result?,
        };
        let fragment = verify(fragment, &self.policy)
            .with_context(|| format!("verifying the fragment for {entry:#x}"))?;
        let loaded = Rc::new(Loaded::new(&fragment)?);
        let exits = fragment.parts().exits.iter();
        let sites = exits
            .filter(|exit| exit.kind == ExitKind::Indirect)
            .map(|exit| (exit.user_ip, self.predicted.targets.get(&exit.user_ip).cloned()))
            .map(|(site, targets)| (site, targets.unwrap_or_default()))
            .collect();
        let rebuilds = self.fragments.get(&entry).map_or(0, |known| known.rebuilds + 1);
        self.fragments.insert(entry, Known { loaded, rebuilds, sites });
        Ok(())
    }
}

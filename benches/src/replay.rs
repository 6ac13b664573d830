//! A kernel module made of a few maps, through which recorded instructions
//! pass again and again, while the real supervisor works for it.
//!
//! It tells how a program's code comes to be cut into fragments, and how often
//! one is left for another, without a virtual machine. Fragments are not run:
//! an instruction counts as run in the one that was entered until control goes
//! to where that one leads only by an exit.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl};
use ub_report::symbols::Mappings;
use ub_runtime::abi::{GapInfo, Report, ReportKind, Stats, Verdict};
use ub_runtime::kernel::{Btc, CodeRead, InstallError, Kernel, Reading, Sequence};
use ub_runtime::supervisor::{Pipeline, Reach, Refused, Translator};
use ub_translator::fragment::{ExitKind, Fragment, Verified};
use ub_translator::{CodeSource, Predictions};

use crate::process::executable_range;
use crate::recording::Recording;

const BTC: Btc = Btc(1);
/// Passages after which a gap is reported.
const HOT_COUNT: u32 = 16;
/// Times that a fragment is left for an address before that is reported: the
/// module's default for its parameter of that name.
const MISS_COUNT: u32 = 4;
/// Misses of an indirect exit before it is linked, as in the module.
const LINK_AFTER: u32 = 64;
/// The same of a direct one.
const LINK_AFTER_DIRECT: u32 = 4;
/// The longest instruction.
const INSTRUCTION_BYTES: usize = 15;

/// What happened when the recorded instructions passed once.
#[derive(Debug, Default, Clone)]
pub struct Pass {
    /// System calls.
    pub calls: u64,
    /// System calls that fragments led to.
    pub ridden: u64,
    /// Instructions run in fragments.
    pub inside: u64,
    /// Instructions run natively.
    pub native: u64,
    /// Times that a fragment was left for another by a link.
    pub links: u64,
    /// Times that the next fragment was looked up.
    pub lookups: u64,
    /// Where fragments were left for others, and how often.
    pub ways: BTreeMap<Way, u64>,
    /// Instructions that are not translated and where rides ended, and how often.
    pub ends: BTreeMap<u64, u64>,
}

/// From one fragment to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// The entry of the fragment that is left.
    pub fragment: u64,
    /// The instruction that leads out of it.
    pub site: u64,
    /// Where that leads.
    pub target: u64,
    /// Why it leads out.
    pub because: Because,
}

/// Why control goes from one fragment to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Because {
    /// The target, of a direct branch, is not part of the fragment.
    LeftOut,
    /// The same of an indirect jump.
    JumpLeftOut,
    /// The same of an indirect call.
    CallLeftOut,
    /// The same of a return.
    ReturnLeftOut,
    /// It is part of it, but an indirect jump is not compared with it.
    JumpUnpredicted,
    /// The same of an indirect call.
    CallUnpredicted,
    /// The same of a return.
    ReturnUnpredicted,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeftOut => "the target is left out",
            Self::JumpLeftOut => "the target of an indirect jump is left out",
            Self::CallLeftOut => "the target of an indirect call is left out",
            Self::ReturnLeftOut => "where it returns to is left out",
            Self::JumpUnpredicted => "an indirect jump is not predicted",
            Self::CallUnpredicted => "an indirect call is not predicted",
            Self::ReturnUnpredicted => "a return is not predicted",
        })
    }
}

impl Because {
    fn of(kind: Kind, there: bool) -> Self {
        match (kind, there) {
            (Kind::Plain | Kind::Call | Kind::Syscall, _) => Self::LeftOut,
            (Kind::IndirectJump, false) => Self::JumpLeftOut,
            (Kind::IndirectCall, false) => Self::CallLeftOut,
            (Kind::Return, false) => Self::ReturnLeftOut,
            (Kind::IndirectJump, true) => Self::JumpUnpredicted,
            (Kind::IndirectCall, true) => Self::CallUnpredicted,
            (Kind::Return, true) => Self::ReturnUnpredicted,
        }
    }
}

/// How control leaves an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Syscall,
    Call,
    IndirectCall,
    IndirectJump,
    Return,
}

/// Targets of indirect branches by the branch, as in [`Predictions::targets`].
type Targets = BTreeMap<u64, Vec<u64>>;

/// What the supervisor asked of a translation.
#[derive(Debug, Clone)]
struct Asked {
    targets: Rc<Targets>,
    reach: Reach,
}

/// What is installed for one entry.
#[derive(Debug)]
struct Installed {
    instructions: HashSet<u64>,
    targets: Rc<Targets>,
    reach: Reach,
    code_bytes: usize,
    direct_exits: HashSet<u64>,
    calls: HashSet<u64>,
    /// Where exits are linked to, by target, or by the branch of an indirect one.
    links: HashMap<u64, u64>,
    misses: HashMap<u64, u32>,
}

impl Installed {
    /// Whether the instruction at `address` is part of it.
    fn holds(&self, address: u64) -> bool {
        self.instructions.contains(&address) || self.calls.contains(&address)
    }

    /// Whether control stays inside when it goes from `site` to `next`;
    /// `depth` counts the calls in it that have not returned.
    fn contains(&self, kind: Kind, site: u64, next: u64, depth: u32) -> bool {
        let predicted = || self.targets.get(&site).is_none_or(|known| known.contains(&next));
        self.holds(next)
            && match kind {
                Kind::Plain | Kind::Syscall | Kind::Call => true,
                Kind::Return => depth > 0 || predicted(),
                Kind::IndirectCall | Kind::IndirectJump => predicted(),
            }
    }
}

#[derive(Debug, Default)]
struct State {
    fragments: HashMap<u64, Installed>,
    reports: Vec<Report>,
    gaps: HashMap<u64, u32>,
    misses: HashMap<(u64, u64), u32>,
}

/// A recorded program as the supervisor's kernel.
#[derive(Debug)]
pub struct Replay {
    memory: File,
    mappings: String,
    executable: Vec<Range<u64>>,
    instructions: Vec<u64>,
    kinds: HashMap<u64, Kind>,
    pid: u32,
    state: RefCell<State>,
    /// Of the translation under way.
    asked: Rc<RefCell<Asked>>,
}

/// The translator, for a [`Replay`] that is to know what it predicted.
#[derive(Debug)]
pub struct Told {
    translator: Translator,
    asked: Rc<RefCell<Asked>>,
}

impl Pipeline for Told {
    fn run(
        &mut self,
        entry: u64,
        reach: Reach,
        source: &mut dyn CodeSource,
        predicted: &Predictions,
    ) -> Result<Fragment<Verified>, Refused> {
        *self.asked.borrow_mut() = Asked { targets: Rc::new(predicted.targets.clone()), reach };
        self.translator.run(entry, reach, source, predicted)
    }
}

impl Replay {
    /// Without any fragment.
    #[must_use]
    pub fn new(recording: Recording) -> Self {
        let Recording { memory, mappings, instructions, pid } = recording;
        let executable = mappings.lines().filter_map(executable_range).collect();
        let mut kinds = HashMap::new();
        for &address in &instructions {
            kinds.entry(address).or_insert_with(|| kind_of(&memory, address));
        }
        let state = RefCell::default();
        let asked = Asked { targets: Rc::default(), reach: Reach::Near };
        let asked = Rc::new(RefCell::new(asked));
        Self { memory, mappings, executable, instructions, kinds, pid, state, asked }
    }

    /// What translates for this kernel.
    #[must_use]
    pub fn pipeline(&self) -> Told {
        Told { translator: Translator::default(), asked: Rc::clone(&self.asked) }
    }

    /// How many different instructions were recorded.
    #[must_use]
    pub fn distinct(&self) -> usize {
        self.kinds.len()
    }

    /// The name of the mapped file that `address` is in, and the offset in it.
    #[must_use]
    pub fn place(&self, address: u64) -> String {
        let place = self.mappings.lines().find_map(|line| file_offset(line, address));
        place.unwrap_or_else(|| format!("{address:#x}"))
    }

    /// How many instructions the fragment for `entry` is made of, and how far it
    /// was to reach.
    #[must_use]
    pub fn size(&self, entry: u64) -> Option<(usize, Reach)> {
        let state = self.state.borrow();
        state.fragments.get(&entry).map(|known| (known.instructions.len(), known.reach))
    }

    /// Bytes of code of all fragments.
    #[must_use]
    pub fn code_bytes(&self) -> usize {
        self.state.borrow().fragments.values().map(|known| known.code_bytes).sum()
    }

    /// How many fragments there are.
    #[must_use]
    pub fn fragments(&self) -> usize {
        self.state.borrow().fragments.len()
    }

    /// Lets all instructions pass once.
    #[must_use]
    pub fn pass(&self) -> Pass {
        let state = &mut *self.state.borrow_mut();
        let mut pass = Pass::default();
        // The entry of the fragment that is run.
        let mut current: Option<u64> = None;
        let mut depth = 0_u32;
        for pair in self.instructions.windows(2) {
            let (address, next) = (pair[0], pair[1]);
            let kind = self.kinds[&address];
            if kind == Kind::Syscall {
                pass.calls += 1;
                pass.ridden += u64::from(current.is_some());
                depth = 0;
                current = self.gap(state, next);
                continue;
            }
            let Some(entry) = current else {
                pass.native += 1;
                continue;
            };
            pass.inside += 1;
            let fragment = state.fragments.get_mut(&entry).expect("it is never removed");
            if fragment.contains(kind, address, next, depth) {
                match kind {
                    Kind::Call | Kind::IndirectCall => depth += 1,
                    Kind::Return => depth = depth.saturating_sub(1),
                    Kind::Plain | Kind::IndirectJump | Kind::Syscall => {}
                }
                continue;
            }
            depth = 0;
            let indirect = !matches!(kind, Kind::Plain | Kind::Call);
            if !indirect && !fragment.direct_exits.contains(&next) {
                // The instruction there is not translated.
                *pass.ends.entry(next).or_default() += 1;
                current = None;
                continue;
            }
            let because = Because::of(kind, fragment.holds(next));
            let way = Way { fragment: entry, site: address, target: next, because };
            *pass.ways.entry(way).or_default() += 1;
            current = self.go_on(state, &mut pass, entry, (address, next), indirect);
        }
        pass
    }

    /// A gap begins at `address`: the fragment to enter, if there is one.
    fn gap(&self, state: &mut State, address: u64) -> Option<u64> {
        if state.fragments.contains_key(&address) {
            return Some(address);
        }
        let count = state.gaps.entry(address).or_default();
        *count += 1;
        let count = *count;
        if count >= HOT_COUNT && count.is_power_of_two() {
            self.report(state, ReportKind::HotGap, address, 0, count);
        }
        None
    }

    /// The fragment at `entry` is left by the branch `edge`: the next one, if there is one.
    fn go_on(
        &self,
        state: &mut State,
        pass: &mut Pass,
        entry: u64,
        (site, next): (u64, u64),
        indirect: bool,
    ) -> Option<u64> {
        let there = state.fragments.contains_key(&next);
        let fragment = state.fragments.get_mut(&entry).expect("it is run");
        let key = if indirect { site } else { next };
        if fragment.links.get(&key) == Some(&next) {
            pass.links += 1;
            return Some(next);
        }
        pass.lookups += 1;
        let misses = fragment.misses.entry(key).or_default();
        *misses += 1;
        let linked = there && *misses >= if indirect { LINK_AFTER } else { LINK_AFTER_DIRECT };
        if linked {
            fragment.links.insert(key, next);
            self.report(state, ReportKind::Linked, next, entry, 0);
        }
        if indirect {
            self.miss(state, next, site);
        } else if !there {
            self.miss(state, next, 0);
        }
        there.then_some(next)
    }

    fn miss(&self, state: &mut State, address: u64, from: u64) {
        let count = state.misses.entry((address, from)).or_default();
        *count += 1;
        let count = *count;
        if count.is_multiple_of(MISS_COUNT) && (count / MISS_COUNT).is_power_of_two() {
            self.report(state, ReportKind::Miss, address, from, count);
        }
    }

    fn report(&self, state: &mut State, kind: ReportKind, address: u64, from: u64, count: u32) {
        state.reports.push(Report {
            kind: kind as u32,
            pid: self.pid,
            btc: BTC.0,
            address,
            from,
            count: count.into(),
            gap_ns: 0,
        });
    }
}

/// What [`Replay::place`] says, if `line` of `/proc/PID/maps` is about `address`.
fn file_offset(line: &str, address: u64) -> Option<String> {
    let range = executable_range(line).filter(|range| range.contains(&address))?;
    let mut fields = line.split_whitespace().skip(2);
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let name = fields.nth(2)?.rsplit('/').next()?;
    Some(format!("{name}+{:#x}", address - range.start + offset))
}

/// Reads as many bytes as there are.
fn read(memory: &File, address: u64, buffer: &mut [u8]) -> usize {
    memory.read_at(buffer, address).unwrap_or(0)
}

fn kind_of(memory: &File, address: u64) -> Kind {
    let mut bytes = [0; INSTRUCTION_BYTES];
    let length = read(memory, address, &mut bytes);
    let mut decoder = Decoder::with_ip(64, &bytes[..length], address, DecoderOptions::NONE);
    let instruction = decoder.decode();
    match instruction.flow_control() {
        _ if instruction.code() == Code::Syscall => Kind::Syscall,
        FlowControl::Call => Kind::Call,
        FlowControl::IndirectCall => Kind::IndirectCall,
        FlowControl::IndirectBranch => Kind::IndirectJump,
        FlowControl::Return => Kind::Return,
        _ => Kind::Plain,
    }
}

impl Kernel for Replay {
    fn read_code(&self, _: Btc, address: u64, buffer: &mut [u8]) -> io::Result<CodeRead> {
        if !self.executable.iter().any(|range| range.contains(&address)) {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        Ok(CodeRead { copied: read(&self.memory, address, buffer), sequence: Sequence(1) })
    }

    fn install(
        &self,
        _: Btc,
        _: Sequence,
        fragment: &Fragment<Verified>,
    ) -> Result<(), InstallError> {
        let parts = fragment.parts();
        let exits = |kind| {
            let exits = parts.exits.iter().filter(move |exit| exit.kind == kind);
            exits.map(|exit| exit.user_ip).collect()
        };
        let installed = Installed {
            instructions: parts.map.iter().map(|(address, _)| *address).collect(),
            targets: Rc::clone(&self.asked.borrow().targets),
            reach: self.asked.borrow().reach,
            code_bytes: parts.code.len(),
            direct_exits: exits(ExitKind::Branch),
            calls: exits(ExitKind::Syscall),
            links: HashMap::new(),
            misses: HashMap::new(),
        };
        let state = &mut *self.state.borrow_mut();
        for other in state.fragments.values_mut() {
            other.links.retain(|_, to| *to != parts.entry);
        }
        state.fragments.insert(parts.entry, installed);
        Ok(())
    }

    fn retire(&self, _: Btc, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOENT))
    }

    fn stats(&self) -> io::Result<Stats> {
        Ok(Stats::default())
    }

    fn gaps(&self) -> io::Result<Vec<GapInfo>> {
        Ok(Vec::new())
    }

    fn judge(&self, _: &Verdict) -> io::Result<()> {
        Ok(())
    }

    fn read_reports(&self, reports: &mut Vec<Report>) -> io::Result<Reading> {
        let waiting = std::mem::take(&mut self.state.borrow_mut().reports);
        let reading = if waiting.is_empty() { Reading::Empty } else { Reading::Some };
        reports.extend(waiting);
        Ok(reading)
    }

    fn read_pointer(&self, _: u32, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        (read(&self.memory, address, &mut word) == word.len()).then(|| u64::from_le_bytes(word))
    }

    /// None: each replay begins with nothing known.
    fn mappings(&self, _: u32) -> io::Result<Mappings> {
        Ok(Mappings::default())
    }
}

//! Finds the user code that belongs into one fragment.

use std::collections::VecDeque;
use std::ops::Range;

use iced_x86::{OpKind, Register};

use crate::forms::Class;
use crate::fragment::{ExitKind, Unsupported};
use crate::steps::{AddressMap, Guest, Step, Steps};
use crate::translate::Predictions;

/// Most targets that one indirect branch is compared with.
pub(crate) const MAX_TARGETS: usize = 16;

/// What discovery knows of one step.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    /// It is part of the region.
    taken: bool,
    /// A block begins here.
    leader: bool,
    /// Number of the function that it was first reached in.
    function: u32,
}

/// The steps of one fragment, before they are arranged in blocks.
#[derive(Debug)]
pub(crate) struct Region {
    pub entry: u64,
    /// How many instructions it holds.
    pub instructions: usize,
    /// By the number of the step; the rest is unmarked.
    marks: Vec<Mark>,
    /// Targets worth comparing with, by the address of the indirect branch.
    predicted: AddressMap<Vec<u64>>,
    /// Numbers of the functions by their addresses.
    numbers: AddressMap<u32>,
    functions: Vec<Function>,
}

/// What is called in the region; the fragment begins in the first.
#[derive(Debug, Default)]
struct Function {
    /// How many direct calls lead to it.
    calls: u32,
    /// A return of it is in the region, so what follows its calls is reached.
    returns: bool,
    /// What follows calls of it, with the calling function, until then.
    sites: Vec<Place>,
}

/// Number of the function that the fragment begins in, and of those it
/// returns to.
const OWN_FUNCTION: u32 = 0;

/// An address, and the number of the function that it was reached in.
type Place = (u64, u32);

struct Discovery<'a, 'b> {
    steps: &'a mut Steps<'b>,
    predictions: &'a Predictions,
    region: Region,
    /// What is known to be needed; goes before the rest.
    hot: Vec<Place>,
    queue: VecDeque<Place>,
    /// Where the conditional branches lead that are not followed.
    sides: Vec<Place>,
    limit: usize,
    /// See [`crate::Options::first_look`].
    first_look: bool,
    /// Takes nothing but what is known to be run.
    executed_only: bool,
}

/// Collects the region at `entry`, at most `limit` instructions; for
/// `first_look` see [`crate::Options::first_look`]. Err is the reason why not
/// even the first instruction can be run.
pub(crate) fn discover(
    entry: u64,
    steps: &mut Steps,
    predictions: &Predictions,
    limit: usize,
    first_look: bool,
) -> Result<Region, Unsupported> {
    let region = Region {
        entry,
        instructions: 0,
        marks: vec![Mark::default(); steps.len()],
        predicted: AddressMap::default(),
        numbers: AddressMap::default(),
        functions: Vec::new(),
    };
    let queue = VecDeque::from([(entry, OWN_FUNCTION)]);
    let limit = limit.max(1);
    let executed_only = !first_look && predictions.executed.contains(&entry);
    let mut discovery = Discovery {
        steps,
        predictions,
        region,
        hot: Vec::new(),
        queue,
        sides: Vec::new(),
        limit,
        first_look,
        executed_only,
    };
    discovery.function(entry);
    while let Some(start) = discovery.next() {
        discovery.walk(start);
    }
    discovery.enter_at_sides();
    let Discovery { steps, region, .. } = discovery;
    match region.find(steps, entry).map(|number| steps.get(number)) {
        None => Err(Unsupported::Unreadable),
        Some(Step::Stop { kind: ExitKind::Unsupported, reason, .. }) => Err(*reason),
        Some(_) => Ok(region),
    }
}

impl Discovery<'_, '_> {
    fn next(&mut self) -> Option<Place> {
        self.hot.pop().or_else(|| self.queue.pop_front())
    }

    /// Whether the fragment is to be left at `address`.
    fn ends_at(&self, address: u64) -> bool {
        let known = self.predictions;
        let is_other = address != self.region.entry && known.entries.contains(&address);
        (self.first_look && is_other) || (self.executed_only && !known.executed.contains(&address))
    }

    /// What is in the region anyhow can be gone to, also by a branch that was
    /// not followed.
    fn enter_at_sides(&mut self) {
        for (address, function) in std::mem::take(&mut self.sides) {
            let known = self.steps.find(address);
            if known.and_then(|number| self.region.marks.get(number)).is_some_and(|mark| mark.taken)
            {
                self.walk((address, function));
            }
        }
    }

    /// Takes the steps from `start` to the next control-flow instruction,
    /// stop, or known code.
    fn walk(&mut self, (start, function): Place) {
        let mut at = start;
        let mut previous = None;
        loop {
            let known = self.steps.find(at);
            if let Some(number) = known
                && self.region.marks.get(number).is_some_and(|mark| mark.taken)
            {
                let mark = &mut self.region.marks[number];
                mark.leader = true;
                if mark.function != function {
                    // Shared code may return for both.
                    self.returns(function);
                }
                return;
            }
            if self.region.instructions >= self.limit || self.ends_at(at) {
                return;
            }
            let room = self.limit - self.region.instructions - 1;
            let Some(number) = known.or_else(|| self.steps.decode(at, room)) else {
                return;
            };
            if number >= self.region.marks.len() {
                self.region.marks.resize(number + 1, Mark::default());
            }
            // The steps of a block have consecutive numbers.
            let leader = previous.is_none_or(|previous| number != previous + 1);
            self.region.marks[number] = Mark { taken: true, leader, function };
            previous = Some(number);
            let Step::Allowed(guest) = self.steps.get(number) else {
                return;
            };
            self.region.instructions += 1;
            if guest.class.ends_block() {
                let guest = *guest;
                self.follow(&guest, function);
                return;
            }
            at = guest.next_ip();
        }
    }

    /// Queues where control may go: the straight path first, so that the
    /// limit cuts off the rare branches.
    fn follow(&mut self, guest: &Guest, function: u32) {
        let instruction = &guest.instruction;
        let to = instruction.near_branch_target();
        match guest.class {
            Class::Branch | Class::CounterBranch => {
                if self.first_look {
                    self.sides.push((to, function));
                } else {
                    self.later((to, function));
                }
                self.soon((guest.next_ip(), function));
            }
            Class::Jump => self.soon((to, function)),
            Class::Call => {
                let callee = self.call(to, (guest.next_ip(), function));
                self.region.functions[callee as usize].calls += 1;
                self.soon((to, callee));
            }
            Class::IndirectJump => {
                for (target, seen) in self.predict(guest).into_iter().rev() {
                    self.predicted((target, function), seen);
                }
            }
            Class::IndirectCall => {
                for (target, seen) in self.predict(guest).into_iter().rev() {
                    let callee = self.call(target, (guest.next_ip(), function));
                    self.predicted((target, callee), seen);
                }
            }
            Class::Return => {
                self.returns(function);
                if let Some(targets) = self.predictions.targets.get(&guest.ip()) {
                    let targets: Vec<u64> = targets.iter().copied().take(MAX_TARGETS).collect();
                    // Functions called in the region return to their calls;
                    // what was seen of others' calls would only fill it.
                    if function == OWN_FUNCTION {
                        self.hot.extend(targets.iter().map(|&target| (target, OWN_FUNCTION)));
                    }
                    self.region.predicted.insert(guest.ip(), targets);
                }
            }
            _ => {}
        }
    }

    /// The number of the function at `callee`.
    fn function(&mut self, callee: u64) -> u32 {
        let functions = &mut self.region.functions;
        *self.region.numbers.entry(callee).or_insert_with(|| {
            functions.push(Function::default());
            functions.len() as u32 - 1
        })
    }

    /// Takes a call of `callee` that returns to `site` into account.
    fn call(&mut self, callee: u64, site: Place) -> u32 {
        let number = self.function(callee);
        let function = &mut self.region.functions[number as usize];
        if function.returns {
            self.soon(site);
        } else {
            function.sites.push(site);
        }
        number
    }

    /// What follows the calls of `function` is reached.
    fn returns(&mut self, function: u32) {
        let function = &mut self.region.functions[function as usize];
        function.returns = true;
        for site in std::mem::take(&mut function.sites) {
            self.soon(site);
        }
    }

    fn predicted(&mut self, place: Place, seen: bool) {
        if seen { self.hot.push(place) } else { self.soon(place) }
    }

    fn soon(&mut self, place: Place) {
        if !self.is_hot(place) {
            self.queue.push_front(place);
        }
    }

    fn later(&mut self, place: Place) {
        if !self.is_hot(place) {
            self.queue.push_back(place);
        }
    }

    /// Queues a place that fragments were often left for.
    fn is_hot(&mut self, place: Place) -> bool {
        let is_hot = self.predictions.exit_targets.contains(&place.0);
        if is_hot {
            self.hot.push(place);
        }
        is_hot
    }

    /// Targets worth comparing with, and whether they were seen: else there is
    /// only what a constant slot (GOT) holds now.
    fn predict(&mut self, guest: &Guest) -> Vec<(u64, bool)> {
        let instruction = &guest.instruction;
        let seen = self.predictions.targets.get(&guest.ip());
        let mut targets: Vec<u64> = Vec::new();
        for &target in seen.into_iter().flatten() {
            if !targets.contains(&target) && targets.len() < MAX_TARGETS {
                targets.push(target);
            }
        }
        let seen = !targets.is_empty();
        let constant = instruction.op0_kind() == OpKind::Memory
            && instruction.segment_prefix() != Register::FS
            && (instruction.is_ip_rel_memory_operand()
                || (instruction.memory_base() == Register::None
                    && instruction.memory_index() == Register::None));
        if !seen && constant {
            targets.extend(self.steps.pointer_hint(instruction.memory_displacement64()));
        }
        let list = targets.iter().map(|&target| (target, seen)).collect();
        self.region.predicted.insert(guest.ip(), targets);
        list
    }
}

impl Region {
    /// Number of the step at `address` if it is part of the region.
    pub(crate) fn find(&self, steps: &Steps, address: u64) -> Option<usize> {
        let taken = |&number: &usize| self.marks.get(number).is_some_and(|mark| mark.taken);
        steps.find(address).filter(taken)
    }

    /// Whether step `number` is part of the region and belongs to the block
    /// of the one before it.
    pub(crate) fn continues(&self, number: usize) -> bool {
        self.marks.get(number).is_some_and(|mark| mark.taken && !mark.leader)
    }

    /// Targets worth comparing with at the indirect branch or return at `ip`.
    pub(crate) fn predicted(&self, ip: u64) -> &[u64] {
        self.predicted.get(&ip).map_or(&[], Vec::as_slice)
    }

    /// How many direct calls in the region lead to `callee`.
    pub(crate) fn calls_of(&self, callee: u64) -> u32 {
        self.numbers.get(&callee).map_or(0, |&number| self.functions[number as usize].calls)
    }

    /// The bytes read as instructions, sorted and disjoint.
    pub(crate) fn sources(&self, steps: &Steps) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (number, mark) in self.marks.iter().enumerate() {
            if !mark.taken {
                continue;
            }
            let bytes = steps.bytes(number);
            match runs.last_mut() {
                Some(last) if last.end == bytes.start => last.end = bytes.end,
                _ => runs.push(bytes),
            }
        }
        runs.sort_unstable_by_key(|run| run.start);
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(runs.len());
        for run in runs {
            match joined.last_mut() {
                Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
                _ => joined.push(run),
            }
        }
        joined
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CpuFeatures;
    use crate::source::SliceSource;

    /// For comparisons: an array of one range looks like a mistake.
    fn one(range: Range<u64>) -> Vec<Range<u64>> {
        std::iter::once(range).collect()
    }

    fn region_of(bytes: &[u8], limit: usize) -> (usize, Vec<Range<u64>>) {
        let mut source = SliceSource { address: 0x1000, bytes };
        let mut steps = Steps::new(&mut source, CpuFeatures::all());
        let region =
            discover(0x1000, &mut steps, &Predictions::default(), limit, false).expect("a region");
        (region.instructions, region.sources(&steps))
    }

    #[test]
    fn everything_reachable_is_taken() {
        // 1000 jmp 1004; 1002 ud2; 1004 je 1008; 1006 inc eax; 1008 syscall
        let code = [0xeb, 2, 0x0f, 0x0b, 0x74, 2, 0xff, 0xc0, 0x0f, 0x05];
        assert_eq!(region_of(&code, 100), (3, vec![0x1000..0x1002, 0x1004..0x100a]));
    }

    #[test]
    fn the_limit_cuts_between_instructions() {
        let code = [0xff, 0xc0, 0xff, 0xc9, 0xff, 0xc0, 0x0f, 0x05];
        assert_eq!(region_of(&code, 2), (2, one(0x1000..0x1004)));
    }

    /// What is taken of `code` at 0x1000.
    fn sources_of(
        code: &[u8],
        limit: usize,
        first_look: bool,
        predictions: &Predictions,
    ) -> Vec<Range<u64>> {
        let mut source = SliceSource { address: 0x1000, bytes: code };
        let mut steps = Steps::new(&mut source, CpuFeatures::all());
        let region = discover(0x1000, &mut steps, predictions, limit, first_look);
        region.expect("a region").sources(&steps)
    }

    #[test]
    fn where_fragments_were_often_left_for_comes_first() {
        // 1000 je 1004; 1002 inc eax; 1004 inc ecx; 1006 syscall
        let code = [0x74, 2, 0xff, 0xc0, 0xff, 0xc1, 0x0f, 0x05];
        let mut predictions = Predictions::default();
        assert_eq!(sources_of(&code, 2, false, &predictions), one(0x1000..0x1004));
        predictions.exit_targets.insert(0x1004);
        let expected = [0x1000..0x1002, 0x1004..0x1006];
        assert_eq!(sources_of(&code, 2, false, &predictions), expected);
    }

    #[test]
    fn what_is_known_to_be_run_is_all() {
        // 1000 je 1006; 1002 inc eax; 1004 inc ecx; 1006 dec eax; 1008 syscall
        let code = [0x74, 4, 0xff, 0xc0, 0xff, 0xc1, 0xff, 0xc8, 0x0f, 0x05];
        let mut predictions = Predictions::default();
        // Nothing is known of what is run after the entry.
        predictions.executed.extend([0x1002, 0x1006]);
        assert_eq!(sources_of(&code, 100, false, &predictions), one(0x1000..0x100a));
        predictions.executed.extend([0x1000, 0x1008]);
        let expected = [0x1000..0x1004, 0x1006..0x100a];
        assert_eq!(sources_of(&code, 100, false, &predictions), expected);
    }

    #[test]
    fn a_first_look_follows_no_conditional_branch() {
        // 1000 inc eax; 1002 je 1008; 1004 jne 1000; 1006 syscall; 1008 dec eax
        let code = [0xff, 0xc0, 0x74, 4, 0x75, 0xfa, 0x0f, 0x05, 0xff, 0xc8];
        let predictions = Predictions::default();
        assert_eq!(sources_of(&code, 100, true, &predictions), one(0x1000..0x1008));
        assert_eq!(sources_of(&code, 100, false, &predictions), one(0x1000..0x100a));
    }

    #[test]
    fn a_first_look_ends_where_another_fragment_begins() {
        // 1000 inc eax; 1002 inc ecx; 1004 syscall
        let code = [0xff, 0xc0, 0xff, 0xc1, 0x0f, 0x05];
        let mut predictions = Predictions::default();
        predictions.entries.extend([0x1000, 0x1002]);
        assert_eq!(sources_of(&code, 100, false, &predictions), one(0x1000..0x1006));
        assert_eq!(sources_of(&code, 100, true, &predictions), one(0x1000..0x1002));
    }

    #[test]
    fn returns_of_what_is_called_lead_to_the_calls_only() {
        // 1000 call 1008; 1005 inc eax; 1007 ret; 1008 ret; 1009 dec ecx; 100b syscall
        let code = [0xe8, 3, 0, 0, 0, 0xff, 0xc0, 0xc3, 0xc3, 0xff, 0xc9, 0x0f, 0x05];
        let mut predictions = Predictions::default();
        predictions.targets.insert(0x1008, vec![0x1009]);
        let mut source = SliceSource { address: 0x1000, bytes: &code };
        let mut steps = Steps::new(&mut source, CpuFeatures::all());
        let region = discover(0x1000, &mut steps, &predictions, 100, false).expect("a region");
        assert_eq!(region.sources(&steps), one(0x1000..0x1009));
        // Of the function that the fragment begins in they do.
        predictions.targets.insert(0x1007, vec![0x1009]);
        let region = discover(0x1000, &mut steps, &predictions, 100, false).expect("a region");
        assert_eq!(region.sources(&steps), one(0x1000..0x100d));
    }

    #[test]
    fn nothing_to_run_has_a_reason() {
        let reason = |bytes: &[u8]| {
            let mut source = SliceSource { address: 0x1000, bytes };
            let mut steps = Steps::new(&mut source, CpuFeatures::baseline());
            discover(0x1000, &mut steps, &Predictions::default(), 10, false)
                .map(|_| ())
                .unwrap_err()
        };
        assert_eq!(reason(&[]), Unsupported::Unreadable);
        assert_eq!(reason(&[0x0f, 0xa2]), Unsupported::Trap); // cpuid
        assert_eq!(reason(&[0x9c]), Unsupported::WholeFlags); // pushfq
        assert_eq!(reason(&[0x65, 0x8b, 0x00]), Unsupported::Segment); // mov eax,gs:[rax]
        // vzeroupper, andn: AVX and BMI1 are not baseline.
        assert_eq!(reason(&[0xc5, 0xf8, 0x77]), Unsupported::CpuFeature);
        assert_eq!(reason(&[0xc4, 0xe2, 0x78, 0xf2, 0xc1]), Unsupported::CpuFeature);
    }
}

//! The supervisor against a kernel made of a few maps. Translations are real
//! where a fragment is needed: nothing but the verifier can make one.

mod kernel;

use std::cell::RefCell;
use std::collections::BTreeMap;

use nix::errno::Errno;
use ub_report::symbols::Mappings;
use ub_translator::fragment::{Fragment, Parts, Verified};
use ub_translator::{CodeSource, Predictions};

use super::lost::BACKLOG;
use super::space::HOT_EDGE;
use super::*;
use crate::abi::{GapInfo, GapReason, GapState};
use crate::kernel::Sequence;
use kernel::FakeKernel;

const BTC: Btc = Btc(7);
/// Of another process of the program.
const NEXT: Btc = Btc(8);
/// Where the fake program's code is.
const CODE: u64 = 0x40_1000;
/// `mov eax,39; syscall`: a gap of one instruction.
const GAP: &[u8] = &[0xb8, 39, 0, 0, 0, 0x0f, 0x05];
/// `ud2`
const TRAP: &[u8] = &[0x0f, 0x0b];

/// A pipeline that does what a test says and remembers what it was given.
#[derive(Default)]
struct Scripted<'a> {
    real: Translator,
    panics: bool,
    predicted: RefCell<Vec<BTreeMap<u64, Vec<u64>>>>,
    /// Runs between reading the code and handing out the fragment.
    meanwhile: Option<&'a dyn Fn()>,
}

impl Pipeline for Scripted<'_> {
    fn run(
        &mut self,
        entry: u64,
        reach: Reach,
        source: &mut dyn CodeSource,
        predicted: &Predictions,
    ) -> Result<Fragment<Verified>, Refused> {
        self.predicted.borrow_mut().push(predicted.targets.clone());
        let result = self.real.run(entry, reach, source, predicted);
        if let Some(meanwhile) = self.meanwhile {
            meanwhile();
        }
        assert!(!self.panics, "scripted panic");
        result
    }
}

fn hot(address: u64) -> Report {
    Report { kind: ReportKind::HotGap as u32, btc: BTC.0, address, ..Default::default() }
}

fn miss(address: u64, from: u64) -> Report {
    Report { kind: ReportKind::Miss as u32, btc: BTC.0, address, from, ..Default::default() }
}

fn retired(address: u64, from: u64) -> Report {
    Report { kind: ReportKind::Retired as u32, btc: BTC.0, address, from, ..Default::default() }
}

/// Works until it is done, however many turns that takes.
fn work<K: Kernel, P: Pipeline>(supervisor: &mut Supervisor<K, P>) -> Reading {
    loop {
        let reading = supervisor.work().unwrap();
        if reading != Reading::Some {
            return reading;
        }
    }
}

fn failures<K: Kernel, P: Pipeline>(supervisor: &Supervisor<K, P>) -> Vec<(Failure, u64)> {
    supervisor.counters().failures.iter().map(|(failure, count)| (*failure, *count)).collect()
}

#[test]
fn a_hot_gap_becomes_a_verified_fragment() {
    let kernel = FakeKernel::with_code(&[(CODE, GAP)]);
    let mut supervisor = Supervisor::new(&kernel, Translator::default());
    supervisor.handle(&hot(CODE));
    let state = kernel.0.borrow();
    let [(btc, sequence, parts)] = &state.installs[..] else { panic!("{:?}", state.installs) };
    assert_eq!((*btc, *sequence, parts.entry), (BTC, Sequence(1), CODE));
    assert_eq!(parts.guest_instructions, 1);
    assert!(failures(&supervisor).is_empty());
    assert_eq!(supervisor.counters().installed, 1);
    assert_eq!(supervisor.counters().code_bytes, parts.code.len() as u64);
}

#[test]
fn what_one_process_showed_is_translated_at_once_for_the_next() {
    // je 4; syscall; 4: mov eax,39; syscall
    let kernel = FakeKernel::with_code(&[(CODE, &[&[0x74, 2, 0x0f, 0x05], GAP].concat())]);
    kernel.0.borrow_mut().mappings =
        Mappings::parse(1, "401000-402000 r-xp 00001000 fe:00 7 /bin/program\n");
    let instructions = || -> Vec<u32> {
        let state = kernel.0.borrow();
        state.installs.iter().map(|(_, _, parts)| parts.guest_instructions).collect()
    };
    let mut supervisor = Supervisor::new(&kernel, Translator::default());
    // One way at a time, as long as nothing is known.
    supervisor.handle(&hot(CODE));
    supervisor.handle(&miss(CODE + 4, 0));
    assert_eq!(instructions(), [1, 1]);
    supervisor.handle(&Report { btc: NEXT.0, ..hot(CODE) });
    assert_eq!(instructions(), [1, 1, 2]);
    // Also when the first has ended, and in an address space that had its number.
    for ended in [BTC, NEXT] {
        let kind = ReportKind::BtcGone as u32;
        supervisor.handle(&Report { kind, btc: ended.0, ..Default::default() });
    }
    supervisor.handle(&hot(CODE));
    assert_eq!(instructions(), [1, 1, 2, 2]);
}

/// Nobody may have said yet that its process has ended.
#[test]
fn what_is_found_to_be_gone_leaves_what_it_showed() {
    let kernel = FakeKernel::with_code(&[(CODE, &[&[0x74, 2, 0x0f, 0x05], GAP].concat())]);
    kernel.0.borrow_mut().mappings =
        Mappings::parse(1, "401000-402000 r-xp 00001000 fe:00 7 /bin/program\n");
    let mut supervisor = Supervisor::new(&kernel, Translator::default());
    supervisor.handle(&hot(CODE));
    supervisor.handle(&miss(CODE + 4, 0));
    kernel.0.borrow_mut().read_errors.push_back(Errno::ESRCH);
    supervisor.handle(&miss(CODE + 0x1_0000, 0));
    assert!(failures(&supervisor).contains(&(Failure::Gone, 1)), "{:?}", failures(&supervisor));
    supervisor.handle(&Report { btc: NEXT.0, ..hot(CODE) });
    let instructions =
        kernel.0.borrow().installs.last().map(|(_, _, parts)| parts.guest_instructions);
    assert_eq!(instructions, Some(2));
}

/// Nothing is told of code that is not watched: it may be another program's by now.
#[test]
fn code_that_could_not_be_read_is_looked_at_again() {
    for (errno, installs) in [(Errno::EACCES, 1), (Errno::EFAULT, 0)] {
        let kernel = FakeKernel::with_code(&[(CODE, GAP)]);
        let mut supervisor = Supervisor::new(&kernel, Translator::default());
        // The translator reads on behind what it could not read.
        kernel.0.borrow_mut().read_errors.extend([errno; 2]);
        supervisor.handle(&hot(CODE));
        assert_eq!(failures(&supervisor), [(Failure::Unsupported, 1)]);
        assert!(kernel.0.borrow().read_errors.is_empty() && kernel.0.borrow().installs.is_empty());
        assert_eq!(kernel.0.borrow().verdicts[0].reason, crate::abi::GapReason::Refused as u32);
        supervisor.handle(&hot(CODE));
        assert_eq!(kernel.0.borrow().installs.len(), installs, "{errno}");
    }
}

#[test]
fn a_stale_install_is_repeated_with_fresh_code() {
    let kernel = FakeKernel::with_code(&[(CODE, GAP)]);
    kernel.0.borrow_mut().install_errors.push_back(InstallError::Stale);
    // The code changes while it is being translated, once.
    let change = || {
        let mut state = kernel.0.borrow_mut();
        if state.sequence == 1 {
            state.sequence = 2;
            state.code.insert(CODE, [&[0xb8, 1, 0, 0, 0][..], GAP].concat());
        }
    };
    let pipeline = Scripted { meanwhile: Some(&change), ..Default::default() };
    let mut supervisor = Supervisor::new(&kernel, pipeline);
    supervisor.handle(&hot(CODE));
    let state = kernel.0.borrow();
    let sequences: Vec<_> = state.installs.iter().map(|(_, sequence, _)| sequence.0).collect();
    assert_eq!(sequences, [1, 2]);
    assert_eq!(state.installs[0].2.guest_instructions, 1);
    assert_eq!(state.installs[1].2.guest_instructions, 2);
    assert_eq!(supervisor.counters().stale_retries, 1);
    assert!(failures(&supervisor).is_empty());
}

#[test]
fn code_that_keeps_changing_is_given_up_for_now() {
    let kernel = FakeKernel::with_code(&[(CODE, GAP)]);
    kernel.0.borrow_mut().install_errors.extend(vec![InstallError::Stale; 100]);
    let mut supervisor = Supervisor::new(&kernel, Translator::default());
    supervisor.handle(&hot(CODE));
    assert_eq!(kernel.0.borrow().installs.len(), STALE_ATTEMPTS as usize);
    assert_eq!(failures(&supervisor), [(Failure::Stale, 1)]);
    // It is not held against the address.
    kernel.0.borrow_mut().install_errors.clear();
    supervisor.handle(&hot(CODE));
    assert_eq!(supervisor.counters().installed, 1);
}

#[test]
fn mappings_under_change_are_read_again() {
    let kernel = FakeKernel::with_code(&[(CODE, GAP)]);
    kernel.0.borrow_mut().read_errors.push_back(Errno::EAGAIN);
    let mut supervisor = Supervisor::new(&kernel, Translator::default());
    supervisor.handle(&hot(CODE));
    assert_eq!(supervisor.counters().installed, 1, "{:?}", failures(&supervisor));
}

#[test]
fn the_smallest_sequence_of_the_pages_read_counts() {
    // The gap straddles two pages, which are read at different moments.
    let split = 0x40_2000 - 3;
    let kernel = FakeKernel::with_code(&[(split, GAP)]);
    let mut cache = code::CodeCache::default();
    let mut source = Source::new(&kernel, BTC, 0, &mut cache);
    assert_eq!(source.read_code(split, &mut [0; 3]), 3);
    assert_eq!(source.sequence(), Some(Sequence(1)));
    kernel.0.borrow_mut().sequence = 5;
    let mut whole = [0; 7];
    assert_eq!(source.read_code(split, &mut whole), 7);
    assert_eq!(whole, GAP);
    assert_eq!(source.sequence(), Some(Sequence(1)));
    assert_eq!(kernel.0.borrow().reads, 2);
    // A translation that only looks at the newer page is not held back.
    let mut source = Source::new(&kernel, BTC, 0, &mut cache);
    assert_eq!(source.read_code(0x40_2000, &mut [0; 2]), 2);
    assert_eq!(source.sequence(), Some(Sequence(5)));
}

#[test]
fn cached_code_is_not_trusted_beyond_a_batch() {
    let kernel = FakeKernel::with_code(&[(CODE, GAP), (CODE + 0x20, GAP), (CODE + 0x40, GAP)]);
    kernel.0.borrow_mut().reports =
        [vec![hot(CODE), hot(CODE + 0x20)], vec![hot(CODE + 0x40)]].into();
    let mut supervisor = Supervisor::new(&kernel, Translator::default());
    assert_eq!(work(&mut supervisor), Reading::Empty);
    assert_eq!(supervisor.counters().installed, 3);
    // One page, read once a batch.
    assert_eq!(kernel.0.borrow().reads, 2);
    kernel.0.borrow_mut().ended = true;
    assert_eq!(work(&mut supervisor), Reading::Ended);
}

#[test]
fn a_panic_is_contained_and_its_address_avoided() {
    let kernel = FakeKernel::with_code(&[(CODE, GAP), (CODE + 0x20, GAP)]);
    let pipeline = Scripted { panics: true, ..Default::default() };
    let mut supervisor = Supervisor::new(&kernel, pipeline);
    supervisor.handle(&hot(CODE));
    supervisor.handle(&hot(CODE));
    assert_eq!(failures(&supervisor), [(Failure::Panic, 1)]);
    assert_eq!(supervisor.counters().repeated_reports, 1);
    supervisor.pipeline.panics = false;
    supervisor.handle(&hot(CODE + 0x20));
    assert_eq!(supervisor.counters().installed, 1);
}

#[test]
fn what_cannot_be_translated_is_tried_once_until_it_changes() {
    let kernel = FakeKernel::with_code(&[(CODE, TRAP)]);
    let mut supervisor = Supervisor::new(&kernel, Translator::default());
    for _ in 0..5 {
        supervisor.handle(&hot(CODE));
    }
    assert_eq!(supervisor.counters().translations, 1);
    assert_eq!(supervisor.counters().repeated_reports, 4);
    assert!(kernel.0.borrow().installs.is_empty());

    kernel.0.borrow_mut().code.insert(CODE, GAP.to_vec());
    supervisor.handle(&retired(CODE, CODE + 0x1000));
    supervisor.handle(&hot(CODE));
    assert_eq!(supervisor.counters().installed, 1);
}

#[test]
fn unmapped_addresses_are_harmless() {
    let kernel = FakeKernel::with_code(&[]);
    let mut supervisor = Supervisor::new(&kernel, Translator::default());
    for address in [0, CODE, u64::MAX, 0xffff_8880_0000_0000, 1 << 47] {
        supervisor.handle(&hot(address));
        supervisor.handle(&miss(address, u64::MAX));
    }
    assert!(kernel.0.borrow().installs.is_empty());
    assert_eq!(failures(&supervisor), [(Failure::Unsupported, 5)]);
}

#[test]
fn learned_targets_reach_the_translator() {
    let kernel = FakeKernel::with_code(&[(CODE, GAP), (CODE + 0x20, GAP)]);
    let mut supervisor = Supervisor::new(&kernel, Scripted::default());
    supervisor.handle(&miss(CODE, 0x1234));
    supervisor.handle(&miss(CODE + 0x20, 0x1234));
    supervisor.handle(&miss(CODE + 0x40, 0));
    let seen = supervisor.pipeline.predicted.borrow();
    assert_eq!(seen[0], BTreeMap::from([(0x1234, vec![CODE])]));
    assert_eq!(seen[1], BTreeMap::from([(0x1234, vec![CODE + 0x20, CODE])]));
    assert_eq!(seen[2], seen[1]);
}

#[test]
fn a_hot_indirect_edge_becomes_part_of_the_fragment_it_leaves() {
    // `mov eax,1; jmp rax`, whose jump goes to the gap.
    let caller: &[u8] = &[0xb8, 1, 0, 0, 0, 0xff, 0xe0];
    let (site, target) = (CODE + 5, CODE + 0x40);
    let kernel = FakeKernel::with_code(&[(CODE, caller), (target, GAP)]);
    let mut supervisor = Supervisor::new(&kernel, Translator::default());
    let often = Report { count: HOT_EDGE, ..miss(target, site) };
    // Several reports about the same edge cause one translation, after all
    // that concerns code without a fragment and once nothing more is learned.
    kernel.0.borrow_mut().reports = [vec![hot(CODE)], vec![often; 5], vec![often]].into();
    while let Some(next) = {
        assert_eq!(work(&mut supervisor), Reading::Empty);
        supervisor.next_work()
    } {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let state = kernel.0.borrow();
    let entries: Vec<_> = state.installs.iter().map(|(_, _, parts)| parts.entry).collect();
    assert_eq!(entries, [CODE, target, CODE]);
    let syscalls = |parts: &Parts| parts.exits.iter().any(|e| e.user_ip == target + 5);
    assert!(!syscalls(&state.installs[0].2) && syscalls(&state.installs[2].2));
}

#[test]
fn a_rare_indirect_edge_costs_one_translation() {
    let caller: &[u8] = &[0xb8, 1, 0, 0, 0, 0xff, 0xe0];
    let (site, target) = (CODE + 5, CODE + 0x40);
    let kernel = FakeKernel::with_code(&[(CODE, caller), (target, GAP)]);
    let mut supervisor = Supervisor::new(&kernel, Translator::default());
    let rare = Report { count: HOT_EDGE - 1, ..miss(target, site) };
    kernel.0.borrow_mut().reports = [vec![miss(CODE, 0)], vec![rare; 5]].into();
    assert_eq!(work(&mut supervisor), Reading::Empty);
    assert_eq!(supervisor.next_work(), None);
    assert_eq!(kernel.0.borrow().installs.len(), 2);
}

#[test]
fn without_room_it_backs_off_and_recovers() {
    let code: Vec<_> = (0..64).map(|n| (CODE + 16 * n, GAP)).collect();
    let kernel = FakeKernel::with_code(&code);
    kernel.0.borrow_mut().install_errors.extend(vec![InstallError::Full; 2]);
    let mut supervisor = Supervisor::new(&kernel, Translator::default());
    let mut addresses = code.iter().map(|(address, _)| *address);
    let mut report = |supervisor: &mut Supervisor<&FakeKernel, Translator>, count| {
        addresses.by_ref().take(count).for_each(|address| supervisor.handle(&hot(address)));
    };
    report(&mut supervisor, 9);
    assert_eq!(failures(&supervisor), [(Failure::NoRoom, 1)]);
    assert_eq!(supervisor.counters().passed_over, 8);
    // Refused again: the pause doubles.
    report(&mut supervisor, 17);
    assert_eq!(failures(&supervisor), [(Failure::NoRoom, 2)]);
    assert_eq!(supervisor.counters().passed_over, 24);
    // Something was retired: no reason to wait.
    supervisor.handle(&retired(0x1000, 0x2000));
    report(&mut supervisor, 2);
    assert_eq!(supervisor.counters().installed, 2);
    assert_eq!(supervisor.counters().passed_over, 24);
}

#[test]
fn a_gone_address_space_leaves_nothing_behind() {
    let kernel = FakeKernel::with_code(&[(CODE, GAP)]);
    let mut supervisor = Supervisor::new(&kernel, Translator::default());
    supervisor.handle(&hot(CODE));
    assert_eq!(supervisor.spaces.len(), 1);
    let gone = Report { kind: ReportKind::BtcGone as u32, btc: BTC.0, ..Default::default() };
    supervisor.handle(&gone);
    assert!(supervisor.spaces.is_empty());

    kernel.0.borrow_mut().read_errors.push_back(Errno::ESRCH);
    supervisor.handle(&hot(CODE));
    assert!(supervisor.spaces.is_empty());
    assert_eq!(failures(&supervisor), [(Failure::Gone, 1)]);
}

#[test]
fn remembered_address_spaces_are_bounded() {
    let kernel = FakeKernel::with_code(&[]);
    let mut supervisor = Supervisor::new(&kernel, Translator::default());
    for btc in 0..2 * SPACES as u64 {
        supervisor.space(Btc(btc));
        supervisor.counters.reports += 1;
    }
    assert_eq!(supervisor.spaces.len(), SPACES);
    assert!(supervisor.spaces.contains_key(&Btc(2 * SPACES as u64 - 1)));
    assert!(!supervisor.spaces.contains_key(&Btc(0)));
}

#[test]
fn what_lost_reports_could_have_voided_is_forgotten() {
    let useless = CODE + 0x20;
    let kernel = FakeKernel::with_code(&[(CODE, GAP), (useless, TRAP)]);
    let mut supervisor = Supervisor::new(&kernel, Translator::default());
    let mut after = |waiting: u64, dropped| {
        let noise = std::iter::repeat_n(retired(1, 2), waiting as usize - 2);
        let reports = [hot(CODE), hot(useless)].into_iter().chain(noise).collect();
        {
            let mut state = kernel.0.borrow_mut();
            state.reports.push_back(reports);
            state.reports_dropped = dropped;
        }
        assert_eq!(work(&mut supervisor), Reading::Empty);
        let space = &supervisor.spaces[&BTC];
        (space.has(CODE), space.is_useless(useless))
    };
    assert_eq!(after(BACKLOG, 0), (true, true));
    // It cannot have been while these were waiting: nobody asks.
    assert_eq!(after(BACKLOG - 1, 1), (true, true));
    assert_eq!(after(BACKLOG, 1), (false, false));
    // Reported again, translated again; and only what was lost since counts.
    assert_eq!(after(BACKLOG, 1), (true, true));
    assert_eq!(after(BACKLOG, 2), (false, false));
    assert_eq!(supervisor.counters().translations, 4);
}

#[test]
fn hostile_reports_are_counted() {
    let kernel = FakeKernel::with_code(&[]);
    let mut supervisor = Supervisor::new(&kernel, Translator::default());
    supervisor.handle(&Report { kind: 99, ..Default::default() });
    supervisor.handle(&retired(5, 1));
    assert_eq!(supervisor.counters().unknown_reports, 1);
    assert_eq!(supervisor.counters().reports, 2);
}

#[test]
fn a_module_that_refuses_is_not_asked_twice() {
    let kernel = FakeKernel::with_code(&[(CODE, GAP)]);
    kernel.0.borrow_mut().install_errors.push_back(InstallError::Refused(Errno::EINVAL));
    let mut supervisor = Supervisor::new(&kernel, Translator::default());
    supervisor.handle(&hot(CODE));
    supervisor.handle(&hot(CODE));
    assert_eq!(kernel.0.borrow().installs.len(), 1);
    assert_eq!(failures(&supervisor), [(Failure::ModuleRefused, 1)]);
}

#[test]
fn what_warms_up_the_translator_is_translated() {
    let mut supervisor = Supervisor::new(FakeKernel::default(), Translator::default());
    // In this build a sample that is refused panics, which is contained.
    supervisor.warm_up();
    supervisor.pipeline.warm_up();
    assert_eq!(supervisor.counters().translations, 0, "it is nobody's code");
}

#[test]
fn where_rides_cannot_pay_everything_goes_native() {
    let translated = GapInfo {
        btc: BTC.0,
        address: CODE,
        state: GapState::Translated as u32,
        ..Default::default()
    };
    let kernel = FakeKernel::with_code(&[(CODE, GAP), (CODE + 0x1000, GAP)]);
    let config = SessionConfig { native_interval: 128, ..SessionConfig::default() };
    let mut supervisor = Supervisor::new(&kernel, Translator::default()).judge(&config, 1);
    supervisor.handle(&hot(CODE));
    assert_eq!(kernel.0.borrow().installs.len(), 1);
    supervisor.stay_native();
    kernel.0.borrow_mut().gaps.push(translated);
    supervisor.work().unwrap();
    supervisor.handle(&hot(CODE + 0x1000));
    supervisor.handle(&miss(CODE + 0x1000, 0));
    let state = kernel.0.borrow();
    assert_eq!(state.installs.len(), 1, "nothing new is installed");
    let told: Vec<_> =
        state.verdicts.iter().map(|v| (v.address, v.reason, v.hold_ns > 0)).collect();
    let machine = GapReason::Machine as u32;
    assert_eq!(told, [(CODE, machine, true), (CODE + 0x1000, machine, true)]);
}

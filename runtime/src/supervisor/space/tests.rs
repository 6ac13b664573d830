use ub_translator::fragment::Unsupported;

use super::*;

/// A fragment for `entry` with an indirect branch at `site`.
fn parts(entry: u64, sources: &[(u64, u64)], site: u64) -> Parts {
    Parts {
        entry,
        code: Vec::new(),
        exits: vec![Exit { user_ip: site, kind: ExitKind::Indirect, reason: Unsupported::None }],
        fixups: Vec::new(),
        relocations: Vec::new(),
        sources: sources.iter().map(|(start, end)| *start..*end).collect(),
        guest_instructions: 1,
        work: 1,
        map: Vec::new(),
    }
}

#[test]
fn fragments_that_lack_a_prediction_are_found_until_they_have_it() {
    let mut space = AddressSpace::default();
    for entry in 0..6 {
        space.installed(&parts(entry, &[(entry, entry + 1)], 0x10), Reach::Near);
    }
    space.installed(&parts(9, &[(9, 10)], 0x20), Reach::Near);
    space.learn(0x10, 0x5000);
    let mut first = space.unpredicting(0x10, 0x5000, HOT_EDGE);
    first.sort_unstable();
    assert_eq!(first, [0, 1, 2, 3, 4, 5].map(|entry| (entry, 0)));
    for entry in 1..6 {
        space.installed(&parts(entry, &[(entry, entry + 1)], 0x10), Reach::Near);
    }
    assert_eq!(space.unpredicting(0x10, 0x5000, HOT_EDGE), [(0, 0)]);
}

#[test]
fn an_unpredictable_branch_is_given_up() {
    let mut space = AddressSpace::default();
    space.installed(&parts(1, &[(1, 2)], 0x10), Reach::Near);
    let mut rebuilds = 0;
    for target in 0..100 {
        space.learn(0x10, target);
        for _ in space.unpredicting(0x10, target, u64::MAX) {
            space.installed(&parts(1, &[(1, 2)], 0x10), Reach::Near);
            rebuilds += 1;
        }
    }
    assert_eq!(rebuilds, REBUILDS);
}

#[test]
fn each_time_it_takes_more_to_translate_again() {
    let mut space = AddressSpace::default();
    space.installed(&parts(1, &[(1, 2)], 0x10), Reach::Near);
    space.learn(0x10, 5);
    assert!(space.unpredicting(0x10, 5, HOT_EDGE - 1).is_empty());
    assert_eq!(space.unpredicting(0x10, 5, HOT_EDGE), [(1, 0)]);
    space.installed(&parts(1, &[(1, 2)], 0x10), Reach::Near);
    space.learn(0x10, 6);
    assert!(space.unpredicting(0x10, 6, 4 * HOT_EDGE - 1).is_empty());
    assert_eq!(space.unpredicting(0x10, 6, 4 * HOT_EDGE), [(1, 1)]);
}

#[test]
fn a_fragment_with_much_code_leads_up_to_the_next_call() {
    let mut space = AddressSpace::default();
    let mut look = parts(1, &[(1, 9)], 0x10);
    look.map = vec![(1, 0), (4, 8)];
    look.exits.push(Exit { user_ip: 7, kind: ExitKind::Syscall, reason: Unsupported::None });
    look.exits.push(Exit { user_ip: 0x20, kind: ExitKind::Branch, reason: Unsupported::None });
    space.installed(&look, Reach::Near);
    assert_eq!(space.predicted.executed, HashSet::from([1, 4, 7]));
}

#[test]
fn a_guard_that_does_not_hold_is_learned_once() {
    let mut space = AddressSpace::default();
    let mut guarded = parts(1, &[(1, 9)], 0x10);
    guarded.exits[0].kind = ExitKind::Guard;
    space.installed(&guarded, Reach::Near);
    space.installed(&parts(2, &[(2, 9)], 0x10), Reach::Near);
    assert!(space.learn_guard(0x11).is_empty());
    assert_eq!(space.learn_guard(0x10), [(1, 0)]);
    assert!(space.learn_guard(0x10).is_empty());
    assert!(space.for_translation().1.wide_indexes.contains(&0x10));
    space.forget(0x10..0x12);
    assert!(space.predicted.wide_indexes.is_empty());
}

/// A fragment that is left by direct branches to `exits`.
fn cut(entry: u64, exits: &[u64]) -> Parts {
    let exit = |&user_ip| Exit { user_ip, kind: ExitKind::Branch, reason: Unsupported::None };
    Parts { exits: exits.iter().map(exit).collect(), ..parts(entry, &[(entry, entry + 1)], 0) }
}

/// A first look at the instruction at `entry`.
fn look(entry: u64, exits: &[u64]) -> Parts {
    Parts { map: vec![(entry, 0)], ..cut(entry, exits) }
}

#[test]
fn gaps_and_what_they_go_on_to_are_worth_more_code() {
    let mut space = AddressSpace::default();
    // Not where a gap begins.
    assert!(!space.installed(&look(0x10, &[0x20, 0x30]), Reach::Near));
    assert_eq!((space.reach(0x10), space.is_worth_more(0x10)), (Reach::Near, false));
    space.learn_gap(0x10);
    assert!(space.installed(&look(0x10, &[0x20, 0x30]), Reach::Near));
    assert_eq!((space.reach(0x10), space.is_worth_more(0x10)), (Reach::Far, true));
    // Gone to from one with little code: that may become part of another.
    space.installed(&look(0x20, &[0x40]), Reach::Near);
    assert!(!space.learn_link(0x10, 0x20).more);
    assert!(!space.installed(&cut(0x10, &[0x20, 0x30]), Reach::Far));
    assert!(space.learn_link(0x10, 0x20).more);
    assert_eq!((space.reach(0x20), space.reach(0x30)), (Reach::Far, Reach::Near));
    // All there is.
    space.installed(&cut(0x50, &[]), Reach::Near);
    assert!(!space.learn_link(0x10, 0x50).more);
}

#[test]
fn what_became_part_of_another_fragment_is_worth_no_more() {
    let mut space = AddressSpace::default();
    space.learn_gap(0x10);
    space.installed(&look(0x20, &[0x40]), Reach::Near);
    space.installed(&cut(0x10, &[0x20]), Reach::Far);
    assert!(space.learn_link(0x10, 0x20).more);
    assert!(space.is_worth_more(0x20));
    space.installed(&cut(0x10, &[0x40]), Reach::Far);
    assert!(!space.is_worth_more(0x20));
}

#[test]
fn an_indirect_branch_that_is_linked_is_predicted() {
    let mut space = AddressSpace::default();
    space.learn(0x18, 0x40);
    space.installed(&parts(0x10, &[(0x10, 0x20)], 0x18), Reach::Far);
    // Predicted, or not known to come from an indirect branch of this fragment.
    assert_eq!(space.learn_link(0x10, 0x40).rebuild, None);
    space.learn(0x28, 0x50);
    assert_eq!(space.learn_link(0x10, 0x50).rebuild, None);
    space.learn(0x18, 0x50);
    assert_eq!(space.learn_link(0x10, 0x50).rebuild, Some(0));
    space.installed(&parts(0x10, &[(0x10, 0x20)], 0x18), Reach::Far);
    assert_eq!(space.learn_link(0x10, 0x50).rebuild, None);
    for target in 0x60.. {
        space.learn(0x18, target);
        let Some(before) = space.learn_link(0x10, target).rebuild else { break };
        assert!(before < REBUILDS);
        space.installed(&parts(0x10, &[(0x10, 0x20)], 0x18), Reach::Far);
    }
    // One with little code shows what is run.
    space.installed(&parts(0x20, &[(0x20, 0x30)], 0x28), Reach::Near);
    space.learn(0x28, 0x60);
    assert_eq!(space.learn_link(0x20, 0x60), Linked::default());
}

#[test]
fn a_fragment_that_holds_all_there_is_stays() {
    let mut space = AddressSpace::default();
    space.learn_gap(1);
    assert!(!space.installed(&cut(1, &[]), Reach::Near));
}

#[test]
fn fragments_with_much_code_are_found_by_where_they_are_left() {
    let mut space = AddressSpace::default();
    space.installed(&cut(0x10, &[0x30]), Reach::Near);
    assert!(space.leading_to(0x30).is_empty());
    // Each time more such ways must be found.
    for rebuilds in 1..REBUILDS {
        space.installed(&cut(0x10, &[0x30]), Reach::Far);
        for _ in 1..1 << rebuilds {
            assert!(space.leading_to(0x30).is_empty());
        }
        assert_eq!(space.leading_to(0x30), [(0x10, rebuilds)]);
        assert!(space.leading_to(0x31).is_empty());
    }
    space.installed(&cut(0x10, &[0x30]), Reach::Far);
    for _ in 0..=1 << REBUILDS {
        assert!(space.leading_to(0x30).is_empty());
    }
}

#[test]
fn others_join_only_what_is_there() {
    let mut space = AddressSpace::default();
    for entry in 1..=4 {
        space.installed(&parts(entry, &[(entry, entry + 1)], 0), Reach::Near);
    }
    space.evicted(1);
    space.retired(2);
    space.forget(3..4);
    assert_eq!(space.for_translation().1.entries, BTreeSet::from([4]));
}

#[test]
fn what_was_evicted_may_come_back() {
    let mut space = AddressSpace::default();
    space.installed(&parts(1, &[(1, 2)], 0), Reach::Near);
    space.evicted(1);
    assert!(!space.has(1));
    assert_eq!(space.decide(1), Decision::Translate);
}

#[test]
fn newest_targets_win() {
    let mut space = AddressSpace::default();
    let most = TARGETS_PER_SITE as u64;
    for target in (0..=most).chain([3]) {
        space.learn(0x10, target);
    }
    let targets = &space.predicted.targets[&0x10];
    assert_eq!(targets[..3], [3, most, most - 1]);
    assert_eq!((targets.len(), targets.contains(&0)), (TARGETS_PER_SITE, false));
}

#[test]
fn sites_are_bounded() {
    let mut space = AddressSpace::default();
    for site in 0..2 * SITES as u64 {
        space.learn(site, 1);
    }
    assert_eq!(space.predicted.targets.len(), SITES);
}

#[test]
fn a_change_voids_what_overlaps_and_nothing_else() {
    let mut space = AddressSpace::default();
    space.installed(&parts(0x1000, &[(0x1000, 0x1010), (0x5000, 0x5008)], 0), Reach::Near);
    space.installed(&parts(0x2000, &[(0x2000, 0x2010)], 0), Reach::Near);
    space.mark_useless(0x5100);
    space.mark_useless(0x6000);
    space.learn(0x5004, 0x2000);
    space.learn(0x2004, 0x5000);
    space.learn(0x2004, 0x2000);
    space.forget(0x5000..0x6000);
    assert_eq!(space.decide(0x1000), Decision::Translate);
    assert_eq!(space.decide(0x2000), Decision::AlreadyInstalled);
    assert_eq!(space.decide(0x5100), Decision::Translate);
    assert_eq!(space.decide(0x6000), Decision::KnownUseless);
    assert_eq!(space.predicted.targets, BTreeMap::from([(0x2004, vec![0x2000])]));
}

#[test]
fn a_fragment_is_found_by_its_entry_or_by_code_inside() {
    let mut space = AddressSpace::default();
    let mut large = parts(0x1000, &[(0x1000, 0x1100)], 0);
    large.code = vec![0; 9];
    space.installed(&large, Reach::Near);
    space.installed(&parts(0x1010, &[(0x1010, 0x1020)], 0), Reach::Near);
    let entry = |address| space.fragment(address).map(|parts| parts.entry);
    assert_eq!(entry(0x1000), Some(0x1000));
    assert_eq!(entry(0x1010), Some(0x1010));
    assert_eq!(entry(0x1018), Some(0x1010));
    assert_eq!(entry(0x1020), Some(0x1000));
    assert_eq!(entry(0x1100), None);
}

#[test]
fn an_entry_reported_again_and_again_is_translated_again() {
    let mut space = AddressSpace::default();
    space.installed(&parts(1, &[(1, 2)], 0), Reach::Near);
    for _ in 0..2 * REPEATS {
        // Reports from before.
        assert_eq!(space.decide(1), Decision::AlreadyInstalled);
    }
    space.caught_up();
    for _ in 0..REPEATS {
        assert_eq!(space.decide(1), Decision::AlreadyInstalled);
    }
    assert_eq!(space.decide(1), Decision::Translate);
}

/// What fragments are left for is not in them: a new way, that joins known ones soon.
#[test]
fn only_gaps_of_a_known_program_are_made_whole_at_once() {
    let mut space = AddressSpace::default();
    let reaches = |space: &AddressSpace| [1, 2, 3].map(|entry| space.first_reach(entry));
    space.learn_gap(1);
    space.learn_gap(3);
    assert_eq!(reaches(&space), [Reach::Near; 3]);
    space.recall(Predictions { executed: [1, 2].into(), ..Predictions::default() });
    assert_eq!(reaches(&space), [Reach::Far, Reach::Near, Reach::Near]);
}

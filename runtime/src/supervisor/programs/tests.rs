use super::*;
use crate::runtime_folder::RuntimeFolder;

/// A program of two files, mapped from `program` and `library` on.
fn mapped(program: u64, library: u64) -> Mappings {
    mapped_as("/bin/program", program, library)
}

fn mapped_as(name: &str, program: u64, library: u64) -> Mappings {
    let maps = format!(
        "{program:x}-{:x} r-xp 00001000 fe:00 7 {name}\n\
         {library:x}-{:x} r-xp 00002000 fe:00 8 /lib/library.so\n\
         {:x}-{:x} r-xp 00000000 00:00 0      [vdso]\n",
        program + 0x2000,
        library + 0x1000,
        library + 0x1_0000,
        library + 0x1_1000,
    );
    Mappings::parse(1, &maps)
}

fn seen(executed: &[u64], targets: &[(u64, &[u64])], wide_indexes: &[u64]) -> Predictions {
    Predictions {
        executed: executed.iter().copied().collect(),
        targets: targets.iter().map(|(site, targets)| (*site, targets.to_vec())).collect(),
        wide_indexes: wide_indexes.iter().copied().collect(),
        ..Default::default()
    }
}

fn sorted(known: &Predictions) -> Vec<u64> {
    let mut executed: Vec<u64> = known.executed.iter().copied().collect();
    executed.sort_unstable();
    executed
}

#[test]
fn what_one_process_showed_is_known_of_the_next() {
    let mut programs = Programs::default();
    let first = seen(
        &[0x40_0010, 0x40_1010, 0x70_0004, 0x71_0008],
        &[(0x40_0010, &[0x70_0004, 0x40_1010])],
        &[0x70_0004],
    );
    programs.learn(&mapped(0x40_0000, 0x70_0000), &first);
    // Elsewhere, and the library below the program.
    let known = programs.recall(&mapped(0x80_0000, 0x20_0000));
    assert_eq!(sorted(&known), [0x20_0004, 0x21_0008, 0x80_0010, 0x80_1010]);
    assert_eq!(known.targets, BTreeMap::from([(0x80_0010, vec![0x20_0004, 0x80_1010])]));
    assert_eq!(known.wide_indexes, BTreeSet::from([0x20_0004]));
    assert!(known.entries.is_empty());
}

#[test]
fn what_several_showed_adds_up() {
    let mut programs = Programs::default();
    let mappings = mapped(0x40_0000, 0x70_0000);
    programs.learn(&mappings, &seen(&[0x40_0010], &[(0x40_0010, &[0x40_0000])], &[]));
    programs.learn(&mappings, &seen(&[0x70_0004], &[(0x40_0010, &[0x40_0004])], &[]));
    let known = programs.recall(&mappings);
    assert_eq!(sorted(&known), [0x40_0010, 0x70_0004]);
    // The latest process knows best.
    assert_eq!(known.targets[&0x40_0010], [0x40_0004]);
}

#[test]
fn another_program_or_another_file_is_not_known() {
    let mut programs = Programs::default();
    programs.learn(&mapped(0x40_0000, 0x70_0000), &seen(&[0x40_0010, 0x70_0004], &[], &[]));
    let other = mapped_as("/bin/other", 0x40_0000, 0x70_0000);
    assert_eq!(sorted(&programs.recall(&other)), [0; 0]);
    // The library was replaced: its places are not recalled, the program's are.
    let replaced = "400000-402000 r-xp 00001000 fe:00 7 /bin/program\n\
                    700000-701000 r-xp 00002000 fe:00 9 /lib/library.so\n";
    let known = programs.recall(&Mappings::parse(1, replaced));
    assert_eq!(sorted(&known), [0x40_0010]);
}

#[test]
fn code_of_no_file_is_not_kept() {
    let mut programs = Programs::default();
    let mappings = mapped(0x40_0000, 0x70_0000);
    programs.learn(
        &mappings,
        &seen(&[0x10, 0x40_2000], &[(0x40_0000, &[0x10]), (0x10, &[0x40_0000])], &[]),
    );
    let known = programs.recall(&mappings);
    assert_eq!(sorted(&known), [0; 0]);
    assert!(known.targets.is_empty());
    assert_eq!(sorted(&programs.recall(&Mappings::default())), [0; 0]);
}

#[test]
fn memory_is_bounded() {
    let mut programs = Programs::default();
    let mappings = Mappings::parse(1, "100000-900000 r-xp 00000000 fe:00 7 /bin/program\n");
    let many = (0x10_0000..).take(PLACES + 10).collect::<Vec<u64>>();
    programs.learn(&mappings, &seen(&many, &[], &many));
    let known = programs.recall(&mappings);
    assert_eq!((known.executed.len(), known.wide_indexes.len()), (PLACES, PLACES));
    let libraries = |numbers: std::ops::Range<usize>| -> Mappings {
        let line = |number: usize| {
            let start = 0x1000_0000 + 0x1000 * number;
            format!("{start:x}-{:x} r-xp 00000000 fe:00 8 /lib/{number}\n", start + 0x1000)
        };
        let maps: String = numbers.map(line).collect();
        Mappings::parse(1, &format!("1000-2000 r-xp 00000000 fe:00 7 /bin/p\n{maps}"))
    };
    let (some, others) = (libraries(0..FILES), libraries(FILES..2 * FILES));
    let starts = |mappings: &Mappings| -> Vec<u64> {
        mappings.iter().map(|mapping| mapping.range.start).collect()
    };
    for mappings in [&some, &others] {
        programs.learn(mappings, &seen(&starts(mappings), &[], &[]));
    }
    assert_eq!(sorted(&programs.recall(&some)), starts(&some)[..FILES]);
    assert_eq!(sorted(&programs.recall(&others)), [0x1000]);
    for number in 0..=PROGRAMS {
        let mappings = mapped_as(&format!("/bin/{number}"), 0x40_0000, 0x70_0000);
        programs.learn(&mappings, &seen(&[0x40_0000], &[], &[]));
    }
    assert_eq!(programs.known.len(), PROGRAMS);
    // The one that was not used for longest had to go.
    assert_eq!(sorted(&programs.recall(&mappings)), [0; 0]);
    let last = mapped_as(&format!("/bin/{PROGRAMS}"), 0x40_0000, 0x70_0000);
    assert_eq!(sorted(&programs.recall(&last)), [0x40_0000]);
}

#[test]
fn later_sessions_know_what_earlier_ones_left() {
    let parent = tempfile::tempdir().unwrap();
    let session = || Programs {
        shelf: Some(Shelf::of(RuntimeFolder::make_in(parent.path()).unwrap())),
        ..Default::default()
    };
    let mappings = mapped(0x40_0000, 0x70_0000);
    let all = seen(
        &[0x40_0010, 0x40_0013, 0x40_1010, 0x70_0004, 0x70_0ff0],
        &[(0x40_0010, &[0x70_0004, 0x40_1010])],
        &[0x70_0004],
    );
    let mut first = session();
    first.learn(&mappings, &all);
    assert!(session().recall(&mappings).executed.is_empty(), "nothing is kept so far");
    first.keep();
    let known = session().recall(&mappings);
    assert_eq!(sorted(&known), sorted(&all));
    assert_eq!((&known.targets, &known.wide_indexes), (&all.targets, &all.wide_indexes));

    // Another program in its slot is another program.
    let file = program(&mappings).unwrap();
    let other = File { inode: file.inode + 1, ..file.clone() };
    let shelf = session().shelf.unwrap();
    let slot = parent.path().join("ub").join(shelf::name(&file));
    shelf.store(&other, &first.known[&file]).unwrap();
    std::fs::copy(parent.path().join("ub").join(shelf::name(&other)), &slot).unwrap();
    assert!(session().recall(&mappings).executed.is_empty());
    // What is damaged is no use, and no harm.
    first.known.values_mut().for_each(|program| program.has_news = true);
    first.keep();
    let whole = std::fs::read_to_string(&slot).unwrap();
    for damaged in ["{".to_owned(), whole.replace("[0,", "[9,"), whole.replace("]],", "],[1]],")] {
        assert_ne!(damaged, whole);
        std::fs::write(&slot, damaged).unwrap();
        let mut session = session();
        assert!(session.recall(&mappings).executed.is_empty());
        session.learn(&mappings, &all);
        session.keep();
    }
}

#[test]
fn what_is_kept_of_the_largest_program_is_read_again() {
    let parent = tempfile::tempdir().unwrap();
    let session = || Programs {
        shelf: Some(Shelf::of(RuntimeFolder::make_in(parent.path()).unwrap())),
        ..Default::default()
    };
    let maps = "100000-90000000 r-xp 00000000 fe:00 7 /bin/program\n";
    let mappings = Mappings::parse(1, maps);
    // Sixteen targets each of as many sites as are remembered of a process.
    let executed = (0x10_0000..).step_by(5).take(PLACES).collect::<Vec<u64>>();
    let targets: Vec<u64> = (0..16).map(|n| 0x8000_0000 + n).collect();
    let targets: Vec<_> =
        executed.iter().take(4096).map(|site| (*site, targets.as_slice())).collect();
    let mut first = session();
    first.learn(&mappings, &seen(&executed, &targets, &[]));
    first.keep();
    let known = session().recall(&mappings);
    assert_eq!((known.executed.len(), known.targets.len()), (PLACES, 4096));
}

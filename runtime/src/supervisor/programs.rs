//! What processes of a program showed of the ways that it goes, for its next
//! processes: a server's workers, or a tool that is started again and again.
//!
//! Each address space is learned bit by bit, which takes its first seconds. So
//! what was learned of one is kept by the files that its code is mapped from, and
//! handed to the next that runs the same program. It says where to look and no
//! more: code is read and verified anew for each address space, and a fragment
//! is left where it does not fit.

mod shelf;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tracing::debug;
use ub_report::symbols::{Mapping, Mappings};
use ub_translator::Predictions;

pub(crate) use self::shelf::Shelf;

use super::space::AddressSpace;
use super::{Pipeline, Supervisor};
use crate::kernel::{Btc, Kernel};

/// Programs remembered at a time.
const PROGRAMS: usize = 16;
/// Places remembered of a program, of each kind.
const PLACES: usize = 1 << 16;
/// Files remembered of a program, and mappings of a process that are looked at: it
/// could have many times more, and each place is looked for in all.
const FILES: usize = 1024;

/// A file as a process has mapped it. Another one that replaced it has another
/// inode.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
struct File {
    device: String,
    inode: u64,
    path: PathBuf,
}

impl File {
    fn of(mapping: &Mapping) -> Self {
        let Mapping { device, inode, path, .. } = mapping;
        Self { device: device.clone(), inode: *inode, path: path.clone() }
    }
}

/// The program of a process with these mappings.
fn program(mappings: &Mappings) -> Option<File> {
    mappings.first().map(File::of)
}

/// A place in one of a program's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "(usize, u64)", from = "(usize, u64)")]
struct Place {
    /// Index in [`Program::files`].
    file: usize,
    offset: u64,
}

impl From<(usize, u64)> for Place {
    fn from((file, offset): (usize, u64)) -> Self {
        Self { file, offset }
    }
}

impl From<Place> for (usize, u64) {
    fn from(Place { file, offset }: Place) -> Self {
        (file, offset)
    }
}

/// What is known of one program.
#[derive(Debug, Default)]
struct Program {
    files: Vec<File>,
    executed: BTreeSet<Place>,
    /// Targets of indirect branches, the latest first.
    targets: BTreeMap<Place, Vec<Place>>,
    wide_indexes: BTreeSet<Place>,
    /// Number of the process that used it last.
    used: u64,
    /// More was learned than is on the shelf.
    has_news: bool,
}

/// What is known of programs, by their files.
#[derive(Debug, Default)]
pub(super) struct Programs {
    known: HashMap<File, Program>,
    uses: u64,
    /// Of sessions that leave it to later ones.
    shelf: Option<Shelf>,
}

impl Programs {
    /// Begins with what earlier sessions left on `shelf`, and leaves more.
    pub(super) fn use_shelf(&mut self, shelf: Shelf) {
        self.shelf = Some(shelf);
    }

    /// Leaves what is known to later sessions.
    pub(super) fn keep(&mut self) {
        let Some(shelf) = &self.shelf else { return };
        for (file, program) in self.known.iter_mut().filter(|(_, program)| program.has_news) {
            match shelf.store(file, program) {
                Ok(()) => program.has_news = false,
                Err(error) => debug!(?file, %error, "what is known of a program is not kept"),
            }
        }
    }

    /// Keeps what was `seen` in a process with these mappings.
    pub(super) fn learn(&mut self, mappings: &Mappings, seen: &Predictions) {
        let Some(file) = program(mappings) else { return };
        let program = self.program(file);
        program.has_news = true;
        let mut places =
            Places { segments: segments(mappings), files: &mut program.files, latest: None };
        let room = |count: usize| PLACES.saturating_sub(count);
        let executed = seen.executed.iter().filter_map(|address| places.of(*address));
        let left = room(program.executed.len());
        program.executed.extend(executed.take(left));
        for (site, targets) in &seen.targets {
            let Some(site) = places.of(*site) else { continue };
            if program.targets.len() >= PLACES && !program.targets.contains_key(&site) {
                continue;
            }
            let targets: Vec<Place> =
                targets.iter().filter_map(|target| places.of(*target)).collect();
            if !targets.is_empty() {
                program.targets.insert(site, targets);
            }
        }
        let wide = seen.wide_indexes.iter().filter_map(|address| places.of(*address));
        let left = room(program.wide_indexes.len());
        program.wide_indexes.extend(wide.take(left));
    }

    /// What is known of the program of a process with these mappings, in
    /// its addresses.
    pub(super) fn recall(&mut self, mappings: &Mappings) -> Predictions {
        let mut recalled = Predictions::default();
        let Some(file) = program(mappings) else { return recalled };
        let program = self.program(file);
        let segments = segments(mappings);
        let addresses = Addresses::new(&segments, &program.files);
        let all = |places: &BTreeSet<Place>| -> Vec<u64> {
            places.iter().filter_map(|place| addresses.of(*place)).collect()
        };
        recalled.executed.extend(all(&program.executed));
        recalled.wide_indexes.extend(all(&program.wide_indexes));
        for (site, targets) in &program.targets {
            let Some(site) = addresses.of(*site) else { continue };
            let targets = targets.iter().filter_map(|target| addresses.of(*target)).collect();
            recalled.targets.insert(site, targets);
        }
        recalled
    }

    /// What is known of `file`, as a program.
    fn program(&mut self, file: File) -> &mut Program {
        if !self.known.contains_key(&file) && self.known.len() >= PROGRAMS {
            self.keep();
            let oldest = self.known.iter().min_by_key(|(_, program)| program.used);
            if let Some(oldest) = oldest.map(|(file, _)| file.clone()) {
                self.known.remove(&oldest);
            }
        }
        self.uses += 1;
        let shelf = &self.shelf;
        let program = self.known.entry(file).or_insert_with_key(|file| {
            shelf.as_ref().and_then(|shelf| shelf.load(file)).unwrap_or_default()
        });
        program.used = self.uses;
        program
    }
}

impl<K: Kernel, P: Pipeline> Supervisor<K, P> {
    /// The first time, hands `btc`, in which the process `pid` runs, what is known
    /// of its program from others.
    pub(super) fn recall_program(&mut self, btc: Btc, pid: u32) {
        if self.space(btc).mappings.is_some() {
            return;
        }
        // Without any nothing is known, and that is not asked again.
        let mappings = self.kernel.mappings(pid).unwrap_or_default();
        let runs_the_same = |space: &AddressSpace| {
            space.mappings.as_ref().is_some_and(|other| program(other) == program(&mappings))
        };
        let others: Vec<Btc> = self
            .spaces
            .iter()
            .filter(|(_, space)| runs_the_same(space))
            .map(|(btc, _)| *btc)
            .collect();
        for other in others {
            self.learn_program(other);
        }
        let known = self.programs.recall(&mappings);
        debug!(btc = btc.0, pid, instructions = known.executed.len(), "program known");
        let space = self.space(btc);
        space.recall(known);
        space.mappings = Some(mappings);
    }

    /// Has what programs showed known to later sessions, and what they showed in
    /// earlier ones to this.
    #[must_use]
    pub fn remember_programs(mut self) -> Self {
        self.programs.use_shelf(Shelf::default());
        self
    }

    /// Leaves what was learned of programs so far to later sessions, if this one
    /// [remembers](Self::remember_programs) them.
    pub fn keep_programs(&mut self) {
        for btc in self.spaces.keys().copied().collect::<Vec<_>>() {
            self.learn_program(btc);
        }
        self.programs.keep();
    }

    /// Keeps what was learned of `btc` for the next processes of its program.
    pub(super) fn learn_program(&mut self, btc: Btc) {
        let Some(space) = self.spaces.get_mut(&btc).filter(|space| space.has_news()) else {
            return;
        };
        let Some(before) = &space.mappings else { return };
        // More may have been mapped since, or nothing may be there any more.
        let now = space.thread.and_then(|pid| self.kernel.mappings(pid).ok());
        let now = now.filter(|now| program(now) == program(before));
        let mappings = now.unwrap_or_else(|| before.clone());
        self.programs.learn(&mappings, space.news());
    }
}

/// A part of a program's code.
#[derive(Debug)]
struct Segment {
    file: File,
    range: Range<u64>,
    /// Offset in the file of the first address.
    offset: u64,
}

/// What is mapped of files, and the kernel's own code.
fn segments(mappings: &Mappings) -> Vec<Segment> {
    let vdso = mappings.vdso().map(|range| Segment {
        file: File { path: "[vdso]".into(), ..Default::default() },
        range: range.clone(),
        offset: 0,
    });
    let of_file = |mapping: &Mapping| Segment {
        file: File::of(mapping),
        range: mapping.range.clone(),
        offset: mapping.offset,
    };
    vdso.into_iter().chain(mappings.iter().map(of_file)).take(FILES).collect()
}

/// Finds the places of addresses.
struct Places<'a> {
    segments: Vec<Segment>,
    files: &'a mut Vec<File>,
    /// Indexes of the latest segment and its file: neighbours are asked for one
    /// after the other.
    latest: Option<(usize, usize)>,
}

impl Places<'_> {
    fn of(&mut self, address: u64) -> Option<Place> {
        let contains = |segment: &Segment| segment.range.contains(&address);
        let (segment, file) = match self.latest {
            Some((segment, file)) if contains(&self.segments[segment]) => (segment, file),
            _ => {
                let segment = self.segments.iter().position(contains)?;
                let file = &self.segments[segment].file;
                let known = self.files.iter().position(|known| known == file);
                let index = known.unwrap_or(self.files.len());
                if index == FILES {
                    return None;
                }
                if known.is_none() {
                    self.files.push(file.clone());
                }
                *self.latest.insert((segment, index))
            }
        };
        let Segment { range, offset, .. } = &self.segments[segment];
        Some(Place { file, offset: address - range.start + offset })
    }
}

/// Finds the addresses of places.
struct Addresses<'a>(Vec<Vec<&'a Segment>>);

impl<'a> Addresses<'a> {
    fn new(segments: &'a [Segment], files: &[File]) -> Self {
        let of = |file: &File| segments.iter().filter(|part| part.file == *file).collect();
        Self(files.iter().map(of).collect())
    }

    /// The first, should it be mapped more than once.
    fn of(&self, place: Place) -> Option<u64> {
        self.0.get(place.file)?.iter().find_map(|Segment { range, offset, .. }| {
            let distance = place.offset.checked_sub(*offset)?;
            (distance < range.end - range.start).then(|| range.start + distance)
        })
    }
}

//! What is known of programs, for later sessions until the next boot.
//!
//! Offsets are written as distances, which are small: a file of a large server
//! takes some ten kilobytes.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;

use serde::{Deserialize, Serialize};
use tracing::debug;

use super::{File, PLACES, Place, Program};
use crate::runtime_folder::RuntimeFolder;

/// Number of this format.
const FORMAT: u32 = 1;
/// Programs that are kept at most: what is one too many takes the place of another.
const SLOTS: u64 = 64;
/// Targets that are kept of one indirect branch: the folder takes no file larger
/// than a megabyte.
const TARGETS: usize = 8;

/// Keeps it in the first folder that can be had.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    /// Opened when it is needed: sessions are opened by a process that a
    /// supervisor is started from, and the supervisor closes what it does not know.
    folder: OnceCell<Option<RuntimeFolder>>,
}

/// Distances between sorted offsets, by the index of the file.
type Distances = Vec<Vec<u64>>;

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    /// As the same slot may have been another's.
    program: File,
    files: Vec<File>,
    executed: Distances,
    targets: Vec<(Place, Vec<Place>)>,
    wide_indexes: Distances,
}

impl Shelf {
    #[cfg(test)]
    pub(super) fn of(folder: RuntimeFolder) -> Self {
        Self { folder: OnceCell::from(Some(folder)) }
    }

    fn folder(&self) -> Option<&RuntimeFolder> {
        self.folder.get_or_init(|| RuntimeFolder::usable().next()).as_ref()
    }

    /// What is known of `file`, as a program.
    pub(super) fn load(&self, file: &File) -> Option<Program> {
        let bytes = self.folder()?.read(&name(file)).ok()?;
        let stored = serde_json::from_slice::<Stored>(&bytes);
        let program = stored.ok().and_then(|stored| stored.into_program(file));
        if program.is_none() {
            debug!(?file, "what is kept of a program is of no use");
        }
        program
    }

    /// Keeps it.
    pub(super) fn store(&self, file: &File, program: &Program) -> io::Result<()> {
        let folder = self.folder().ok_or(io::ErrorKind::NotFound)?;
        folder.write(&name(file), &serde_json::to_vec(&Stored::new(file, program))?)
    }
}

/// The name of the file in which it is kept.
pub(super) fn name(file: &File) -> String {
    let mut hasher = DefaultHasher::new();
    file.hash(&mut hasher);
    format!("program-{}.json", hasher.finish() % SLOTS)
}

impl Stored {
    fn new(file: &File, program: &Program) -> Self {
        let Program { files, executed, targets, wide_indexes, .. } = program;
        Self {
            format: FORMAT,
            program: file.clone(),
            files: files.clone(),
            executed: distances(executed, files.len()),
            targets: targets.iter().map(latest).collect(),
            wide_indexes: distances(wide_indexes, files.len()),
        }
    }

    /// `None` if it is none of `file`, or of places in files that it does not name.
    /// Other wrong places cost time.
    fn into_program(self, file: &File) -> Option<Program> {
        let Self { format, program, files, executed, targets, wide_indexes } = self;
        let is_named = |place: &Place| place.file < files.len();
        let are_named =
            |(site, targets): &(Place, Vec<Place>)| is_named(site) && targets.iter().all(is_named);
        if format != FORMAT
            || program != *file
            || executed.len() > files.len()
            || wide_indexes.len() > files.len()
            || !targets.iter().all(are_named)
        {
            return None;
        }
        Some(Program {
            executed: places(&executed),
            targets: targets.into_iter().take(PLACES).collect(),
            wide_indexes: places(&wide_indexes),
            files,
            ..Default::default()
        })
    }
}

/// A branch with its latest targets.
fn latest((site, targets): (&Place, &Vec<Place>)) -> (Place, Vec<Place>) {
    (*site, targets.iter().copied().take(TARGETS).collect())
}

fn distances(places: &BTreeSet<Place>, files: usize) -> Distances {
    let mut distances = vec![Vec::new(); files];
    let mut before = (0, 0);
    for place in places {
        let from = if before.0 == place.file { before.1 } else { 0 };
        distances[place.file].push(place.offset - from);
        before = (place.file, place.offset);
    }
    distances
}

fn places(distances: &Distances) -> BTreeSet<Place> {
    let of_file = |(file, distances): (usize, &Vec<u64>)| {
        let offsets = distances.iter().scan(0u64, |offset, distance| {
            *offset = offset.checked_add(*distance)?;
            Some(*offset)
        });
        offsets.map(|offset| Place { file, offset }).collect::<Vec<_>>()
    };
    distances.iter().enumerate().flat_map(of_file).take(PLACES).collect()
}

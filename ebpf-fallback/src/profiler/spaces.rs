//! What is known of the watched address spaces.

use std::collections::BTreeMap;

use ub_report::symbols::{Mapping, Mappings, Name, Symbolizer};

/// Snapshots of mappings kept for an address space; a program that loads and
/// unloads libraries for ever must not fill the memory.
const SNAPSHOTS: usize = 8;

/// One address space.
#[derive(Debug, Clone, Default)]
pub(super) struct Space {
    pub(super) process: u32,
    pub(super) program: String,
    /// What was mapped at different moments, the latest first.
    snapshots: Vec<Mappings>,
}

/// Says which address space a process has now, if any that is watched.
type Current = Box<dyn Fn(u32) -> Option<u32>>;

/// All of them, by number.
pub(super) struct Spaces {
    current: Current,
    spaces: BTreeMap<u32, Space>,
    symbols: Symbolizer,
}

impl std::fmt::Debug for Spaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spaces").field("spaces", &self.spaces).finish_non_exhaustive()
    }
}

impl Spaces {
    pub(super) fn new(current: impl Fn(u32) -> Option<u32> + 'static) -> Self {
        Self { current: Box::new(current), spaces: BTreeMap::new(), symbols: Symbolizer::default() }
    }

    /// Takes over a new address space of `process`; `parent` is the one that
    /// it is a copy of, if any, and `program` its name.
    pub(super) fn add(&mut self, space: u32, process: u32, parent: u32, program: String) {
        let mut new = self.spaces.get(&parent).cloned().unwrap_or_default();
        new.process = process;
        new.program = program;
        self.spaces.insert(space, new);
        self.refresh(space);
    }

    /// Looks again at what is mapped, if the process still is there and has
    /// not executed another program.
    fn refresh(&mut self, space: u32) {
        let Some(known) = self.spaces.get_mut(&space) else {
            return;
        };
        if let Ok(mappings) = Mappings::of(known.process)
            // After reading: it may have happened meanwhile.
            && (self.current)(known.process) == Some(space)
            && mappings.first().is_some()
            && known.snapshots.first() != Some(&mappings)
        {
            known.snapshots.insert(0, mappings);
            known.snapshots.truncate(SNAPSHOTS);
        }
    }

    /// Looks again at every process that still is there.
    pub(super) fn refresh_all(&mut self) {
        let spaces: Vec<_> = self.spaces.keys().copied().collect();
        for space in spaces {
            self.refresh(space);
        }
    }

    /// Looks again at what is mapped, if nothing was at `address` before.
    pub(super) fn ask(&mut self, space: u32, address: u64) {
        if self.known(space, address).is_none() {
            self.refresh(space);
        }
    }

    /// The process and the mapping that contains `address`.
    pub(super) fn find(&mut self, space: u32, address: u64) -> Option<(u32, Mapping)> {
        self.ask(space, address);
        let mapping = self.known(space, address)?.find(address)?.clone();
        Some((self.spaces.get(&space)?.process, mapping))
    }

    fn known(&self, space: u32, address: u64) -> Option<&Mappings> {
        let snapshots = &self.spaces.get(&space)?.snapshots;
        snapshots.iter().find(|mappings| mappings.find(address).is_some())
    }

    /// The name of `address`.
    pub(super) fn name(&mut self, space: u32, address: u64) -> Option<Name> {
        let known = self.spaces.get(&space)?;
        let has = |mappings: &&Mappings| mappings.find(address).is_some();
        let mappings = known.snapshots.iter().find(has)?;
        let mut name = self.symbols.name(mappings, address)?;
        // The program is called what it was started as: a link's target may
        // have a name that says nothing (Debian's redis-server is one).
        let path = |mapping: Option<&Mapping>| mapping.map(|mapping| mapping.path.clone());
        if path(mappings.first()) == path(mappings.find(address))
            && !name.object.starts_with(&known.program)
        {
            name.object.clone_from(&known.program);
        }
        Some(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Space)> {
        self.spaces.iter().map(|(number, space)| (*number, space))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_knows_what_the_original_had_after_it_is_gone() {
        // SAFETY: only the address is used.
        let address = libc::getppid as *const () as u64;
        let mut spaces = Spaces::new(|_| Some(1));
        spaces.add(1, std::process::id(), 0, String::new());
        spaces.add(2, u32::MAX, 1, "a".into());
        spaces.add(3, u32::MAX, 0, "b".into());
        assert_eq!(spaces.name(2, address).unwrap().to_string(), "libc!getppid");
        assert_eq!(spaces.name(3, address), None);
        assert_eq!(spaces.find(2, address).unwrap().0, u32::MAX);
        assert!(spaces.find(2, 8).is_none());
    }

    #[test]
    fn what_is_executed_later_is_not_mistaken_for_what_was() {
        // SAFETY: only the address is used.
        let address = libc::getppid as *const () as u64;
        let mut spaces = Spaces::new(|_| Some(2));
        spaces.add(1, std::process::id(), 0, "shell".into());
        spaces.add(2, std::process::id(), 0, "program".into());
        spaces.refresh_all();
        assert_eq!(spaces.name(1, address), None);
        assert_eq!(spaces.name(2, address).unwrap().to_string(), "libc!getppid");
        let names: Vec<_> = spaces.iter().map(|(_, space)| space.program.as_str()).collect();
        assert_eq!(names, ["shell", "program"]);
    }
}

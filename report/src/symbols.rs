//! Names for addresses of processes: `redis-server!writeToClient+0x52`.
//!
//! What a process has mapped is kept apart from the naming, because a name is
//! often wanted after the process has ended. Reading `/proc/PID/maps` does not
//! stop the process and does not end its rides.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

mod content;
mod table;

use table::SymbolTable;

/// A file mapped as code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// User addresses.
    pub range: Range<u64>,
    /// Offset in the file of the first of them.
    pub offset: u64,
    /// The file, as the process names it.
    pub path: PathBuf,
    /// Its inode, to tell it from one that replaced it.
    pub inode: u64,
    /// The device that the inode is on, as `/proc/PID/maps` writes it: `fe:00`.
    pub device: String,
}

impl Mapping {
    /// The content of the file: from its path, unless the process `pid` sees
    /// another file there than this one does. What a program does to that file cannot
    /// hold whoever asks for longer than some seconds in all.
    ///
    /// # Errors
    /// When it is gone, no regular file, larger than what programs are, or not to be
    /// had in time.
    pub fn read(&self, pid: u32) -> io::Result<Vec<u8>> {
        content::read(self, pid)
    }
}

/// What one process has mapped as code.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mappings {
    pid: u32,
    code: Vec<Mapping>,
    vdso: Option<Range<u64>>,
}

impl Mappings {
    /// Those of the process `pid` at this moment.
    ///
    /// # Errors
    /// When it has ended or is not ours to look at.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self::parse(pid, &fs::read_to_string(format!("/proc/{pid}/maps"))?))
    }

    /// Those that `maps` tells of the process `pid`, the text of `/proc/PID/maps`.
    /// Lines that are no code of a file, or no lines of it, tell of none.
    #[must_use]
    pub fn parse(pid: u32, maps: &str) -> Self {
        Self {
            pid,
            code: maps.lines().filter_map(mapping).collect(),
            vdso: maps.lines().find(|line| line.ends_with(" [vdso]")).and_then(range),
        }
    }

    /// Where the kernel has put its own code for programs (vdso(7)), which is the
    /// same in all of them.
    #[must_use]
    pub fn vdso(&self) -> Option<&Range<u64>> {
        self.vdso.as_ref()
    }

    /// The mapping that contains `address`.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<&Mapping> {
        self.code.iter().find(|mapping| mapping.range.contains(&address))
    }

    /// All of them, by address.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.code.iter()
    }

    /// The first of them: as a rule, the program itself.
    #[must_use]
    pub fn first(&self) -> Option<&Mapping> {
        self.code.first()
    }
}

/// The addresses of a line of `/proc/PID/maps`.
fn range(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some(hex(start)?..hex(end)?)
}

/// A line of `/proc/PID/maps` if it is code of a file.
fn mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ').skip(1);
    let executable = fields.next()?.as_bytes().get(2) == Some(&b'x');
    let offset = fields.next()?;
    let device = fields.next()?;
    let inode = fields.next()?;
    let path = fields.next()?.trim_start();
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    if !executable || !path.starts_with('/') {
        return None;
    }
    Some(Mapping {
        range: range(line)?,
        offset: u64::from_str_radix(offset, 16).ok()?,
        path: path.into(),
        inode: inode.parse().ok()?,
        device: device.to_owned(),
    })
}

/// What stands at an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    /// The file, without folders.
    pub object: String,
    /// The function, if the file tells.
    pub function: Option<String>,
    /// Bytes from the start of the function, or of the file without one.
    pub offset: u64,
}

impl Name {
    /// The name without the distance: `libc!write`.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.function {
            Some(function) => format!("{}!{function}", self.object),
            None => self.to_string(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, function, offset } = self;
        match function {
            Some(function) if *offset == 0 => write!(f, "{object}!{function}"),
            Some(function) => write!(f, "{object}!{function}+{offset:#x}"),
            None => write!(f, "{object}+{offset:#x}"),
        }
    }
}

/// Finds names, and remembers the symbol tables it needed.
#[derive(Debug, Default)]
pub struct Symbolizer {
    /// By path and inode: a path alone may come to mean another file.
    files: HashMap<(PathBuf, u64), SymbolTable>,
}

impl Symbolizer {
    /// The name of `address` in a process with these mappings; `None` if no
    /// file is mapped there as code.
    pub fn name(&mut self, mappings: &Mappings, address: u64) -> Option<Name> {
        let mapping = mappings.find(address)?;
        let offset = address - mapping.range.start + mapping.offset;
        let object = object_name(&mapping.path);
        let table = self
            .files
            .entry((mapping.path.clone(), mapping.inode))
            // A file that is gone or damaged has no names.
            .or_insert_with(|| {
                let read = || SymbolTable::read(&mapping.read(mappings.pid)?);
                contained(read).and_then(Result::ok).unwrap_or_default()
            });
        Some(match contained(|| table.find(offset)).flatten() {
            Some((function, offset)) => Name { object, function: Some(function), offset },
            // Still better than a number that another run would not repeat.
            None => Name { object, function: None, offset },
        })
    }
}

/// What `work` says, unless it panics: it takes apart what a program chose.
fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    // Nothing outlives a panic but what `work` only reads.
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// `libc` for `/usr/lib/libc.so.6`, `redis-server` for `/usr/bin/redis-server`.
fn object_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(".so").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_counts() {
        let maps = Mappings::parse(
            1,
            "1000-2000 r--p 00000000 fe:00 7                          /bin/a b\n\
             2000-3000 r-xp 00001000 fe:00 7                          /bin/a b (deleted)\n\
             4000-5000 r-xp 00000000 00:00 0 \n\
             6000-7000 r-xp 00000000 00:00 0                          [vdso]\n",
        );
        let code = Mapping {
            range: 0x2000..0x3000,
            offset: 0x1000,
            path: "/bin/a b".into(),
            inode: 7,
            device: "fe:00".to_owned(),
        };
        assert_eq!(maps.code, std::slice::from_ref(&code));
        assert_eq!(maps.find(0x2fff), Some(&code));
        assert_eq!(maps.find(0x3000), None);
        assert_eq!(maps.vdso(), Some(&(0x6000..0x7000)));
    }

    #[test]
    fn names_read_as_debuggers_write_them() {
        let name = |function: Option<&str>, offset| Name {
            object: object_name(Path::new("/lib/libc.so.6")),
            function: function.map(str::to_owned),
            offset,
        };
        assert_eq!(name(Some("write"), 0x14).to_string(), "libc!write+0x14");
        assert_eq!(name(Some("write"), 0).to_string(), "libc!write");
        assert_eq!(name(Some("write"), 0x14).place(), "libc!write");
        assert_eq!(name(None, 0x4a0).to_string(), "libc+0x4a0");
        assert_eq!(object_name(Path::new("/usr/bin/redis-server")), "redis-server");
    }

    #[test]
    fn functions_of_this_process_are_found() {
        let mappings = Mappings::of(std::process::id()).unwrap();
        let mut symbols = Symbolizer::default();
        // SAFETY: only the address is used.
        let write = nix::libc::write as *const () as u64;
        let name = symbols.name(&mappings, write + 4).unwrap();
        assert_eq!((name.object.as_str(), name.offset), ("libc", 4));
        assert_eq!(name.function.as_deref(), Some("write"));
        assert_eq!(symbols.name(&mappings, 8), None);
    }

    #[test]
    fn a_process_that_is_gone_has_no_mappings() {
        assert!(Mappings::of(u32::MAX).is_err());
    }
}

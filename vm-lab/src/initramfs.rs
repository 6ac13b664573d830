//! The guest's file tree and the archive the kernel unpacks it from.
//!
//! The archive is "newc" cpio without compression: QEMU hands it to the guest
//! as memory, so compressing it would only add work for the emulated CPU.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use cpio::newc::{self, ModeFileType};

use crate::elf;
use crate::error::{Context, LabError, Result};

/// Folders that are links into /usr, as on every Debian since 12.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// Where libraries go that live outside the system's library folders.
const LIBRARY_DIR: &str = "/usr/lib/x86_64-linux-gnu";

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory { mode: u32 },
    HostFile { source: PathBuf, mode: u32 },
    Bytes { content: Vec<u8>, mode: u32 },
    Link { target: String },
    CharacterDevice { mode: u32, major: u32, minor: u32 },
}

/// A file tree for a guest, without the leading `/`. Parents come before
/// their children, as the kernel's unpacker needs it.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// A tree with the folders and accounts that programs expect.
    pub(crate) fn with_base() -> Result<Self> {
        let mut tree = Self::default();
        for dir in
            ["dev", "etc", "home", "mnt", "opt", "proc", "root", "run", "sys", "ub", "usr", "var"]
        {
            tree.add_directory(Path::new(dir))?;
        }
        for dir in MERGED {
            tree.add_directory(&Path::new("usr").join(dir))?;
            tree.insert(dir.to_owned(), Node::Link { target: format!("usr/{dir}") })?;
        }
        for dir in ["var/cache", "var/lib", "var/log", "var/spool"] {
            tree.add_directory(Path::new(dir))?;
        }
        for dir in ["tmp", "var/tmp"] {
            tree.insert(dir.to_owned(), Node::Directory { mode: 0o1777 })?;
        }
        tree.insert("var/run".to_owned(), Node::Link { target: "/run".to_owned() })?;
        // The kernel opens these before init can mount devtmpfs.
        for (name, mode, minor) in [("dev/console", 0o600, 1), ("dev/null", 0o666, 3)] {
            let major = if name == "dev/console" { 5 } else { 1 };
            tree.insert(name.to_owned(), Node::CharacterDevice { mode, major, minor })?;
        }
        let files = [
            (
                "etc/passwd",
                "root:x:0:0:root:/root:/bin/sh\n\
                 www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
                 redis:x:107:114::/var/lib/redis:/usr/sbin/nologin\n\
                 nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
            ),
            ("etc/group", "root:x:0:\nwww-data:x:33:\nredis:x:114:\nnogroup:x:65534:\n"),
            ("etc/hosts", "127.0.0.1 localhost ub-guest\n::1 localhost\n"),
            ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
            ("etc/hostname", "ub-guest\n"),
        ];
        for (path, content) in files {
            tree.add_bytes(Path::new(path), content.as_bytes().to_vec(), 0o644)?;
        }
        let loader_cache = Path::new("/etc/ld.so.cache");
        if loader_cache.exists() {
            tree.add_file(loader_cache, loader_cache)?;
        }
        Ok(tree)
    }

    /// Adds an empty folder and its parents.
    pub(crate) fn add_directory(&mut self, path: &Path) -> Result<()> {
        let name = guest_name(path)?;
        self.insert(name, Node::Directory { mode: 0o755 })
    }

    /// Adds a file with this content.
    pub(crate) fn add_bytes(&mut self, path: &Path, content: Vec<u8>, mode: u32) -> Result<()> {
        let name = guest_name(path)?;
        self.insert(name, Node::Bytes { content, mode })
    }

    /// Adds a file of the host, or a folder with everything in it, as `path`.
    /// Programs and libraries bring what they need to start.
    pub(crate) fn add_file(&mut self, source: &Path, path: &Path) -> Result<()> {
        let metadata = fs::metadata(source).context("reading", source)?;
        if metadata.is_dir() {
            self.add_directory(path)?;
            let entries = fs::read_dir(source).context("reading", source)?;
            for entry in entries {
                let entry = entry.context("reading", source)?;
                let inside = path.join(entry.file_name());
                if entry.file_type().context("reading", &entry.path())?.is_symlink() {
                    self.add_link(&entry.path(), &inside)?;
                } else {
                    self.add_file(&entry.path(), &inside)?;
                }
            }
            return Ok(());
        }
        if !metadata.is_file() {
            return Err(LabError::Unsupported(format!(
                "{} is no file, folder or link",
                source.display()
            )));
        }
        if !self.add_plain_file(source, path)? {
            return Ok(());
        }
        for required in elf::requirements(source)? {
            let place = library_place(&required);
            self.add_file(&required, &place)?;
        }
        Ok(())
    }

    /// Adds one file of the host and nothing it may need. Returns whether it
    /// is new to the tree.
    pub(crate) fn add_plain_file(&mut self, source: &Path, path: &Path) -> Result<bool> {
        let mode = fs::metadata(source).context("reading", source)?.permissions().mode() & 0o7777;
        let source = fs::canonicalize(source).context("resolving", source)?;
        let node = Node::HostFile { source, mode };
        let name = guest_name(path)?;
        if self.nodes.get(&name) == Some(&node) {
            return Ok(false);
        }
        self.insert(name, node)?;
        Ok(true)
    }

    fn add_link(&mut self, link: &Path, path: &Path) -> Result<()> {
        let target = fs::read_link(link).context("reading the link", link)?;
        let target = target
            .to_str()
            .ok_or_else(|| {
                LabError::Unsupported(format!("{}: target is not UTF-8", link.display()))
            })?
            .to_owned();
        let name = guest_name(path)?;
        self.insert(name, Node::Link { target })
    }

    fn insert(&mut self, name: String, node: Node) -> Result<()> {
        for (slash, _) in name.match_indices('/') {
            let parent = &name[..slash];
            match self.nodes.get(parent) {
                None => {
                    self.nodes.insert(parent.to_owned(), Node::Directory { mode: 0o755 });
                }
                Some(Node::Directory { .. }) => {}
                Some(_) => {
                    return Err(LabError::Setup(format!(
                        "/{name} cannot be in the guest: /{parent} is no folder"
                    )));
                }
            }
        }
        match self.nodes.get(&name) {
            Some(Node::Directory { .. }) if matches!(node, Node::Directory { .. }) => return Ok(()),
            Some(present) if *present != node => {
                return Err(LabError::Setup(format!(
                    "two different files are to be /{name} in the guest"
                )));
            }
            _ => {}
        }
        self.nodes.insert(name, node);
        Ok(())
    }

    /// Writes the archive.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path).context("creating", path)?;
        self.write_to(BufWriter::with_capacity(1 << 20, file)).context("writing", path)
    }

    fn write_to(&self, mut out: impl Write) -> io::Result<()> {
        for (number, (name, node)) in (1u32..).zip(&self.nodes) {
            let entry = newc::Builder::new(name).ino(number).nlink(1);
            out = match node {
                Node::Directory { mode } => entry
                    .mode(*mode)
                    .set_mode_file_type(ModeFileType::Directory)
                    .write(out, 0)
                    .finish()?,
                Node::CharacterDevice { mode, major, minor } => entry
                    .mode(*mode)
                    .set_mode_file_type(ModeFileType::Char)
                    .rdev_major(*major)
                    .rdev_minor(*minor)
                    .write(out, 0)
                    .finish()?,
                Node::Link { target } => {
                    let entry = entry.mode(0o777).set_mode_file_type(ModeFileType::Symlink);
                    write_content(entry, out, target.as_bytes(), target.len() as u64)?
                }
                Node::Bytes { content, mode } => {
                    let entry = entry.mode(*mode).set_mode_file_type(ModeFileType::Regular);
                    write_content(entry, out, content.as_slice(), content.len() as u64)?
                }
                Node::HostFile { source, mode } => {
                    let entry = entry.mode(*mode).set_mode_file_type(ModeFileType::Regular);
                    let file = File::open(source)?;
                    let length = file.metadata()?.len();
                    write_content(entry, out, file, length)?
                }
            };
        }
        newc::trailer(out)?.flush()
    }
}

fn write_content<W: Write>(
    entry: newc::Builder,
    out: W,
    mut content: impl io::Read,
    length: u64,
) -> io::Result<W> {
    let size = u32::try_from(length).map_err(|_| io::Error::other("file of 4 GiB or more"))?;
    let mut writer = entry.write(out, size);
    let copied = io::copy(&mut content, &mut writer)?;
    if copied != length {
        return Err(io::Error::other("file changed while it was packed"));
    }
    writer.finish()
}

/// The archive's name for a guest path: relative, without `.` and `..`,
/// with the merged folders resolved.
fn guest_name(path: &Path) -> Result<String> {
    let unusable =
        |why: &str| LabError::Unsupported(format!("guest path {}: {why}", path.display()));
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(part) => {
                parts.push(part.to_str().ok_or_else(|| unusable("is not UTF-8"))?)
            }
            Component::ParentDir => {
                parts.pop().ok_or_else(|| unusable("leads out of the root"))?;
            }
            Component::Prefix(_) => return Err(unusable("has a prefix")),
        }
    }
    match parts.first() {
        None => return Err(unusable("is the root itself")),
        Some(first) if MERGED.contains(first) && parts.len() > 1 => parts.insert(0, "usr"),
        Some(_) => {}
    }
    Ok(parts.join("/"))
}

/// Where the guest's loader will find a library: system folders are kept,
/// everything else goes to one that is always searched.
fn library_place(path: &Path) -> PathBuf {
    let kept =
        ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/bin", "/usr/bin", "/sbin", "/usr/sbin"];
    match path.file_name() {
        Some(name) if !kept.iter().any(|dir| path.starts_with(dir)) => {
            Path::new(LIBRARY_DIR).join(name)
        }
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn archive(tree: &Tree) -> Vec<u8> {
        let mut bytes = Vec::new();
        tree.write_to(&mut bytes).unwrap();
        bytes
    }

    /// Reads an archive back: name, mode, content.
    fn entries(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            let mut reader = newc::Reader::new(bytes).unwrap();
            if reader.entry().is_trailer() {
                return found;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = Vec::new();
            io::Read::read_to_end(&mut reader, &mut content).unwrap();
            found.push((name, mode, content));
            bytes = reader.finish().unwrap();
        }
    }

    #[test]
    fn archive_reads_back() {
        let mut tree = Tree::default();
        tree.add_bytes(Path::new("/etc/odd"), b"abc".to_vec(), 0o640).unwrap();
        tree.add_bytes(Path::new("/lib/x/empty"), Vec::new(), 0o755).unwrap();
        let found = entries(&archive(&tree));
        let names: Vec<_> = found.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["etc", "etc/odd", "usr", "usr/lib", "usr/lib/x", "usr/lib/x/empty"]);
        assert_eq!(found[0].1, 0o040_755);
        assert_eq!(found[1], ("etc/odd".into(), 0o100_640, b"abc".to_vec()));
    }

    #[test]
    fn gnu_cpio_agrees() {
        if crate::prerequisites::find_program("cpio").is_none() {
            crate::apt::install(&["cpio".to_owned()]).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive");
        let tree = Tree::with_base().unwrap();
        tree.write(&path).unwrap();
        let output = Command::new("cpio")
            .args(["--list", "--quiet"])
            .stdin(Stdio::from(File::open(&path).unwrap()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let listed: Vec<_> =
            String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
        assert_eq!(listed, tree.nodes.keys().cloned().collect::<Vec<_>>());
        assert!(listed.contains(&"etc/passwd".to_owned()));
    }

    #[test]
    fn programs_bring_their_loader_where_the_guest_looks() {
        let mut tree = Tree::with_base().unwrap();
        tree.add_file(Path::new("/bin/sh"), Path::new("/bin/sh")).unwrap();
        assert!(tree.nodes.contains_key("usr/bin/sh"));
        assert!(tree.nodes.contains_key("usr/lib64/ld-linux-x86-64.so.2"));
    }

    #[test]
    fn paths_are_normalised_or_refused() {
        assert_eq!(guest_name(Path::new("/lib64/ld.so")).unwrap(), "usr/lib64/ld.so");
        assert_eq!(guest_name(Path::new("a/./b/../c")).unwrap(), "a/c");
        assert_eq!(guest_name(Path::new("/usr/lib/x")).unwrap(), "usr/lib/x");
        for path in ["/", "..", "a/../.."] {
            assert!(guest_name(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn conflicts_are_errors() {
        let mut tree = Tree::default();
        tree.add_bytes(Path::new("/a"), b"1".to_vec(), 0o644).unwrap();
        tree.add_bytes(Path::new("/a"), b"1".to_vec(), 0o644).unwrap();
        assert!(tree.add_bytes(Path::new("/a"), b"2".to_vec(), 0o644).is_err());
        assert!(tree.add_bytes(Path::new("/a/b"), b"2".to_vec(), 0o644).is_err());
    }

    #[test]
    fn libraries_outside_the_system_move_to_a_searched_folder() {
        assert_eq!(
            library_place(Path::new("/opt/x/libx.so.1")),
            Path::new("/usr/lib/x86_64-linux-gnu/libx.so.1")
        );
        assert_eq!(library_place(Path::new("/lib/a/liba.so")), Path::new("/lib/a/liba.so"));
    }
}

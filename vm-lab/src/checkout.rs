//! Finding the project's checkout: the sources of what runs in guests are there.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What tells a checkout from other folders: the source of the kernel modules.
const MARK: &str = "kernel-patch/module";

/// The top folder of the project's checkout: the one that the running program is in, else
/// the one of the package that cargo runs, else the one that the working directory is in.
/// `None` where there is none, as on a machine that has only the packages. It is looked
/// for once.
///
/// Where the program was compiled does not count: on another machine that folder may be
/// anybody's. Folders in which all users make files, such as `/tmp`, are no checkouts. The
/// working directory may be below a folder of somebody else, from whom root should not take
/// sources unawares: then the log has a warning.
#[must_use]
pub fn checkout() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let search = || {
        Places {
            program: env::current_exe().ok(),
            package: env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from),
            working: env::current_dir().ok(),
        }
        .search()
    };
    FOUND.get_or_init(search).clone()
}

/// Where to start looking, in the order of precedence.
#[derive(Debug, Default)]
struct Places {
    program: Option<PathBuf>,
    package: Option<PathBuf>,
    working: Option<PathBuf>,
}

impl Places {
    fn search(&self) -> Option<PathBuf> {
        let above = |place: &Option<PathBuf>| place.as_deref().and_then(checkout_above);
        above(&self.program).or_else(|| above(&self.package)).or_else(|| {
            let found = above(&self.working)?;
            if others_may_write(&found) {
                let folder = found.display();
                tracing::warn!("using the sources in {folder}, which another user can change");
            }
            Some(found)
        })
    }
}

fn checkout_above(place: &Path) -> Option<PathBuf> {
    let mut folders = place.ancestors();
    folders.find(|folder| folder.join(MARK).is_dir() && !is_shared(folder)).map(Path::to_owned)
}

/// Whether this is a folder like `/tmp`: all users write to it and each keeps their own.
fn is_shared(folder: &Path) -> bool {
    let both = libc::S_ISVTX | libc::S_IWOTH;
    fs::metadata(folder).is_ok_and(|metadata| metadata.mode() & both == both)
}

fn others_may_write(folder: &Path) -> bool {
    let mine = [0, nix::unistd::geteuid().as_raw()];
    fs::metadata(folder).map_or(true, |metadata| {
        !mine.contains(&metadata.uid()) || metadata.mode() & libc::S_IWOTH != 0
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Makes checkouts of these names.
    fn checkouts<const N: usize>(parent: &Path, names: [&str; N]) -> [PathBuf; N] {
        names.map(|name| {
            let folder = parent.join(name);
            fs::create_dir_all(folder.join(MARK)).unwrap();
            folder
        })
    }

    #[test]
    fn the_program_counts_before_cargo_and_that_before_the_working_directory() {
        let parent = tempfile::tempdir().unwrap();
        let [program, package, working] =
            checkouts(parent.path(), ["program", "package", "working"]);
        let mut places = Places {
            program: Some(program.join("target/release/ub")),
            package: Some(package.join("vm-lab")),
            working: Some(working.join("docs")),
        };
        assert_eq!(places.search(), Some(program));
        // The target folder need not be in the checkout.
        places.program = Some(parent.path().join("target/release/ub"));
        assert_eq!(places.search(), Some(package));
        // Nor need cargo run a package of this project.
        places.package = Some(parent.path().join("other"));
        assert_eq!(places.search(), Some(working.clone()));
        places.working = Some(working.clone());
        assert_eq!(places.search(), Some(working));
        places.working = Some(parent.path().to_owned());
        assert_eq!(places.search(), None);
        assert_eq!(Places::default().search(), None);
    }

    #[test]
    fn what_everybody_may_add_to_is_no_checkout() {
        let parent = tempfile::tempdir().unwrap();
        let [folder] = checkouts(parent.path(), ["shared"]);
        let places = Places { program: Some(folder.join("target/ub")), ..Places::default() };
        fs::set_permissions(&folder, Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(places.search(), None);
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(places.search(), Some(folder));
    }

    #[test]
    fn what_others_can_change_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert!(!others_may_write(path));
        fs::set_permissions(path, Permissions::from_mode(0o757)).unwrap();
        assert!(others_may_write(path));
        assert!(others_may_write(&path.join("absent")));
    }

    #[test]
    fn tests_find_the_checkout_they_are_of() {
        let found = checkout().expect("cargo says where the package is");
        assert!(found.join("vm-lab/src/checkout.rs").is_file(), "{}", found.display());
    }
}

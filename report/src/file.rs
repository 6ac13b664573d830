//! Report files.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::model::{Report, SCHEMA};

/// Why a file is not a report that this program can show.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        error: io::Error,
    },
    /// It is not the JSON that `ub run --report FILE` writes.
    #[error("{} is not a report ({error}); make one with `ub run --report FILE -- CMD`", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// It was written by another version of this program.
    #[error("{} has schema {found}, this ub reads schema {SCHEMA}; use the ub that wrote it", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u64,
    },
}

/// Reads a report.
///
/// # Errors
/// See [`ReadError`].
pub fn read(path: &Path) -> Result<Report, ReadError> {
    #[derive(Deserialize)]
    struct Head {
        schema: u64,
    }

    let io = |error| ReadError::Io { path: path.to_owned(), error };
    let format = |error| ReadError::Format { path: path.to_owned(), error };
    let text = fs::read_to_string(path).map_err(io)?;
    let head: Head = serde_json::from_str(&text).map_err(format)?;
    if head.schema != u64::from(SCHEMA) {
        return Err(ReadError::Schema { path: path.to_owned(), found: head.schema });
    }
    serde_json::from_str(&text).map_err(format)
}

/// Writes `content` to `path` so that a reader sees a whole file, old or new,
/// at any moment. What is there and no regular file, such as `/dev/null` or a
/// pipe, is written to and stays what it is; so does a symbolic link. What is named
/// as open already, such as `/dev/stdout`, is added to.
///
/// # Errors
/// What the file system answers; a regular file at `path` is unchanged then.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if is_open_already(path) || fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return fs::OpenOptions::new().append(true).open(path)?.write_all(content);
    }
    // Fails where there is nothing yet.
    let target = fs::canonicalize(path);
    let path = target.as_deref().unwrap_or(path);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let mut file = tempfile::Builder::new()
        .prefix(".ub-report-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(dir.unwrap_or(Path::new(".")))?;
    file.write_all(content)?;
    file.persist(path)?;
    Ok(())
}

/// Whether `path` stands for a descriptor. The file behind that is somebody's log, of
/// which nothing may be replaced.
fn is_open_already(path: &Path) -> bool {
    ["/dev/stdout", "/dev/stderr", "/dev/fd", "/proc/self/fd"]
        .iter()
        .any(|name| path.starts_with(name))
}

impl Report {
    /// The report as one line of JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec(self).expect("maps have strings as keys");
        json.push(b'\n');
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Source, Totals};

    fn report() -> Report {
        let mut report = Report::new(Source::Session, vec!["a".into()], Default::default());
        report.totals = Totals { syscalls: 10, ridden: 8, ..Default::default() };
        report.totals.settle();
        report
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        write(&path, b"old").unwrap();
        write(&path, &report().to_json()).unwrap();
        assert_eq!(read(&path).unwrap(), report());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write(&dir.path().join("absent/report.json"), b"").is_err());
    }

    #[test]
    fn links_and_what_is_no_file_stay_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, pipe) =
            (dir.path().join("file"), dir.path().join("link"), dir.path().join("pipe"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");

        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read(pipe).unwrap()
        });
        write(&pipe, b"through").unwrap();
        assert_eq!(reader.join().unwrap(), b"through");
        assert!(write(dir.path(), b"").is_err());
    }

    #[test]
    fn what_is_not_a_report_is_refused_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        let said = |content: &str| {
            fs::write(&path, content).unwrap();
            read(&path).unwrap_err().to_string()
        };
        assert!(said("hello").contains("ub run --report"));
        assert!(said("{}").contains("schema"));
        assert!(said(r#"{"schema": 7}"#).contains("schema 7, this ub reads schema 1"));
        assert!(read(&dir.path().join("absent")).unwrap_err().to_string().contains("cannot read"));
    }

    #[test]
    fn fields_that_older_files_lack_have_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        fs::write(&path, r#"{"schema":1,"syscalls":5,"exits":{"poll":2}}"#).unwrap();
        let report = read(&path).unwrap();
        assert_eq!(report.totals.syscalls, 5);
        assert_eq!(report.totals.exits["poll"], 2);
        assert!(report.hot_gaps.is_empty());
    }
}

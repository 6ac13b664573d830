//! What a program needs to start: its interpreter and shared libraries.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use goblin::elf::Elf;

use crate::command;
use crate::error::{Context, LabError, Result};

/// The loader for libraries, which name none themselves (x86-64 psABI).
const DEFAULT_LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// Loaded by glibc by name, when a thread is cancelled or a backtrace taken.
const LOADED_BY_GLIBC: &str = "libgcc_s.so.1";

/// Everything that must be present for `file` to start, by the paths under
/// which the loader looks for it. Empty for a static program and for what is neither ELF
/// nor a script.
pub(crate) fn requirements(file: &Path) -> Result<BTreeSet<PathBuf>> {
    let bytes = fs::read(file).context("reading", file)?;
    if let Some(interpreters) = script_interpreters(&bytes) {
        return Ok(interpreters.into_iter().collect());
    }
    if !bytes.starts_with(goblin::elf::header::ELFMAG) {
        return Ok(BTreeSet::new());
    }
    let elf = Elf::parse(&bytes).map_err(|error| {
        LabError::Unsupported(format!("{} is a damaged ELF file: {error}", file.display()))
    })?;
    if elf.header.e_machine != goblin::elf::header::EM_X86_64 {
        return Err(LabError::Unsupported(format!("{} is not an x86-64 program", file.display())));
    }
    if elf.interpreter.is_none() && elf.libraries.is_empty() {
        return Ok(BTreeSet::new());
    }
    let loader = Path::new(elf.interpreter.unwrap_or(DEFAULT_LOADER));
    let mut required = BTreeSet::from([loader.to_owned()]);
    if !elf.libraries.is_empty() {
        // The loader itself knows best: run paths, the cache, dependencies of
        // dependencies. It maps the files but runs none of their code. Variants
        // for this host's CPU are left out, the guest's may be another.
        let listing = command::output(
            Command::new(loader).args(["--glibc-hwcaps-mask", "none", "--list"]).arg(file),
        )?;
        required.extend(parse_listing(&listing, file)?);
    }
    let by_name = required
        .iter()
        .find(|path| path.file_name().is_some_and(|name| name == "libc.so.6"))
        .map(|libc| libc.with_file_name(LOADED_BY_GLIBC))
        .filter(|path| path.exists());
    required.extend(by_name);
    Ok(required)
}

/// Paths from the output of `ld.so --list`.
fn parse_listing(listing: &str, file: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in listing.lines() {
        let Some((name, found)) = line.trim().split_once(" => ") else { continue };
        let path = found.rsplit_once(" (").map_or(found, |(path, _)| path);
        if !path.starts_with('/') {
            return Err(LabError::Setup(format!(
                "{} needs {name}, which is not installed",
                file.display()
            )));
        }
        paths.push(PathBuf::from(path));
    }
    Ok(paths)
}

/// Interpreter of a `#!` script; for `#!/usr/bin/env NAME` also NAME.
fn script_interpreters(bytes: &[u8]) -> Option<Vec<PathBuf>> {
    let line = bytes.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_whitespace();
    let interpreter = PathBuf::from(words.next()?);
    let mut found = Vec::new();
    if interpreter.file_name().is_some_and(|name| name == "env") {
        found.extend(words.next().and_then(crate::prerequisites::find_program));
    }
    found.push(interpreter);
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_needs_loader_and_libraries() {
        let required = requirements(Path::new("/bin/sh")).unwrap();
        let names: Vec<_> = required.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        for name in ["ld-linux-x86-64.so.2", "libc.so.6", LOADED_BY_GLIBC] {
            assert!(names.contains(&name), "{name} not in {names:?}");
        }
    }

    #[test]
    fn missing_libraries_are_named() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibx.so.3 => not found\n";
        let error = parse_listing(listing, Path::new("/opt/prog")).unwrap_err();
        assert!(error.to_string().contains("/opt/prog needs libx.so.3"), "{error}");
    }

    #[test]
    fn listings_give_resolved_paths_only() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/a/libc.so.6 (0x7f)\n\t/lib64/ld.so (0x7f)\n";
        assert_eq!(
            parse_listing(listing, Path::new("x")).unwrap(),
            [PathBuf::from("/lib/a/libc.so.6")]
        );
    }

    #[test]
    fn scripts_need_their_interpreters() {
        assert_eq!(script_interpreters(b"#!/bin/sh -e\ntrue").unwrap(), [PathBuf::from("/bin/sh")]);
        let env = script_interpreters(b"#! /usr/bin/env sh\n").unwrap();
        assert_eq!(env.len(), 2);
        assert!(env[0].ends_with("sh"), "{env:?}");
        assert_eq!(script_interpreters(b"\x7fELF"), None);
    }

    #[test]
    fn damaged_elf_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), b"\x7fELF\x02\x01").unwrap();
        let error = requirements(file.path()).unwrap_err();
        assert!(matches!(error, LabError::Unsupported(_)), "{error}");
    }
}

//! `ub coverage` on the programs whose code the translator promises to know.

use std::path::{Path, PathBuf};
use std::process::Command;

use ub_bench::demo::{find_program, server_folder};
use ub_runtime::coverage::{Coverage, measure};
use ub_translator::CpuFeatures;

/// Least share of the instructions of each program that is translated.
const PROMISED: f64 = 0.99;

/// The C library that this process uses.
fn libc() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("proc is mounted");
    maps.lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.ends_with("/libc.so.6"))
        .map(PathBuf::from)
        .expect("this process uses a C library")
}

/// Files of Debian's servers and tools, which `make deps` unpacks where they are
/// not installed.
fn servers() -> Vec<PathBuf> {
    let program = |name| find_program(name).unwrap_or_else(|error| panic!("{error}"));
    let folder = server_folder().expect("HOME is set");
    let library = folder.join("usr/lib/x86_64-linux-gnu/libsqlite3.so.0");
    assert!(library.exists(), "{} is missing; `make deps` brings it", library.display());
    let programs = ["redis-server", "nginx", "memcached", "sqlite3"].map(program);
    programs.into_iter().chain([library]).collect()
}

fn assert_covered(path: &Path) -> Coverage {
    let coverage = measure(path, CpuFeatures::all()).expect("the program can be measured");
    println!("{}: {:.3} %", path.display(), 100.0 * coverage.share());
    assert!(
        coverage.share() >= PROMISED,
        "{}: {:.3} % translated; most often missing: {:#?}",
        path.display(),
        100.0 * coverage.share(),
        &coverage.top()[..coverage.missing.len().min(10)]
    );
    coverage
}

#[test]
fn nearly_all_of_the_c_library_is_translated() {
    let coverage = assert_covered(&libc());
    assert!(coverage.translated > 100_000, "too little code to mean much: {coverage:?}");
    assert!(coverage.system_calls > 100, "the C library makes system calls: {coverage:?}");
}

#[test]
fn nearly_all_of_the_servers_is_translated() {
    for path in servers() {
        let coverage = assert_covered(&path);
        assert!(coverage.translated > 10_000, "too little code to mean much: {coverage:?}");
        // The sweep stays in step with the code.
        assert_eq!(coverage.resyncs, 0);
    }
}

#[test]
fn the_command_prints_shares_and_missing_forms() {
    let ub = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ub"));
        let output = command.arg("coverage").args(arguments).output().expect("ub starts");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let libc = libc();
    let libc = libc.to_str().expect("the path is UTF-8");
    let (status, out, error) = ub(&["--top", "3", libc, libc]);
    assert_eq!((status, error.as_str()), (Some(0), ""));
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].contains("coverage") && lines[0].ends_with("file"), "{out}");
    assert!(lines[1].ends_with(libc) && lines[2].ends_with(libc), "{out}");
    assert!(lines[3].ends_with("together"), "{out}");
    assert!(out.contains("missing forms, 3 of "), "{out}");
    assert_eq!(lines.len(), 4 + 2 + 3, "{out}");
    // x87 is what the C library has and the translator has not.
    assert!(lines[6].contains("X87"), "{out}");

    let (status, host, _) = ub(&["--cpu", "host", "--top", "0", libc]);
    assert_eq!((status, host.lines().count()), (Some(0), 2));

    let (status, out, error) = ub(&["/nonexistent"]);
    assert_eq!((status, out.as_str()), (Some(125), ""));
    assert!(error.starts_with("ub: cannot read /nonexistent"), "{error}");
    assert_eq!(ub(&[]).0, Some(125));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

//! What the documents name must be there: commands, options, targets, tests, files.
//! `vm_documents.rs` runs the commands.

#[path = "support/documents.rs"]
mod documents;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use documents::{documents, repository};
use ub_runtime::abi::Stop;

/// Folders whose files the documents name.
const FOLDERS: [&str; 13] = [
    "benches",
    "debian",
    "docs",
    "ebpf-fallback",
    "kernel-patch",
    "redis-nginx-bench",
    "report",
    "runtime",
    "scripts",
    "translator",
    "vm-lab",
    "LICENSES",
    ".config",
];

#[test]
fn every_block_of_commands_is_run_or_says_why_not() {
    let mut problems = Vec::new();
    for document in documents() {
        for block in &document.blocks {
            let reason = block.info.strip_prefix("sh no-test:").map(str::trim);
            let known = matches!(block.info.as_str(), "text" | "sh guest")
                || reason.is_some_and(|reason| !reason.is_empty());
            if !known {
                problems.push(format!("{}: \"{}\"", block.place, block.info));
            }
        }
    }
    assert!(
        problems.is_empty(),
        "blocks are `text`, `sh guest` (run by vm_documents.rs) or `sh no-test: REASON`:\n{}",
        problems.join("\n")
    );
}

/// Every command of a document, with where it stands.
fn commands() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for document in documents() {
        for block in document.blocks.iter().filter(|block| block.info.starts_with("sh")) {
            found.extend(block.commands().into_iter().map(|line| (block.place.clone(), line)));
        }
        let spans = document.code_spans().into_iter();
        found.extend(spans.map(|span| (document.name.clone(), span)));
    }
    found
}

/// What `ub WORDS --help` says, if there is such a subcommand.
fn help(words: &[&str]) -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_ub")).args(words).arg("--help").output();
    let output = output.expect("ub can be started");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether the list of subcommands in a help text has `name`.
fn lists(help: &str, name: &str) -> bool {
    let commands = help.split("Commands:\n").nth(1).unwrap_or_default();
    let mut lines = commands.lines().take_while(|line| !line.is_empty());
    lines.any(|line| line.split_whitespace().next() == Some(name))
}

fn is_name(word: &str) -> bool {
    !word.starts_with('-') && word.chars().all(|c| c.is_ascii_lowercase())
}

#[test]
fn subcommands_and_options_exist() {
    let mut problems = Vec::new();
    let mut seen = 0;
    for (place, command) in commands() {
        let Some(rest) = command.strip_prefix("ub ") else { continue };
        // What follows ` -- ` belongs to the program.
        let words: Vec<&str> = rest.split_whitespace().take_while(|word| *word != "--").collect();
        let Some(subcommand) = words.first().filter(|word| is_name(word)) else { continue };
        seen += 1;
        let Some(mut help_text) = help(&[subcommand]) else {
            problems.push(format!("{place}: no such subcommand: ub {subcommand}"));
            continue;
        };
        if let Some(second) = words.get(1).filter(|word| lists(&help_text, word)) {
            help_text = help(&[subcommand, second]).expect("it is listed");
        }
        for option in words.iter().filter(|word| word.starts_with('-')) {
            let name = option.split('=').next().unwrap_or(option).trim_end_matches([')', ';', ',']);
            if !help_text.split([' ', ',', '\n', '[', '=']).any(|word| word == name) {
                problems.push(format!("{place}: {command}: no option {name}"));
            }
        }
    }
    assert!(seen > 40, "only {seen} commands were found");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn options_of_the_demo_exist() {
    // The instruction counts are the demo's, and `ub bench` hands it the options.
    let help_text = help(&["bench", "instructions", "--"]).expect("the demo has a help text");
    let mut seen = 0;
    for (place, command) in commands() {
        let Some(rest) = command.strip_prefix("ub-demo ") else { continue };
        seen += 1;
        for option in rest.split_whitespace().filter(|word| word.starts_with("--")) {
            assert!(
                help_text.split([' ', '\n']).any(|word| word == option),
                "{place}: ub-demo has no {option}"
            );
        }
    }
    assert!(seen > 3, "only {seen} commands were found");
}

/// Folders of the workspace's packages, by the packages' names.
fn packages() -> BTreeMap<String, PathBuf> {
    let workspace = fs::read_to_string(repository().join("Cargo.toml")).expect("it is there");
    let members = workspace.split("members = [").nth(1).and_then(|rest| rest.split(']').next());
    let folders = members.expect("it has members").split('"').skip(1).step_by(2);
    let package = |folder: &str| {
        let folder = repository().join(folder);
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("members have one");
        let name = manifest.lines().find_map(|line| line.strip_prefix("name = ")).expect("a name");
        (name.trim_matches('"').to_owned(), folder)
    };
    folders.map(package).collect()
}

#[test]
fn packages_and_tests_of_cargo_exist() {
    let packages = packages();
    let mut seen = 0;
    for (place, command) in commands() {
        let Some((_, rest)) = command.split_once("cargo test ") else { continue };
        seen += 1;
        let words: Vec<&str> = rest.split_whitespace().collect();
        let after =
            |option| words.iter().position(|word| *word == option).and_then(|at| words.get(at + 1));
        let package = after("-p").unwrap_or_else(|| panic!("{place}: {command}: which package?"));
        let folder = packages.get(*package).unwrap_or_else(|| panic!("{place}: no {package}"));
        if let Some(test) = after("--test") {
            let tests = folder.join("tests");
            let there = [format!("{test}.rs"), format!("{test}/main.rs")];
            assert!(there.iter().any(|file| tests.join(file).exists()), "{place}: no test {test}");
        }
    }
    assert!(seen > 3, "only {seen} commands were found");
}

/// Adds the names of the functions in the Rust files in and below `folder`.
fn functions(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
            let text = fs::read_to_string(&path).expect("sources are readable");
            let heads = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn "));
            names.extend(heads.filter_map(|head| head.split('(').next()).map(str::to_owned));
        }
    }
}

#[test]
fn tests_in_guests_exist() {
    let mut names = BTreeSet::new();
    for folder in packages().values() {
        functions(&folder.join("tests"), &mut names);
    }
    let mut seen = 0;
    for (place, name) in commands().into_iter().filter(|(_, span)| span.starts_with("vm_")) {
        seen += 1;
        let found = match name.strip_suffix('*') {
            Some(start) => names.iter().any(|name| name.starts_with(start)),
            None => names.contains(name.trim_end_matches(".rs")),
        };
        assert!(found, "{place}: no test {name}");
    }
    assert!(seen > 20, "only {seen} tests were found");
}

#[test]
fn targets_of_make_exist() {
    let makefile = fs::read_to_string(repository().join("Makefile")).expect("it is there");
    let mut seen = 0;
    for (place, command) in commands() {
        let Some(target) = command.strip_prefix("make ").and_then(|rest| rest.split(' ').next())
        else {
            continue;
        };
        if target.starts_with('-') || !target.chars().all(|c| c.is_ascii_lowercase() || c == '-') {
            continue;
        }
        seen += 1;
        let rule = format!("\n{target}:");
        assert!(makefile.contains(&rule), "{place}: make has no target {target}");
    }
    assert!(seen > 20, "only {seen} targets were found");
}

/// Whether there is a file of that name; `tests/vm_*.rs` is any that starts so.
fn exists(path: &str) -> bool {
    let Some((start, _)) = path.split_once('*') else { return repository().join(path).exists() };
    let (folder, start) = start.rsplit_once('/').unwrap_or(("", start));
    fs::read_dir(repository().join(folder)).is_ok_and(|mut entries| {
        entries.any(|entry| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(start))
        })
    })
}

#[test]
fn files_exist() {
    let mut seen = 0;
    let mut problems = Vec::new();
    for document in documents() {
        // Markdown links, which are relative to the document, then paths in backticks.
        let folder = document.name.rsplit_once('/').map_or("", |(folder, _)| folder);
        let links = document.text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let links = links.map(|link| link.split('#').next().unwrap_or(link).to_owned());
        let links = links.filter(|link| !link.is_empty() && !link.contains("://"));
        let links = links.map(|link| format!("{folder}/{link}").trim_start_matches('/').to_owned());
        let spans = document.code_spans().into_iter().filter(|span| {
            let first = span.split('/').next().unwrap_or("");
            span.contains('/') && FOLDERS.contains(&first) && !span.contains(' ')
        });
        for path in links.chain(spans) {
            seen += 1;
            if !exists(&path) {
                problems.push(format!("{}: {path}", document.name));
            }
        }
    }
    assert!(seen > 40, "only {seen} paths were found");
    problems.dedup();
    assert!(problems.is_empty(), "no such file:\n{}", problems.join("\n"));
}

/// Numbers as `45h`, however many zeros are in front.
fn without_zeros(text: &str) -> String {
    let is_hex = |digits: &str| digits.chars().all(|c| c.is_ascii_hexdigit());
    text.split_inclusive(|c: char| !c.is_ascii_alphanumeric())
        .map(|word| match word.split_once('h') {
            Some((digits, _)) if is_hex(digits) => word.trim_start_matches('0'),
            _ => word,
        })
        .collect()
}

/// The listing is explained line by line, so it cannot be the translator's own output.
#[test]
fn the_listing_is_that_of_the_translator() {
    let made = fs::read_to_string(repository().join("translator/filetests/gap.txt"));
    let made = without_zeros(&made.expect("it is there"));
    let made: BTreeSet<&str> = made.lines().map(str::trim).collect();
    let document = documents().into_iter().find(|d| d.name == "docs/how-a-fragment-is-made.md");
    let blocks = document.expect("it is there").blocks;
    let mut seen = 0;
    for block in blocks.iter().filter(|block| block.info == "text") {
        // An address, what is there, and words about it, with wide gaps between.
        for line in block.lines.iter().filter(|line| line.starts_with(|c: char| c.is_ascii_digit()))
        {
            let mut parts = line.split("  ").map(str::trim).filter(|part| !part.is_empty());
            let (first, second) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
            let shown = match (first.split_once(' '), second) {
                (Some((address, instruction)), _) if !instruction.starts_with("->") => {
                    format!("{address}  {instruction}")
                }
                (Some(_), _) => first.to_owned(),
                (None, instruction) => format!("{first}  {instruction}"),
            };
            let shown = without_zeros(&shown);
            // Where the jump at the end leads is filled in later.
            let is_made = made.contains(shown.as_str())
                || shown.ends_with("jmp") && made.iter().any(|line| line.starts_with(&shown));
            assert!(is_made, "{}: `{shown}` is not in translator/filetests/gap.txt", block.place);
            seen += 1;
        }
    }
    assert!(seen > 30, "only {seen} lines were found");
}

/// Whoever reads why a ride ended must find out what that means.
#[test]
fn reasons_are_explained() {
    let operating = documents().into_iter().find(|document| document.name == "docs/operating.md");
    let spans = operating.expect("there is a guide").code_spans();
    let missing: Vec<_> = Stop::ALL
        .iter()
        .map(|stop| stop.name())
        .filter(|name| spans.iter().all(|span| span != name))
        .collect();
    assert!(missing.is_empty(), "docs/operating.md does not explain {missing:?}");
}

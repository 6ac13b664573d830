//! What the documents name must be there: commands, options, targets, files.
//! `vm_documents.rs` runs the commands.

#[path = "support/documents.rs"]
mod documents;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use documents::{documents, repository};

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

fn help(subcommand: &str) -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_ub")).args([subcommand, "--help"]).output();
    let output = output.expect("ub can be started");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn subcommands_and_options_exist() {
    let mut helps = BTreeMap::new();
    let mut problems = Vec::new();
    let mut seen = 0;
    for (place, command) in commands() {
        let Some(rest) = command.strip_prefix("ub ") else { continue };
        // What follows ` -- ` belongs to the program.
        let words: Vec<&str> = rest.split_whitespace().take_while(|word| *word != "--").collect();
        let Some(subcommand) = words
            .first()
            .filter(|word| !word.starts_with('-') && word.chars().all(|c| c.is_ascii_lowercase()))
        else {
            continue;
        };
        seen += 1;
        let help = helps.entry((*subcommand).to_owned()).or_insert_with(|| help(subcommand));
        let Some(help) = help else {
            problems.push(format!("{place}: no such subcommand: ub {subcommand}"));
            continue;
        };
        // Those with subcommands of their own have options there.
        if help.contains("Commands:") {
            continue;
        }
        for option in words.iter().filter(|word| word.starts_with("--")) {
            let name = option.split('=').next().unwrap_or(option).trim_end_matches([')', ';', ',']);
            if !help.contains(name) {
                problems.push(format!("{place}: ub {subcommand} has no {name}"));
            }
        }
    }
    assert!(seen > 40, "only {seen} commands were found");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
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

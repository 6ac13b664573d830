//! The documents of the repository, taken apart for the tests that keep them true.

use std::fs;
use std::path::{Path, PathBuf};

/// A fenced block.
#[derive(Debug)]
pub struct Block {
    /// File and line, for messages.
    pub place: String,
    /// What stands behind the opening fence.
    pub info: String,
    /// The lines between the fences.
    pub lines: Vec<String>,
}

/// A document.
#[derive(Debug)]
pub struct Document {
    /// Relative to the repository.
    pub name: String,
    /// The whole text.
    pub text: String,
    /// Its fenced blocks.
    pub blocks: Vec<Block>,
}

/// The top folder of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Markdown files at the top, in docs/ and in kernel-patch/, README.md first.
pub fn documents() -> Vec<Document> {
    let mut names = Vec::new();
    for folder in ["", "docs", "docs/results", "kernel-patch/module", "kernel-patch/linux-6.12"] {
        let Ok(entries) = fs::read_dir(repository().join(folder)) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().into_string().expect("names are UTF-8");
            if name.ends_with(".md") {
                names.push(Path::new(folder).join(name).to_string_lossy().into_owned());
            }
        }
    }
    names.sort_by_key(|name| (name != "README.md", name.clone()));
    names.iter().map(|name| document(name)).collect()
}

fn document(name: &str) -> Document {
    let text = fs::read_to_string(repository().join(name)).expect("documents are readable");
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (index, line) in text.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), open) {
            (Some(info), false) => {
                let place = format!("{name}:{}", index + 1);
                blocks.push(Block { place, info: info.trim().to_owned(), lines: Vec::new() });
                open = true;
            }
            (Some(_), true) => open = false,
            (None, true) => blocks.last_mut().expect("one is open").lines.push(line.to_owned()),
            (None, false) => {}
        }
    }
    assert!(!open, "{name}: a block is not closed");
    Document { name: name.to_owned(), text, blocks }
}

impl Block {
    /// Its commands, without comments.
    pub fn commands(&self) -> Vec<String> {
        let lines = self.lines.iter().map(|line| line.split(" #").next().unwrap_or("").trim());
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
    }
}

impl Document {
    /// What stands between backticks in the text outside of blocks.
    pub fn code_spans(&self) -> Vec<String> {
        let mut outside = String::new();
        let mut open = false;
        for line in self.text.lines() {
            if line.trim_start().starts_with("```") {
                open = !open;
            } else if !open {
                outside.push_str(line);
                outside.push('\n');
            }
        }
        // A span may be broken over two lines.
        outside.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ")).collect()
    }
}

//! Emitted code, checked in: each file of `filetests/` holds user code and
//! the fragment made from it, so that changes of code generation show in
//! review. `UB_BLESS=1` rewrites the files from their heads.
//!
//! A file starts with its head, up to the first empty line:
//!
//! ```text
//! # what it shows
//! at 401000                    address of the first byte
//! bytes 48 8b 07 c3            the code; may be repeated
//! predict 401003 401000        branch, then its targets; may be repeated
//! ```

use std::fmt::Write;
use std::path::{Path, PathBuf};

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use ub_translator::fragment::{Fragment, Translated, Unsupported};
use ub_translator::verifier::{Features, Policy, verify};
use ub_translator::{CpuFeatures, Options, SliceSource, translate};

struct Head {
    text: String,
    at: u64,
    bytes: Vec<u8>,
    options: Options,
}

fn hex(word: &str) -> u64 {
    u64::from_str_radix(word, 16).unwrap_or_else(|_| panic!("{word} is not a hexadecimal number"))
}

fn parse(contents: &str) -> Head {
    let mut head = Head {
        text: String::new(),
        at: 0,
        bytes: Vec::new(),
        options: Options::new(CpuFeatures::all()),
    };
    for line in contents.lines().take_while(|line| !line.is_empty()) {
        let _ = writeln!(head.text, "{line}");
        let mut words = line.split_whitespace();
        match words.next() {
            Some("#") => {}
            Some("at") => head.at = hex(words.next().expect("an address")),
            Some("bytes") => head.bytes.extend(words.map(|word| hex(word) as u8)),
            Some("predict") => {
                let branch = hex(words.next().expect("a branch"));
                head.options.predictions.targets.insert(branch, words.map(hex).collect());
            }
            _ => panic!("unknown line in a head: {line}"),
        }
    }
    head
}

fn list(out: &mut String, code: &[u8], ip: u64) {
    let mut formatter = IntelFormatter::new();
    formatter.options_mut().set_space_after_operand_separator(true);
    for instruction in Decoder::with_ip(64, code, ip, DecoderOptions::NONE).iter() {
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        let _ = writeln!(out, "  {:04x}  {text}", instruction.ip());
    }
}

fn describe(head: &Head) -> String {
    let mut out = head.text.clone();
    out.push_str("\nuser\n");
    list(&mut out, &head.bytes, head.at);
    let mut source = SliceSource { address: head.at, bytes: &head.bytes };
    match translate(head.at, &mut source, &head.options) {
        Ok(fragment) => describe_fragment(&mut out, fragment),
        Err(error) => {
            let _ = writeln!(out, "\n{error}");
        }
    }
    out
}

fn describe_fragment(out: &mut String, fragment: Fragment<Translated>) {
    let parts = fragment.parts();
    out.push_str("\nfragment\n");
    list(out, &parts.code, 0);
    out.push_str("\nfixups\n");
    for fixup in &parts.fixups {
        let _ = writeln!(out, "  {:04x} -> {:04x}", fixup.fault, fixup.landing);
    }
    out.push_str("\nexits\n");
    for (id, exit) in parts.exits.iter().enumerate() {
        let _ = write!(out, "  {id}  {:04x}  {:?}", exit.user_ip, exit.kind);
        if exit.reason != Unsupported::None {
            let _ = write!(out, " {:?}", exit.reason);
        }
        out.push('\n');
    }
    if let Err(error) = verify(fragment, &Policy::new(Features::all())) {
        let _ = writeln!(out, "\n{error}");
    }
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("the folder is readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    files
}

#[test]
fn emitted_code_is_as_checked_in() {
    let bless = std::env::var_os("UB_BLESS").is_some();
    let files = files();
    assert!(files.len() >= 10, "only {} file tests found", files.len());
    let mut changed = Vec::new();
    for file in &files {
        let contents = std::fs::read_to_string(file).expect("the file is readable");
        let now = describe(&parse(&contents));
        assert!(!now.contains("refused at"), "{}: {now}", file.display());
        if now != contents {
            if bless {
                std::fs::write(file, now).expect("the file is writable");
            } else {
                changed.push(format!("{}:\n{now}", file.display()));
            }
        }
    }
    assert!(
        changed.is_empty(),
        "emitted code changed; review, then UB_BLESS=1\n{}",
        changed.join("\n")
    );
}

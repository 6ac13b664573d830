//! `runtime/src/abi.rs` and `kernel-patch/module/uapi/ub.h` must agree: the
//! header's names are listed here by a strict reader, their values come from
//! gcc, and the complete lists are compared.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use ub_runtime::abi;

fn header() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel-patch/module/uapi/ub.h")
}

/// Names that a header declares.
#[derive(Debug, Default)]
struct Names {
    /// Structure tags with their members.
    structs: BTreeMap<String, Vec<String>>,
    /// Enumerators and object-like macros.
    constants: Vec<String>,
}

/// Removes comments, keeping line structure.
fn without_comments(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("/*") {
        out.push_str(&rest[..start]);
        let end = rest[start..].find("*/").expect("comment is closed") + start + 2;
        out.extend(rest[start..end].chars().filter(|c| *c == '\n'));
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// Lists what the header declares; anything it does not understand panics,
/// so that nothing can slip through unread.
fn read_names(text: &str) -> Names {
    enum Inside {
        File,
        Struct(String),
        Enum,
    }
    let mut names = Names::default();
    let mut inside = Inside::File;
    for line in without_comments(text).lines().map(str::trim).filter(|line| !line.is_empty()) {
        match &inside {
            Inside::File => {
                if let Some(rest) = line.strip_prefix("#define ") {
                    let name = rest.split_whitespace().next().expect("macro has a name");
                    assert!(!name.contains('('), "function-like macro: {line}");
                    // The include guard has no value.
                    if name != "_UAPI_UB_H" {
                        names.constants.push(name.to_owned());
                    }
                } else if line.starts_with('#') {
                    let directive = line.split_whitespace().next().expect("not empty");
                    assert!(["#ifndef", "#include", "#endif"].contains(&directive), "{line}");
                } else if let Some(rest) = line.strip_prefix("struct ") {
                    let tag = rest.strip_suffix(" {").unwrap_or_else(|| panic!("{line}"));
                    names.structs.insert(tag.to_owned(), Vec::new());
                    inside = Inside::Struct(tag.to_owned());
                } else if line.starts_with("enum ") && line.ends_with('{') {
                    inside = Inside::Enum;
                } else {
                    panic!("not understood: {line}");
                }
            }
            Inside::Struct(_) | Inside::Enum if line == "};" => inside = Inside::File,
            Inside::Struct(tag) => {
                let declaration = line.strip_suffix(';').unwrap_or_else(|| panic!("{line}"));
                let (_, name) =
                    declaration.rsplit_once(char::is_whitespace).expect("type and name");
                let name = name.split('[').next().expect("not empty");
                assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{line}");
                names.structs.get_mut(tag).expect("inserted").push(name.to_owned());
            }
            Inside::Enum => {
                let name = line.trim_end_matches(',').split('=').next().expect("not empty").trim();
                assert!(name.starts_with("UB_") && !name.contains(' '), "{line}");
                names.constants.push(name.to_owned());
            }
        }
    }
    assert!(matches!(inside, Inside::File), "header ends inside a declaration");
    names
}

/// Compiles and runs a C program that prints every name with its value.
fn values_from_gcc(names: &Names) -> BTreeMap<String, String> {
    let mut program = format!(
        "#include <stdio.h>\n#include <stddef.h>\n#include \"{}\"\nint main(void)\n{{\n",
        header().display()
    );
    for (tag, fields) in &names.structs {
        writeln!(program, "printf(\"struct {tag} %zu\\n\", sizeof(struct {tag}));").unwrap();
        for field in fields {
            writeln!(
                program,
                "printf(\"struct {tag} {field} %zu+%zu\\n\", offsetof(struct {tag}, {field}), \
                 sizeof(((struct {tag} *)0)->{field}));"
            )
            .unwrap();
        }
    }
    for name in &names.constants {
        let (format, cast) =
            if name == "UB_DEVICE_PATH" { ("%s", "") } else { ("%llu", "(unsigned long long)") };
        writeln!(program, "printf(\"{name} {format}\\n\", {cast}({name}));").unwrap();
    }
    program.push_str("return 0;\n}\n");

    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("abi.c");
    let binary = dir.path().join("abi");
    std::fs::write(&source, program).unwrap();
    let compiler = Command::new("gcc")
        .args(["-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&binary)
        .arg(&source)
        .output()
        .expect("gcc runs");
    assert!(compiler.status.success(), "{}", String::from_utf8_lossy(&compiler.stderr));
    let output = Command::new(&binary).output().expect("program runs");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let mut values = BTreeMap::new();
    for line in text.lines() {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(values.insert(name.to_owned(), value.to_owned()).is_none(), "{name} twice");
    }
    values
}

/// What Rust believes, in the same words.
fn values_from_rust() -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut add = |name: String, value: String| {
        assert!(values.insert(name.clone(), value).is_none(), "{name} twice");
    };
    for layout in abi::LAYOUTS {
        add(format!("struct {}", layout.name), layout.size.to_string());
        for field in layout.fields {
            add(
                format!("struct {} {}", layout.name, field.name),
                format!("{}+{}", field.offset, field.size),
            );
        }
    }
    for (name, value) in abi::constants() {
        add(name.to_owned(), value.to_string());
    }
    add("UB_DEVICE_PATH".to_owned(), abi::DEVICE_PATH.to_owned());
    values
}

#[test]
fn rust_and_c_agree_on_every_name_and_value() {
    let names = read_names(&std::fs::read_to_string(header()).expect("the uapi header is there"));
    assert!(names.structs.len() > 5 && names.constants.len() > 20, "reader found too little");
    let c = values_from_gcc(&names);
    let rust = values_from_rust();
    let mut differences = String::new();
    for name in c.keys().chain(rust.keys().filter(|name| !c.contains_key(*name))) {
        if c.get(name) != rust.get(name) {
            writeln!(differences, "{name}: C {:?}, Rust {:?}", c.get(name), rust.get(name))
                .unwrap();
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn the_reader_sees_members_added_to_a_structure() {
    let names = read_names("struct a {\n\t__u64 x;\t/* one\n two */\n\t__u32 y[3];\n};\n");
    assert_eq!(names.structs["a"], ["x", "y"]);
}

#[test]
#[should_panic(expected = "not understood")]
fn the_reader_refuses_what_it_does_not_know() {
    read_names("typedef int ub_t;\n");
}

#[test]
fn labels_are_snake_case_and_distinct() {
    let mut labels: Vec<_> = abi::Stop::ALL.iter().map(|stop| stop.name()).collect();
    assert!(labels.iter().all(|l| l.chars().all(|c| c.is_ascii_lowercase() || c == '_')));
    labels.sort_unstable();
    labels.dedup();
    assert_eq!(labels.len(), abi::STOP_COUNT);
}

//! Compiles the BPF programs with clang.

use std::env;
use std::path::PathBuf;
use std::process::{Command, exit};

/// Where Debian keeps `asm/types.h`, which `linux/bpf.h` wants and which
/// clang does not look for when it compiles for BPF.
const ASM_HEADERS: &str = "/usr/include/x86_64-linux-gnu";

/// Sources in `bpf`, without their endings.
const PROGRAMS: [&str; 3] = ["profile", "filter", "packets"];

fn main() {
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-env-changed=CLANG");
    PROGRAMS.into_iter().for_each(compile);
}

fn compile(name: &str) {
    let clang = env::var_os("CLANG").unwrap_or_else(|| "clang".into());
    let output = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let source = format!("bpf/{name}.bpf.c");
    // The debugging information includes BTF, from which the loader learns
    // which fields of the kernel's structures are meant.
    let outcome = Command::new(&clang)
        .args([
            "-target",
            "bpf",
            "-mcpu=v3",
            "-O2",
            "-g",
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Werror",
        ])
        .args(["-idirafter", ASM_HEADERS, "-c", &source, "-o"])
        .arg(output.join(format!("{name}.bpf.o")))
        .output();
    match outcome {
        Ok(outcome) if outcome.status.success() => {}
        Ok(outcome) => fail(&format!(
            "{} cannot compile {source}; it needs libbpf-dev (run `make deps`):\n{}",
            clang.display(),
            String::from_utf8_lossy(&outcome.stderr)
        )),
        Err(error) => fail(&format!(
            "cannot run {}: {error}; install clang and libbpf-dev (run `make deps`)",
            clang.display()
        )),
    }
}

fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    exit(1);
}

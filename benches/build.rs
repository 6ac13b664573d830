//! Compiles the benchmarked C code as a distribution would.

fn main() {
    let sources = [
        "bytes", "calls", "control", "hash", "library", "pointers", "servers", "sort", "text",
        "vector",
    ];
    let mut build = cc::Build::new();
    for source in sources {
        let file = format!("c/{source}.c");
        println!("cargo:rerun-if-changed={file}");
        build.file(file);
    }
    // Not the flags of Cargo's profile: the guest's code is the same in tests.
    build
        .no_default_flags(true)
        .flag("-O2")
        .flag("-fPIC")
        .flag("-Wall")
        .flag("-Wextra")
        .warnings_into_errors(true)
        .compile("ub_kernels");
}

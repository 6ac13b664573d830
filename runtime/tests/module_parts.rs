//! Parts of the kernel module, compiled as programs, against models of them.

use std::path::Path;
use std::process::Command;

/// Compiles `NAME.c` of the module with `NAME_model.c` and runs that, which prints
/// nothing if they agree.
#[track_caller]
fn agrees_with_its_model(name: &str, arguments: &[&str]) {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let parts = manifest.join("tests/parts");
    let module = manifest.join("../kernel-patch/module");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}_model"));
    let compiled = Command::new("gcc")
        .args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror"])
        .arg("-fsanitize=address,undefined")
        .arg("-fno-sanitize-recover")
        .arg("-I")
        .arg(&parts)
        .arg("-I")
        .arg(&module)
        .arg("-o")
        .arg(&program)
        .arg(parts.join(format!("{name}_model.c")))
        .arg(module.join(format!("{name}.c")))
        .status();
    assert!(compiled.expect("gcc is installed").success());
    let output = Command::new(&program).args(arguments).output().expect("it was just made");
    let [stdout, stderr] = [output.stdout, output.stderr].map(String::from_utf8);
    assert_eq!((output.status.code(), stdout, stderr), (Some(0), Ok("".into()), Ok("".into())));
}

#[test]
fn every_part_of_the_code_is_watched_for_the_file_that_is_mapped_there() {
    agrees_with_its_model("watches", &["100000"]);
}

#[test]
fn what_is_seldom_left_for_is_not_reported() {
    agrees_with_its_model("misses", &[]);
}

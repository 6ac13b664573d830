//! What the kernel module watches of a program's code, against a model of it.

use std::path::Path;
use std::process::Command;

#[test]
fn every_part_of_the_code_is_watched_for_the_file_that_is_mapped_there() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let parts = manifest.join("tests/parts");
    let module = manifest.join("../kernel-patch/module");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("watches_model");
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
        .arg(parts.join("watches_model.c"))
        .arg(module.join("watches.c"))
        .status();
    assert!(compiled.expect("gcc is installed").success());
    let output = Command::new(&program).arg("100000").output().expect("it was just made");
    let [stdout, stderr] = [output.stdout, output.stderr].map(String::from_utf8);
    assert_eq!((output.status.code(), stdout, stderr), (Some(0), Ok("".into()), Ok("".into())));
}

//! Scripts that are run natively and with sessions, and must tell of the same steps.

use std::path::Path;

use ub_vm_lab::{Job, Outcome};

use super::{RESULTS, difference, result};

/// Adds a script of `tests/guest` that is told "native" or "ridden", then
/// `arguments`, and runs it as both. Each leaves its files in a folder of that name.
pub fn run_both_ways(job: Job, script: &str, arguments: &str) -> Job {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest");
    let place = format!("/usr/bin/{script}");
    let job = job.file(folder.join("steps.sh"), "/usr/bin/steps.sh");
    job.file(folder.join(script), &place).shell(format!(
        "for mode in native ridden; do\n\
             sh -e {place} $mode {arguments} >{RESULTS}/$mode.out || echo \"status $?\" >>{RESULTS}/$mode.out\n\
         done"
    ))
}

/// Prints the steps side by side, and fails unless they are equal and `least` of them.
#[track_caller]
pub fn assert_equal_steps(outcome: &Outcome, least: usize) {
    let (native, ridden) = (result(outcome, "native.out"), result(outcome, "ridden.out"));
    let mut others = ridden.lines();
    for native in native.lines() {
        let ridden = others.next().unwrap_or("-");
        let verdict = if native == ridden { "equal" } else { "DIFFERENT" };
        println!("{verdict:9} native {native:60} ub {ridden}");
    }
    let context = format!("{}\nlogs: {}", outcome.stderr_text(), outcome.directory.display());
    assert_eq!(difference("steps", &native, &ridden), None, "{context}");
    assert!(native.lines().count() >= least, "the script ended early: {native}\n{context}");
}

//! Shared by the tests that boot guests.

use ub_vm_lab::{Job, Lab, LabError, Outcome};

/// The lab with the init that was built with these tests.
pub fn lab() -> Lab {
    Lab::new()
        .expect("the host can be prepared")
        .with_guest_init(env!("CARGO_BIN_EXE_ub-guest-init"))
}

/// Runs a job that must deliver a result; shows the guest's log otherwise.
#[allow(dead_code, reason = "not every test binary needs both")]
#[track_caller]
pub fn run(job: &Job) -> Outcome {
    match lab().run(job) {
        Ok(outcome) => outcome,
        Err(error) => panic!("{error}"),
    }
}

/// Runs a job that must not deliver a result.
#[allow(dead_code, reason = "not every test binary needs both")]
#[track_caller]
pub fn fail(job: &Job) -> LabError {
    match lab().run(job) {
        Ok(outcome) => panic!("the job ended with {:?}\n{}", outcome.status, outcome.console),
        Err(error) => error,
    }
}

//! Guests that fail must never pass for successes, and the error must tell
//! what kind of failure it was.

mod common;

use std::fs;
use std::time::Duration;

use common::{fail, lab};
use ub_vm_lab::{Accelerator, Job, KernelVersion, LabError};

#[test]
fn a_panic_is_a_kernel_failure() {
    let job =
        Job::new("panic", KernelVersion::V6_12).kpti(false).shell("echo c > /proc/sysrq-trigger");
    match fail(&job) {
        LabError::GuestKernel(report) => {
            assert!(report.log_excerpt.contains("sysrq triggered crash"), "{report}");
            let saved = fs::read_to_string(report.directory.join("console.log")).unwrap();
            assert!(saved.contains("Kernel panic - not syncing"), "{saved}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_hanging_job_times_out_and_leaves_no_machine() {
    let limit = Duration::from_secs(10);
    let job = Job::new("hang", KernelVersion::V6_12)
        .kpti(false)
        .command(["sleep", "1000"])
        .timeout(limit);
    let error = fail(&job);
    let LabError::Timeout { limit: reported, report } = &error else { panic!("{error}") };
    assert_eq!(*reported, limit);
    let directory = report.directory.to_str().unwrap().as_bytes();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let uses_it = command.windows(directory.len()).any(|part| part == directory);
        assert!(!uses_it, "{} still runs", String::from_utf8_lossy(&command));
    }
}

#[test]
fn a_guest_that_powers_off_early_gives_no_result() {
    let job = Job::new("power-off", KernelVersion::V6_1)
        .kpti(false)
        .shell("echo o > /proc/sysrq-trigger; sleep 1000");
    let error = fail(&job.program("sleep"));
    assert!(matches!(error, LabError::NoResult { .. }), "{error}");
}

#[test]
fn a_command_that_does_not_exist_is_named() {
    let job =
        Job::new("no-command", KernelVersion::V6_12).kpti(false).command(["/no/such/program"]);
    match fail(&job) {
        LabError::GuestSetup { message, .. } => {
            assert!(message.contains("/no/such/program"), "{message}")
        }
        other => panic!("{other}"),
    }
}

#[test]
fn isolation_that_is_not_as_asked_is_an_error() {
    // The later of two contradicting parameters wins.
    let mut job = Job::new("mismatch", KernelVersion::V6_12).kpti(true).command(["true"]);
    job.kernel_args = vec!["pti=off".into()];
    let error = fail(&job);
    assert!(matches!(error, LabError::KptiMismatch { wanted: true, .. }), "{error}");
}

#[test]
fn host_side_mistakes_are_told_without_booting() {
    let version = KernelVersion::V6_12;
    let error = lab().run(&Job::new("empty", version)).unwrap_err();
    assert!(matches!(error, LabError::Unsupported(_)), "{error}");

    let job = Job::new("no-program", version).command(["true"]).program("no-such-program-anywhere");
    let error = lab().run(&job).unwrap_err();
    assert!(matches!(error, LabError::Setup(_)), "{error}");
    assert!(error.to_string().contains("no-such-program-anywhere"));

    let job = Job::new("no-file", version).command(["true"]).file("/no/such/file", "/x");
    let error = lab().run(&job).unwrap_err();
    assert!(matches!(error, LabError::Io { .. }), "{error}");
    assert!(error.to_string().contains("/no/such/file"));
}

#[test]
fn kvm_cannot_count_instructions() {
    let mut job = Job::new("icount-kvm", KernelVersion::V6_12).icount(0).command(["true"]);
    job.accelerator = Some(Accelerator::Kvm);
    let error = fail(&job);
    assert!(matches!(error, LabError::Unsupported(_)), "{error}");
}

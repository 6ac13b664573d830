//! The first process of a lab guest.
//!
//! Prepares a minimal system, runs the one command of the job, sends the
//! results to the host and powers off. Not meant to be started by hand: it
//! refuses to be anything but process 1.

mod kmemleak;
mod report;
mod run;
mod system;

use std::process::ExitCode;

use ub_vm_lab::protocol::{Frame, GuestJob, JOB_PATH, PROTOCOL};

use report::Reporter;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("ub-guest-init: runs only as process 1 of a lab guest (see the crate ub-vm-lab)");
        return ExitCode::from(125);
    }
    if let Err(message) = guest() {
        eprintln!("ub-guest-init: {message}");
    }
    // Only reached when powering off failed. Returning makes the kernel panic,
    // which the host reports.
    system::power_off();
    ExitCode::FAILURE
}

/// The whole life of the guest. An error here is one that cannot be sent to
/// the host as a frame; the console has it then.
fn guest() -> Result<(), String> {
    system::mount_all()?;
    let text = std::fs::read(JOB_PATH).map_err(|error| format!("{JOB_PATH}: {error}"))?;
    let job: GuestJob =
        serde_json::from_slice(&text).map_err(|error| format!("{JOB_PATH}: {error}"))?;
    if job.protocol != PROTOCOL {
        return Err(format!(
            "the host speaks protocol {}, this init {PROTOCOL}: rebuild ub-guest-init",
            job.protocol
        ));
    }
    for driver in &job.drivers {
        system::load_module(driver, "")?;
    }
    let reporter = Reporter::open()?;
    reporter.send(&Frame::Hello(system::hello()));
    let outcome = system::prepare().and_then(|()| run::job(&job, &reporter));
    if let Err(message) = outcome {
        reporter.send(&Frame::Failed(message));
    }
    reporter.finish()
}

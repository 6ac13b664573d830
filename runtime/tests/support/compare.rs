//! Programs that must behave in a session as they do natively.

use std::fmt::Write;

use serde_json::Value;
use ub_vm_lab::Outcome;

use super::{RESULTS, RUN_FUNCTIONS, difference, result, supervisor_failures};

/// A program run twice in a guest.
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    /// Names it in messages and files.
    pub name: &'static str,
    /// Program and arguments.
    pub command: &'static str,
    /// Least number of system calls that must ride. It shows that the ridden
    /// run tested a ride; what share a workload can reach is the demo's business.
    pub ridden: u64,
    /// Ends of rides that must have happened, by reason, at least this often.
    pub exits: &'static [(&'static str, u64)],
}

/// The shell function `compare NAME COMMAND...`.
const COMPARE: &str = r#"
compare() {
	local name=$1; shift
	echo "ub test: $name" >/dev/kmsg
	once $name.native "$@"
	once $name.ridden ub run --require --eager --report $name.json --log $name.log -v -- "$@"
	await_report $name.json
}
"#;

/// A script that runs all comparisons.
pub fn script(comparisons: &[Comparison]) -> String {
    let mut script = format!("cd {RESULTS}\n{RUN_FUNCTIONS}{COMPARE}");
    for Comparison { name, command, .. } in comparisons {
        writeln!(script, "compare {name} {command}").expect("strings take any text");
    }
    script
}

/// What one run of a program left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub status: String,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    fn read(outcome: &Outcome, name: &str) -> Self {
        let read = |suffix: &str| result(outcome, &format!("{name}.{suffix}"));
        Self { status: read("status").trim().to_owned(), stdout: read("out"), stderr: read("err") }
    }
}

impl Comparison {
    /// Everything that is wrong with this program's two runs, as text; empty
    /// if nothing is.
    pub fn complaints(&self, native: &Run, ridden: &Run, report: &Value) -> Vec<String> {
        let mut wrong = Vec::new();
        if native.status.is_empty() || native.stdout.contains("FAILED") || !native.stderr.is_empty()
        {
            wrong.push(format!("does not work natively: {native:?}"));
        }
        if native.status != ridden.status {
            wrong.push(format!("status natively {}, ridden {}", native.status, ridden.status));
        }
        wrong.extend(difference("stdout", &native.stdout, &ridden.stdout));
        wrong.extend(difference("stderr", &native.stderr, &ridden.stderr));
        let ridden = report["ridden"].as_u64().unwrap_or(0);
        if ridden < self.ridden {
            wrong.push(format!("{ridden} calls ridden, wanted {}", self.ridden));
        }
        for &(reason, least) in self.exits {
            let count = report["exits"][reason].as_u64().unwrap_or(0);
            if count < least {
                wrong.push(format!("{count} rides ended by {reason}, wanted {least}"));
            }
        }
        wrong.extend(supervisor_failures(report));
        wrong
    }
}

/// Fails with everything that is wrong with any of the programs.
#[track_caller]
pub fn check(comparisons: &[Comparison], outcome: &Outcome) {
    let mut message = String::new();
    for comparison in comparisons {
        let name = comparison.name;
        let native = Run::read(outcome, &format!("{name}.native"));
        let ridden = Run::read(outcome, &format!("{name}.ridden"));
        let mut report =
            serde_json::from_str(&result(outcome, &format!("{name}.json"))).unwrap_or(Value::Null);
        let wrong = comparison.complaints(&native, &ridden, &report);
        if !wrong.is_empty() {
            // Known, and too long to be read.
            report.as_object_mut().and_then(|report| report.remove("environment"));
            let log = result(outcome, &format!("{name}.log"));
            let log: Vec<_> = log.lines().rev().take(5).collect();
            writeln!(
                message,
                "{name}:\n  {}\n  report {report}\n  log {log:?}",
                wrong.join("\n  ")
            )
            .expect("strings take any text");
        }
    }
    assert!(
        message.is_empty(),
        "{message}stderr of the script: {}\nlogs: {}",
        outcome.stderr_text(),
        outcome.directory.display()
    );
}

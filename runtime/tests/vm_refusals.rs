//! What cannot be, and how it is said: other kernels, no module, no rights,
//! no program. The program runs natively wherever it can run at all.

mod support;

use std::path::Path;

use support::{Machine, lab, module_files, result, run, with_program};
use ub_vm_lab::{KernelVersion, Outcome};

/// One case of `tests/guest/refusals.sh`.
struct Case<'a> {
    outcome: &'a Outcome,
    name: String,
}

impl Case<'_> {
    fn read(&self, suffix: &str) -> String {
        result(self.outcome, &format!("{}.{suffix}", self.name))
    }

    /// Fails unless the case ended so. `stderr` holds what must be in its one
    /// line; without it there must be none.
    #[track_caller]
    fn ended(&self, status: i32, stdout: &str, stderr: Option<&str>) {
        let name = &self.name;
        let error = self.read("err");
        assert_eq!(self.read("status").trim(), status.to_string(), "{name}: {error}");
        assert_eq!(self.read("out"), stdout, "{name}: {error}");
        match stderr {
            None => assert_eq!(error, "", "{name}"),
            Some(part) => {
                assert!(error.contains(part), "{name}: no {part:?} in {error:?}");
                assert_eq!(error.lines().count(), 1, "{name}: {error:?}");
            }
        }
    }
}

#[track_caller]
fn says_what_is_wrong(machine: Machine) {
    let lab = lab();
    let other = match machine.kernel {
        KernelVersion::V6_12 => Machine::V6_1_KPTI_ON,
        _ => Machine::V6_12_KPTI_ON,
    };
    let foreign = module_files(&other.kernel(&lab), &[]).remove(0);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/refusals.sh");
    let job = with_program(machine.job(&lab, "refusals", false), "module", &["module.c"])
        .program("chmod")
        .program("env")
        .program("mount")
        .program("setpriv")
        .program("umount")
        .file(foreign, "/other/ub_gate.ko")
        .file(script, "/usr/bin/refusals.sh")
        .command(["sh", "-e", "/usr/bin/refusals.sh"]);
    let outcome = run(&lab, &job);
    let case = |name: &str| Case { outcome: &outcome, name: name.to_owned() };

    case("absent-program").ended(7, "hello\n", Some("running natively"));
    case("absent-required").ended(125, "", Some("not loaded"));
    case("present-program").ended(7, "hello\n", None);
    case("present-required").ended(7, "hello\n", None);
    for (state, notice) in [("absent", 1), ("present", 0)] {
        for (name, status) in [
            // A script for the shell, as `execvp` has it.
            ("not-elf", 3),
            ("short-elf", 127),
            ("missing", 127),
            ("missing-in-path", 127),
            ("not-executable", 126),
            ("folder", 126),
        ] {
            let env = case(&format!("env-{name}"));
            let ub = case(&format!("{state}-{name}"));
            assert_eq!(env.read("status").trim(), status.to_string(), "env {name}");
            assert_eq!(ub.read("status"), env.read("status"), "{}", ub.name);
            assert_eq!(ub.read("out"), env.read("out"), "{}", ub.name);
            let (ours, theirs) = (ub.read("err"), env.read("err"));
            assert_eq!(
                ours.lines().count(),
                theirs.lines().count() + notice,
                "{}: {ours}",
                ub.name
            );
            if let Some((_, reason)) = theirs.trim().rsplit_once(": ") {
                assert!(ours.contains(reason), "{}: no {reason:?} in {ours:?}", ub.name);
            }
        }
        assert_eq!(case(&format!("{state}-killed")).read("status").trim(), "137");
    }
    case("nobody").ended(7, "hello\n", Some("no permission"));
    case("nobody-required").ended(125, "", Some("no permission"));

    case("weakness").ended(7, "hello\n", Some("no policy for new_weakness"));
    case("weakness-required").ended(125, "", Some("no policy for new_weakness"));
    case("no-weakness").ended(7, "hello\n", None);

    case("other-kernel").ended(1, "ENOEXEC\n", None);
    // Which of its checks fails first is the kernel's business.
    let reason = |line: &str| {
        line.contains("ub_gate: ")
            && (line.contains("version") || line.contains("this_module section size"))
    };
    assert!(outcome.console.lines().any(reason), "the kernel's log does not say what is wrong");
    // Its symbols are the gate's.
    case("gate-missing").ended(1, "ENOENT\n", None);
    case("gate").ended(0, "ok\n", None);
    case("twice").ended(1, "EEXIST\n", None);
    case("ub").ended(0, "ok\n", None);
    case("needed").ended(1, "EAGAIN\n", None);
    case("unload").ended(0, "ok\n", None);
}

#[test]
fn vm_refusals_on_6_12() {
    says_what_is_wrong(Machine::V6_12_KPTI_OFF);
}

#[test]
fn vm_refusals_on_6_1() {
    says_what_is_wrong(Machine::V6_1_KPTI_ON);
}

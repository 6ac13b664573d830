//! What `ub` finds out about a machine, and does where rides are known not to pay: programs
//! are let go.

mod support;

use support::{Machine, assert_steps, lab, result, run, scripted};

/// Not on kernels with every check, which is what a name with the kernel in it would say:
/// measuring takes longer there than it may, and programs are judged gap by gap.
#[test]
fn vm_lets_programs_go_where_rides_do_not_pay() {
    let lab = lab();
    let job = scripted(Machine::V6_12_KPTI_OFF.job(&lab, "let-go", true), "let_go", &["pace"]);
    let outcome = run(&lab, &job.program("sed"));
    assert_steps(
        &outcome,
        &[
            "before: in a session",
            "found: the session ended",
            "found: the program goes on",
            "found: the report says why",
            "stat: exit 125, why",
            "top: exit 125, why",
            "attach: exit 0, why",
            "attach: the report says why",
            "known: exit 7, why",
            "known: the session ended",
            "counted: exit 0, why",
            // Nothing is said of what was asked for.
            "anyway: exit 0, ",
            "anyway: rode",
        ]
        .map(str::to_owned),
    );
    let counted = result(&outcome, "counted.err");
    assert!(counted.contains("system calls"), "{counted}");
}

/// Where every thread is audited from its start, nobody rides, and few calls get as far as to
/// find that out.
#[test]
fn vm_doctor_names_what_keeps_everybody_native_on_6_12() {
    let lab = lab();
    let mut job = Machine::V6_12_KPTI_ON.job(&lab, "audited", true);
    job.kernel_args.push("audit=1".to_owned());
    let outcome = run(&lab, &job.shell("ub doctor --measure || true"));
    let said = outcome.stdout_text();
    assert!(said.contains("mostly for this reason: syscall_work"), "{said}");
    assert!(said.contains("docs/operating.md says what each reason means"), "{said}");
}

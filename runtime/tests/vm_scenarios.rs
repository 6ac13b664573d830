//! Everything that a program can observe of its threads, signals, children and
//! code, natively and in a session, on both kernels with page-table isolation
//! on and off. Each line that the tests print is a scenario.

mod support;

use std::time::Duration;

use support::scenarios::{self, Control, Program, Ridden, Run};
use support::{Machine, assert_takes_kernel_down, lab, run};
use ub_vm_lab::{Kernel, KernelVersion};

/// `make test` runs these on 6.12 with page-table isolation and on 6.1 without ...
const SOME: [Program; 9] = [
    Program::all("threads"),
    Program::all("locks"),
    Program::all("signals"),
    Program::all("stops"),
    Program::all("code"),
    Program::all("files"),
    Program::all("linked"),
    Program::all("running"),
    Program::all("credentials"),
];

/// ... and these the other way round: each on both kernels, with and without isolation.
const OTHERS: [Program; 9] = [
    Program::all("interrupted"),
    Program::all("processes"),
    Program::all("clones"),
    Program::all("filters"),
    Program::all("watching"),
    Program::all("cpus"),
    Program::all("barriers"),
    Program::all("sharing"),
    // The last: once records were asked for, the kernel prepares threads for them.
    Program::all("records"),
];

/// What memory can be swapped to, and how it is compressed there. The kernels that the lab
/// builds have it built in.
fn swap_modules(kernel: &Kernel) -> Vec<String> {
    let names: &[&str] = match kernel.version() {
        _ if kernel.release().contains("-ub-") => &[],
        KernelVersion::V6_1 => &["lzo_rle", "zram"],
        _ => &["zram"],
    };
    names.iter().map(|&name| name.to_owned()).collect()
}

#[track_caller]
fn scenarios_behave_as_natively(machine: Machine, name: &str, programs: &[Program]) {
    let lab = lab();
    let mut job = machine.job(&lab, name, true).timeout(Duration::from_secs(900));
    job.stock_modules = swap_modules(&machine.kernel(&lab));
    // Other halves run on one.
    job.numa_nodes = if programs.iter().any(|program| program.name == "running") { 2 } else { 1 };
    let outcome = run(&lab, &scenarios::with_scenarios(job, programs));
    scenarios::check(programs, &outcome);
}

#[test]
fn vm_scenarios_on_6_12_with_kpti() {
    scenarios_behave_as_natively(Machine::V6_12_KPTI_ON, "scenarios", &SOME);
}

#[test]
fn vm_scenarios_on_6_12_without_kpti() {
    scenarios_behave_as_natively(Machine::V6_12_KPTI_OFF, "scenarios", &OTHERS);
}

#[test]
fn vm_scenarios_on_6_1_with_kpti() {
    scenarios_behave_as_natively(Machine::V6_1_KPTI_ON, "scenarios", &OTHERS);
}

#[test]
fn vm_scenarios_on_6_1_without_kpti() {
    scenarios_behave_as_natively(Machine::V6_1_KPTI_OFF, "scenarios", &SOME);
}

/// All of them, for `make test-all`; or those whose names are in `UB_SCENARIOS`, for
/// whoever works on some.
#[track_caller]
fn all_scenarios_behave_as_natively(machine: Machine) {
    let wanted = std::env::var("UB_SCENARIOS").unwrap_or_default();
    let is_wanted =
        |program: &Program| wanted.is_empty() || wanted.split(' ').any(|name| name == program.name);
    let all: Vec<_> = SOME.into_iter().chain(OTHERS).filter(is_wanted).collect();
    scenarios_behave_as_natively(machine, "all-scenarios", &all);
}

#[test]
#[ignore = "long: two hundred scenarios"]
fn vm_all_scenarios_on_6_12_with_kpti() {
    all_scenarios_behave_as_natively(Machine::V6_12_KPTI_ON);
}

#[test]
#[ignore = "long: two hundred scenarios"]
fn vm_all_scenarios_on_6_12_without_kpti() {
    all_scenarios_behave_as_natively(Machine::V6_12_KPTI_OFF);
}

#[test]
#[ignore = "long: two hundred scenarios"]
fn vm_all_scenarios_on_6_1_with_kpti() {
    all_scenarios_behave_as_natively(Machine::V6_1_KPTI_ON);
}

#[test]
#[ignore = "long: two hundred scenarios"]
fn vm_all_scenarios_on_6_1_without_kpti() {
    all_scenarios_behave_as_natively(Machine::V6_1_KPTI_OFF);
}

/// Tests that must fail in a build without what they test. Who must restart a
/// call has a signal pending: what two checks catch passes with either of them.
const CONTROLS: [Control; 26] = [
    control("SIGNAL_CHECK", "signals", "to-self"),
    Control { fails: false, ..control("SIGNAL_CHECK", "interrupted", "read-interrupted") },
    control("RESTART_CHECK", "interrupted", "read-interrupted"),
    control("INVALIDATION", "code", "mapped-over"),
    control("INVALIDATION", "code", "replaced-under-riders"),
    control("INVALIDATION", "code", "library-reloaded"),
    control("INVALIDATION", "linked", "target-mapped-over"),
    // A build of its own, as riders look up more seldom in it.
    Control { fails: false, ..control("NOTHING", "running", "replaced-under-loop") },
    control("WAIT_FOR_RIDERS", "running", "replaced-under-loop"),
    control("INSTALL_SEQUENCE", "files", "written-often"),
    control("FILE_NOTICE", "files", "mapped-writable"),
    control("FILE_NOTICE", "files", "written-under-riders"),
    control("FILE_NOTICE", "linked", "target-written-under-rider"),
    control("VECTOR_RELOAD", "cpus", "vectors-of-sleeper"),
    control("VECTOR_RELOAD", "cpus", "vectors-of-moved-sleeper"),
    control("VECTOR_RELOAD", "cpus", "hotplug-of-pinned"),
    control("RSEQ", "cpus", "cpu-number"),
    control("RSEQ", "cpus", "restartable-sequences"),
    control("MEMBARRIER_CHECK", "barriers", "memory-barrier-of-sequences"),
    control("BREAKPOINT_CHECK", "watching", "watchpoint"),
    control("SECCOMP_FILTER", "filters", "refuses"),
    control("SECCOMP_FILTER", "filters", "on-all-threads"),
    // Without the long moment nobody gets in between.
    Control { fails: false, ..control("NOTHING", "filters", "tracer-between") },
    control("REGISTER_CHECK", "filters", "tracer-between"),
    control("SYSCALL_WORK_CHECK", "watching", "calls-counted-at-entry"),
    control("SYSCALL_WORK_CHECK", "records", "audited"),
];

const fn control(
    protection: &'static str,
    program: &'static str,
    scenario: &'static str,
) -> Control {
    let program = Program { name: program, arguments: scenario };
    Control { protection, program, fails: true }
}

/// The same where 6.12 needs no protection.
const CONTROLS_OF_6_1: [Control; 2] = [
    Control { fails: false, ..control("NOTHING", "files", "written-without-name") },
    control("END_OF_MARK", "files", "written-without-name"),
];

#[track_caller]
fn fail_without_what_they_test(machine: Machine, controls: &[Control]) {
    let lab = lab();
    let job = machine.job(&lab, "controls", false).timeout(Duration::from_secs(600));
    let job = scenarios::with_controls(job, &machine.kernel(&lab), controls);
    scenarios::check_controls(controls, &run(&lab, &job));
}

#[test]
#[ignore = "long: builds the modules fourteen times"]
fn vm_scenarios_fail_without_what_they_test_on_6_12() {
    fail_without_what_they_test(Machine::V6_12_KPTI_OFF, &CONTROLS);
}

#[test]
#[ignore = "long: builds the modules twice"]
fn vm_scenarios_fail_without_what_they_test_on_6_1() {
    fail_without_what_they_test(Machine::V6_1_KPTI_OFF, &CONTROLS_OF_6_1);
}

/// Who is still in code that was given back takes the kernel along.
#[test]
#[ignore = "long: builds the modules once more"]
fn vm_scenarios_fail_without_the_grace_period() {
    let lab = lab();
    let machine = Machine::V6_12_KPTI_OFF;
    let controls = [control("GRACE_PERIOD", "running", "replaced-under-loop")];
    let job = machine.job(&lab, "grace-period-control", false);
    let job = scenarios::with_controls(job, &machine.kernel(&lab), &controls);
    assert_takes_kernel_down(&lab, &job);
}

#[test]
fn output_is_cut_into_scenarios() {
    let found = scenarios::runs("scenario a\none\ntwo\nend a exit 0\nscenario b\nend b signal 9\n");
    let expected = [
        ("a".to_owned(), Run { output: "one\ntwo\n".into(), end: "exit 0".into() }),
        ("b".to_owned(), Run { output: String::new(), end: "signal 9".into() }),
    ];
    assert_eq!(found, expected);
}

#[test]
fn rides_are_counted_by_scenario() {
    let found = scenarios::rides("a 17 12\nb 0 0 may ride\n");
    assert_eq!(found["a"], Ridden { calls: 17, warmed: 12, must_ride: true });
    assert_eq!(found["b"], Ridden { calls: 0, warmed: 0, must_ride: false });
}

/// The checks above are worth nothing if they cannot fail.
#[test]
fn every_kind_of_difference_is_found() {
    let run = |output: &str, end: &str| Run { output: output.into(), end: end.into() };
    let rode = |calls: u64, must_ride| Some(Ridden { calls: calls + 60, warmed: 60, must_ride });
    let complaints = |native: &Run, ridden: Option<&Run>, rode| {
        scenarios::complaints(native, ridden, rode).len()
    };
    let good = run("a\n", "exit 0");
    assert_eq!(complaints(&good, Some(&good), rode(10, true)), 0);
    assert_eq!(complaints(&good, Some(&good), rode(0, false)), 0);
    assert_eq!(complaints(&good, Some(&good), rode(9, true)), 1);
    assert_eq!(complaints(&good, Some(&good), None), 1);
    assert_eq!(complaints(&good, None, rode(10, true)), 1);
    assert_eq!(complaints(&good, Some(&run("b\n", "exit 0")), rode(10, true)), 1);
    assert_eq!(complaints(&good, Some(&run("a\n", "exit 1")), rode(10, true)), 1);
    assert_eq!(complaints(&good, Some(&run("a\n", "")), rode(10, true)), 1);
    let failed = run("a: FAILED\n", "exit 0");
    assert_eq!(complaints(&failed, Some(&failed), rode(10, true)), 1);
    let late = run("", "FAILED after 40 seconds");
    assert_eq!(complaints(&late, Some(&late), rode(10, true)), 1);
    let unfinished = run("", "");
    assert_eq!(complaints(&unfinished, Some(&unfinished), rode(10, true)), 1);
}

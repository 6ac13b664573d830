//! Seccomp filters: calls made in a ride meet the same verdicts as natively,
//! and rides go on under a filter that allows them.

mod support;

use support::compare::{self, Comparison};
use support::{Machine, compile, lab, run, with_program};

const COMPARISONS: [Comparison; 7] = [
    Comparison { name: "errors", command: "filters errors", ridden: 4000, exits: &[] },
    // What rides here does so under the filter.
    Comparison { name: "start", command: "filters start", ridden: 4000, exits: &[] },
    Comparison { name: "trap", command: "filters trap", ridden: 2000, exits: &[] },
    Comparison { name: "thread", command: "filters thread", ridden: 1000, exits: &[] },
    Comparison { name: "children", command: "filters children", ridden: 500, exits: &[] },
    Comparison { name: "listener", command: "filters listener", ridden: 300, exits: &[] },
    Comparison { name: "threads", command: "filters threads", ridden: 2000, exits: &[] },
];

/// A thread that its filter ended in a ride must not keep the modules.
const UNLOAD: &str = "
for i in 0 1 2 3 4 5 6 7 8 9; do
	module unload ub >/dev/null && break
	sleep 1
done
echo ub gate: $(module unload ub_gate)
";

#[track_caller]
fn filters_judge_as_natively(machine: Machine) {
    let lab = lab();
    let job =
        with_program(machine.job(&lab, "filters", true), "filters", &["filters.c", "session.c"])
            .file(compile("module", &["module.c"]), "/usr/bin/module")
            .shell(compare::script(&COMPARISONS) + UNLOAD);
    let outcome = run(&lab, &job);
    compare::check(&COMPARISONS, &outcome);
    assert!(outcome.stdout_text().contains("ub gate: ok"), "{}", outcome.stdout_text());
}

#[test]
fn vm_filters_on_6_12_with_kpti() {
    filters_judge_as_natively(Machine::V6_12_KPTI_ON);
}

#[test]
fn vm_filters_on_6_1_without_kpti() {
    filters_judge_as_natively(Machine::V6_1_KPTI_OFF);
}

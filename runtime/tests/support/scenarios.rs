//! Programs of many scenarios (`tests/guest/scenarios`), run natively and in a
//! session: every scenario must print the same, end in the same way, and ride.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::Value;
use ub_vm_lab::{Job, Kernel, Outcome};

use super::{
    RESULTS, RUN_FUNCTIONS, difference, result, supervisor_failures, with_library,
    with_modules_without, with_program,
};

/// A program of `tests/guest/scenarios` and which of its scenarios to run.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Its source, without `.c`.
    pub name: &'static str,
    /// Names of scenarios, or none for all.
    pub arguments: &'static str,
}

impl Program {
    pub const fn all(name: &'static str) -> Self {
        Self { name, arguments: "" }
    }
}

/// The shell function `scenarios NAME ARGUMENTS...`.
const SCENARIOS: &str = r#"
scenarios() {
	local name=$1; shift
	echo "ub test: $name natively" >/dev/kmsg
	once $name.native scenarios-$name "$@"
	echo "ub test: $name in a session" >/dev/kmsg
	RIDES=$name.rides once $name.ridden ub run --require --eager --report $name.json --log $name.log -- scenarios-$name "$@"
	await_report $name.json
}
"#;

/// A test in a build of the modules without a protection.
#[derive(Debug, Clone, Copy)]
pub struct Control {
    /// As `protection.h` calls it.
    pub protection: &'static str,
    /// The program and its scenario.
    pub program: Program,
    /// Whether the test must fail there: it tests this protection. Else it
    /// must pass, by what is left.
    pub fails: bool,
}

/// The shell function `control PROTECTION PROGRAM SCENARIO`, with modules in
/// `/ub/without/PROTECTION`.
const CONTROL: &str = r#"
load() {
	[ "$(module load /ub/without/$1/ub_gate.ko) $(module load /ub/without/$1/ub.ko)" = "ok ok" ]
}
unload() {
	local i
	for i in 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9; do
		[ "$(module unload $1)" = EAGAIN ] || return 0
		sleep 0.2
	done
}
control() {
	mkdir -p $1-$3
	load $1 || { echo "$1: cannot load the modules" >&2; return 1; }
	(cd $1-$3 && scenarios $2 $3)
	unload ub
	unload ub_gate
}
"#;

/// Adds the programs and the script that runs each of them twice.
pub fn with_scenarios(job: Job, programs: &[Program]) -> Job {
    let mut script = format!("cd {RESULTS}\n{RUN_FUNCTIONS}{SCENARIOS}");
    for Program { name, arguments } in programs {
        writeln!(script, "scenarios {name} {arguments}").expect("strings take any text");
    }
    with_programs(job, programs.iter().copied()).shell(script)
}

/// Adds the modules without the protections, the programs and the script.
pub fn with_controls(job: Job, kernel: &Kernel, controls: &[Control]) -> Job {
    let mut script = format!("cd {RESULTS}\n{RUN_FUNCTIONS}{SCENARIOS}{CONTROL}");
    let mut job = with_program(job, "module", &["module.c"]).program("mkdir");
    for Control { protection, program: Program { name, arguments }, .. } in controls {
        job = with_modules_without(job, kernel, protection);
        writeln!(script, "control {protection} {name} {arguments}").expect("strings take any text");
    }
    with_programs(job, controls.iter().map(|control| control.program)).shell(script)
}

fn with_programs(job: Job, programs: impl Iterator<Item = Program>) -> Job {
    let job = ["1", "2"].into_iter().fold(job, |job, number| {
        let define = format!("-DANSWER={number}");
        with_library(job, &format!("libanswer{number}.so"), "scenarios/answer.c", &[&define])
    });
    let names: BTreeSet<_> = programs.map(|program| program.name).collect();
    names.into_iter().fold(job, |job, name| {
        let own = format!("scenarios/{name}.c");
        let sources = [own.as_str(), "scenarios/scenario.c", "session.c"];
        with_program(job, &format!("scenarios-{name}"), &sources)
    })
}

/// What a scenario printed and how it ended; empty if it never ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Run {
    pub output: String,
    pub end: String,
}

/// The scenarios of a program's output, in order.
pub fn runs(stdout: &str) -> Vec<(String, Run)> {
    let mut runs: Vec<(String, Run)> = Vec::new();
    for line in stdout.lines() {
        if let Some(name) = line.strip_prefix("scenario ") {
            runs.push((name.to_owned(), Run::default()));
        } else if let Some((name, run)) = runs.last_mut() {
            let end = line.strip_prefix("end ").and_then(|end| end.strip_prefix(name.as_str()));
            match end {
                Some(end) => end.trim().clone_into(&mut run.end),
                None => writeln!(run.output, "{line}").expect("strings take any text"),
            }
        }
    }
    runs
}

/// How much of a scenario rode: `NAME CALLS WARMED`, with `may ride` behind it where
/// nothing has to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ridden {
    pub calls: u64,
    /// Those of them that only warmed up what was to ride then.
    pub warmed: u64,
    pub must_ride: bool,
}

/// The file that a program leaves where `RIDES` says, by scenario.
pub fn rides(text: &str) -> BTreeMap<String, Ridden> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.splitn(4, ' ');
            let name = words.next()?.to_owned();
            let calls = words.next()?.parse().ok()?;
            let warmed = words.next()?.parse().ok()?;
            Some((name, Ridden { calls, warmed, must_ride: words.next().is_none() }))
        })
        .collect()
}

/// Calls of a scenario that must ride besides those that warm up: fewer may be those of
/// the scenarios' own machinery.
const LEAST: u64 = 10;

/// What is wrong with a scenario's two runs, as text; empty if nothing is.
pub fn complaints(native: &Run, ridden: Option<&Run>, rode: Option<Ridden>) -> Vec<String> {
    let mut wrong = Vec::new();
    if native.end.is_empty() || format!("{}{}", native.end, native.output).contains("FAILED") {
        wrong.push(format!("does not work natively: {native:?}"));
    }
    let Some(ridden) = ridden else {
        wrong.push("did not run in the session".to_owned());
        return wrong;
    };
    if native.end != ridden.end {
        wrong.push(format!("ended natively with {:?}, ridden {:?}", native.end, ridden.end));
    }
    wrong.extend(difference("output", &native.output, &ridden.output));
    match rode {
        None => wrong.push("nobody counted what rode".to_owned()),
        Some(Ridden { calls, warmed, must_ride: true }) if calls < warmed + LEAST => {
            wrong.push(format!("hardly rode: {calls} calls, {warmed} of them to warm up"));
        }
        Some(_) => {}
    }
    wrong
}

/// Prints a line for each scenario, natively and ridden side by side, and
/// fails with everything that is wrong with any of them.
#[track_caller]
pub fn check(programs: &[Program], outcome: &Outcome) {
    let mut message = String::new();
    let environment = &outcome.environment;
    let kpti = if environment.kpti { "on" } else { "off" };
    for Program { name, .. } in programs {
        let read = |suffix: &str| result(outcome, &format!("{name}.{suffix}"));
        let native = runs(&read("native.out"));
        let ridden: BTreeMap<_, _> = runs(&read("ridden.out")).into_iter().collect();
        let rides = rides(&read("rides"));
        for (scenario, native) in &native {
            let with_ub = ridden.get(scenario);
            let rode = rides.get(scenario).copied();
            let wrong = complaints(native, with_ub, rode);
            println!(
                "{} kpti {kpti:3} {:34} native {:10} ub {:10} {:9} {:7} calls ridden",
                environment.kernel,
                format!("{name}/{scenario}"),
                native.end,
                with_ub.map_or("-", |run| run.end.as_str()),
                if wrong.is_empty() { "equal" } else { "DIFFERENT" },
                rode.map_or(0, |rode| rode.calls.saturating_sub(rode.warmed)),
            );
            if !wrong.is_empty() {
                writeln!(message, "{name}/{scenario}:\n  {}", wrong.join("\n  "))
                    .expect("strings take any text");
            }
        }
        for complaint in of_program(&read, native.len()) {
            writeln!(message, "{name}: {complaint}").expect("strings take any text");
        }
    }
    if outcome.console.contains("TEST BUILD") {
        message.push_str("these modules lack a protection");
    }
    assert!(
        message.is_empty(),
        "{message}stderr of the script: {}\nlogs: {}",
        outcome.stderr_text(),
        outcome.directory.display()
    );
}

/// Fails unless each scenario behaves as it should natively, and without the
/// protection differently where it must.
#[track_caller]
pub fn check_controls(controls: &[Control], outcome: &Outcome) {
    let mut message = String::new();
    for Control { protection, program: Program { name, arguments }, fails } in controls {
        let read =
            |suffix: &str| result(outcome, &format!("{protection}-{arguments}/{name}.{suffix}"));
        let native = runs(&read("native.out"));
        let ridden = runs(&read("ridden.out"));
        let rode = rides(&read("rides")).get(*arguments).copied();
        let wrong = match (&native[..], &ridden[..]) {
            ([(_, native)], [(_, ridden)]) => {
                let natively = complaints(native, Some(native), rode);
                let differs = complaints(native, Some(ridden), rode) != natively;
                (!natively.is_empty() || differs != *fails)
                    .then(|| format!("{natively:?}, {ridden:?}"))
            }
            _ => Some(format!("not one run each: {native:?}, {ridden:?}")),
        };
        let loaded = format!("TEST BUILD without {protection}");
        let expected = if *fails { "fails" } else { "passes" };
        let verdict = if wrong.is_none() { "as it must" } else { "NOT SO" };
        println!("without {protection:20} {name}/{arguments} {expected}: {verdict}");
        if let Some(wrong) = wrong {
            writeln!(message, "{name}/{arguments} {expected} without {protection}: {wrong}")
                .expect("strings take any text");
        }
        if !outcome.console.contains(&loaded) {
            writeln!(message, "{protection}: the console has no {loaded:?}")
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

/// What is wrong with a program as a whole.
fn of_program(read: &impl Fn(&str) -> String, scenarios: usize) -> Vec<String> {
    let mut wrong = Vec::new();
    if scenarios == 0 {
        wrong.push("no scenario ran".to_owned());
    }
    for run in ["native", "ridden"] {
        let status = read(&format!("{run}.status"));
        let stderr = read(&format!("{run}.err"));
        if status.trim() != "0" || !stderr.is_empty() {
            wrong.push(format!("{run}: exit status {} with {stderr:?}", status.trim()));
        }
    }
    let report: Value = serde_json::from_str(&read("json")).unwrap_or(Value::Null);
    let failures = supervisor_failures(&report);
    if !failures.is_empty() {
        let log = read("log");
        let log: Vec<_> = log.lines().rev().take(5).collect();
        wrong.push(format!("{}; log {log:?}", failures.join(", ")));
    }
    wrong
}

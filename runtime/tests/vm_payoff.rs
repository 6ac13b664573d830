//! Sessions that do not pay, and those that do: in guests whose clock counts
//! instructions, so that what is measured there does not depend on this host.
//! The module has its own thresholds, made for real CPUs.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use support::{Machine, lab, result, run, with_program};
use ub_vm_lab::{Job, Lab};

/// Nanoseconds of the guest's clock for an instruction, as a power of two.
const ICOUNT: u8 = 0;
/// Least throughput in a session, as a share of the native one.
const PROMISED: f64 = 0.98;
/// Most by which a gap's saving may be measured wrongly, as a share of a native call.
const BIAS: f64 = 0.1;
/// Most of the passages of translated gaps that may be native only to compare ...
const MEASURED: f64 = 0.01;
/// ... of so many that chance does not decide.
const ENOUGH: f64 = 50_000.0;
/// A null call of a process that is not in a session: instructions that the
/// loaded module may add.
const IDLE_INSTRUCTIONS: f64 = 6.0;

/// A guest that runs `tests/guest/NAME.sh` by itself: nothing else has the CPU.
fn job(machine: Machine, lab: &Lab, name: &str, load: bool) -> Job {
    let mut job = machine.job(lab, name, load).env("UB_PARAMETERS", "");
    for module in &mut job.modules {
        module.parameters.clear();
    }
    job.icount = Some(ICOUNT);
    job.smp = 1;
    let job = with_program(job, "pace", &["pace.c"]);
    let job = with_program(job, "module", &["module.c"]);
    let script = format!("{name}.sh");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest").join(&script);
    let place = format!("/usr/bin/{script}");
    job.file(source, &place).command(["sh", "-e", &place]).timeout(Duration::from_secs(3600))
}

/// Seconds of the guest's clock since the epoch at the start of a log line.
fn seconds(line: &str) -> f64 {
    // 2026-01-31T10:20:30.123456Z: the day does not change during a test.
    let (_, clock) = line.split_once('T').unwrap_or_else(|| panic!("no time in {line}"));
    let clock = clock.split('Z').next().expect("not empty");
    clock.split(':').fold(0.0, |sum, part| {
        60.0 * sum + part.parse::<f64>().unwrap_or_else(|_| panic!("no time in {line}"))
    })
}

/// When the lines that contain all of `words` were written.
fn times(log: &str, words: &[&str]) -> Vec<f64> {
    log.lines().filter(|line| words.iter().all(|word| line.contains(word))).map(seconds).collect()
}

#[test]
#[ignore = "long: make payoff"]
fn vm_slowed_fragment_is_retired_and_stays_away() {
    let lab = lab();
    let outcome = run(&lab, &job(Machine::V6_12_KPTI_OFF, &lab, "slowed", true));
    let stdout = outcome.stdout_text();
    let address = stdout.lines().find_map(|line| line.strip_prefix("address 0x"));
    let address = address.expect("pace prints its address");
    let decimal = u64::from_str_radix(address, 16).expect("hexadecimal");
    let (hex, installed) = (format!("0x{address}"), format!("address={decimal} "));
    let slowed = result(&outcome, "slowed.log");
    let made = times(&slowed, &["installed", &installed]);
    let gone = times(&slowed, &["retired", &hex, "reason=\"slower\""]);
    assert!(!made.is_empty() && !gone.is_empty(), "made {made:?}, gone {gone:?}\n{slowed}");
    assert!(gone[0] - made[0] < 5.0, "made {made:?}, gone {gone:?}");
    // It is not tried again before its time, which the script sets, is over; then it is.
    let again: Vec<f64> = made.iter().copied().filter(|time| *time > gone[0]).collect();
    assert!(again.first().is_some_and(|time| time - gone[0] >= 6.0), "{made:?} {gone:?}\n{slowed}");

    // The same gap as it is. What it saves is measured as it shows in the program's own speed.
    let report: Value = serde_json::from_str(&result(&outcome, "plain.json")).expect("a report");
    let gaps = report["hot_gaps"].as_array().expect("a list");
    let gap = gaps.iter().find(|gap| gap["address"] == decimal).expect("the gap is in the report");
    let mean = |kind: &str| gap[kind]["mean_ns"].as_f64().expect("a number");
    let measured = mean("native") - mean("ride");
    let rates = rates(&stdout);
    let call = |cell: &str| 1e9 / rates[&(cell.to_owned(), "short".to_owned())];
    let saved = call("native") - call("ridden");
    println!("a ride saves {saved:.0} instructions a call, measured {measured:.0}");
    assert!((measured - saved).abs() < BIAS * call("native"), "{gap}\n{rates:?}");
    let plain = result(&outcome, "plain.log");
    assert!(!times(&plain, &["installed", &installed]).is_empty(), "{plain}");
    let is_retired = !times(&plain, &["retired", &hex, "reason=\"slower\""]).is_empty();
    assert_eq!(is_retired, saved < 0.0, "{plain}");
    println!("retired after {:.2} s, back after {:.2} s", gone[0] - made[0], again[0] - gone[0]);
}

/// Rates by cell and name, as the script prints them.
fn rates(stdout: &str) -> BTreeMap<(String, String), f64> {
    stdout
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let key = (words.next()?.to_owned(), words.next()?.to_owned());
            Some((key, words.next()?.parse().ok()?))
        })
        .collect()
}

/// Passages of a session's translated gaps, about, and how many of them were native to
/// compare. A report leaves out reasons that there were not.
fn measured(report: &Value) -> (f64, f64) {
    let of = |by: &str| report[by]["measured"].as_f64().unwrap_or(0.0);
    let measured = of("exits") + of("refused");
    (report["ridden"].as_f64().expect("a number") + measured, measured)
}

#[track_caller]
fn is_never_slower(machine: Machine) {
    let lab = lab();
    let outcome = run(&lab, &job(machine, &lab, "payoff", false));
    let rates = rates(&outcome.stdout_text());
    let rate = |cell: &str, name: &str| {
        let found = rates.get(&(cell.to_owned(), name.to_owned()));
        *found.unwrap_or_else(|| panic!("no {cell} {name} in {rates:?}"))
    };
    let mut failures = Vec::new();
    println!("{machine:?}, TCG with -icount: rates by instructions, emulated");
    // Instructions are all that this clock knows: neither the switch nor what a CPU's
    // mitigations add to it takes any, so loops of null calls lose by riding here, too,
    // and that has to be noticed.
    for (cell, name) in [
        ("cold", "short"),
        ("slowed", "short"),
        ("ub", "short"),
        ("ub", "phases-short"),
        ("cold", "sparse"),
        ("ub", "long"),
        ("ub", "sparse"),
        ("ub", "compute"),
        ("ub", "phases-compute"),
    ] {
        let ratio = rate(cell, name) / rate("native", name);
        println!("{cell:8} {name:15} {:12.0}/s, {ratio:.3} of native", rate(cell, name));
        if ratio < PROMISED {
            failures.push(format!("{cell} {name}: {ratio:.3}"));
        }
    }
    // Rides may pay here or not: either is found out before any program pays for it.
    let report: Value = serde_json::from_str(&result(&outcome, "machine.json")).expect("a report");
    let ratio = rate("machine", "short") / rate("native", "short");
    let reason = report["native_reason"].as_str();
    println!("{:8} {:15} {ratio:.3} of native, {}", "machine", "short", reason.unwrap_or("rides"));
    if reason.is_some() && ratio < PROMISED {
        failures.push(format!("left alone: {ratio:.3}"));
    }
    if reason.is_none() && ratio <= 1.0 {
        failures.push(format!("rides, and loses: {ratio:.3}\n{}", result(&outcome, "doctor")));
    }
    let instructions = |cell| 1e9 / rate(cell, "short");
    let idle = instructions("loaded") - instructions("unloaded");
    println!("null call: {:.1} instructions, {idle:+.1} loaded", instructions("unloaded"));
    if idle > IDLE_INSTRUCTIONS {
        failures.push(format!("{idle:.1} instructions for nothing"));
    }
    for name in ["short", "long", "phases", "slowed"] {
        let report: Value =
            serde_json::from_str(&result(&outcome, &format!("{name}.json"))).expect("a report");
        println!(
            "{name}: ridden {}, refused {}, ends {}",
            report["ridden_share"], report["refused"], report["exits"]
        );
        let (passages, measured) = measured(&report);
        println!("{name}: {measured} of {passages} passages were native to compare");
        if passages > ENOUGH && (measured == 0.0 || measured > MEASURED * passages) {
            failures.push(format!("{name}: {measured} of {passages} measured"));
        }
    }
    assert!(failures.is_empty(), "below the promise: {failures:?}");
}

#[test]
#[ignore = "long: make payoff"]
fn vm_payoff_on_6_12_without_kpti() {
    is_never_slower(Machine::V6_12_KPTI_OFF);
}

#[test]
#[ignore = "long: make payoff"]
fn vm_payoff_on_6_12_with_kpti() {
    is_never_slower(Machine::V6_12_KPTI_ON);
}

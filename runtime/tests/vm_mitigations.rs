//! What `ub doctor` says on processors with different weaknesses, and what the
//! module does there.

mod support;

use serde_json::Value;
use support::{Machine, RUN_FUNCTIONS, lab, result, run, with_program};

/// The lines of the policy that apply, by name.
fn applying(diagnosis: &Value) -> Vec<&str> {
    let lines = diagnosis["policy"].as_array().expect("a list");
    let applying = lines.iter().filter(|line| line["applies"] == true);
    applying.map(|line| line["name"].as_str().expect("a name")).collect()
}

/// Boots QEMU's CPU model `cpu`: what was foretold without the module must be
/// what the module says, and that must be `expected`.
#[track_caller]
fn policy_is_as_told(machine: Machine, cpu: &str, expected: &[&str]) {
    let lab = lab();
    let name = format!("mitigations-{cpu}");
    let job = with_program(machine.job(&lab, &name, false), "module", &["module.c"]);
    let mut job = with_program(job, "worker", &["worker.c"]).shell(
        "cd /results
         # Its exit status says whether programs can ride now.
         ub doctor --format json >foretold.json || true
         module load /ub/modules/ub_gate.ko && module load /ub/modules/ub.ko
         ub doctor --format json >said.json || true
         ub run --eager --report report.json -- worker until stop >out 2>err &
         # Until it rides, not only in one gap, or is told that it cannot.
         left=300
         rides='\"ridden\":[1-9][0-9]*,\"ridden_share\"'
         until grep -qs $rides report.json || grep -qs 'no rides' err || [ $left = 0 ]; do
             left=$((left - 1))
             sleep 0.1
         done
         >stop
         status=0
         wait $! || status=$?
         echo $status >status",
    );
    job.cpu = Some(cpu.to_owned());
    job.la57 = false;
    let outcome = run(&lab, &job);
    let parse = |name: &str| -> Value {
        serde_json::from_str(&result(&outcome, name)).unwrap_or_else(|error| {
            panic!("{name}: {error}\nlogs: {}", outcome.directory.display())
        })
    };
    let (foretold, said) = (parse("foretold.json"), parse("said.json"));
    assert_eq!(
        (&foretold["policy_source"], &said["policy_source"]),
        (&"predicted".into(), &"module".into())
    );
    println!("{cpu} on {}: {:?}", outcome.environment.kernel, applying(&said));
    println!("{:#?}", outcome.environment.mitigations);
    assert_eq!(
        applying(&foretold),
        applying(&said),
        "{cpu}: {:#?}",
        outcome.environment.mitigations
    );
    assert_eq!(applying(&said), expected, "{cpu}");
    for entry in said["vulnerabilities"].as_array().expect("a list") {
        assert!(!entry["policy"].is_null(), "no policy for {entry}");
    }
    // With a refusal or without: the program does what it does natively.
    assert_eq!(result(&outcome, "status"), "0\n", "{}", result(&outcome, "err"));
    assert_eq!(result(&outcome, "out"), "sequence intact\n");
    let refused = said["rides_possible"] == false;
    assert_eq!(result(&outcome, "err").contains("no rides on this CPU"), refused);
    let rode = parse("report.json")["ridden"].as_u64().unwrap_or(0);
    assert_eq!(rode == 0, refused, "{cpu}: {rode} calls rode");
}

/// Haswell has no SMAP; these Intel models lack MDS_NO and the microcode for
/// VERW, which does not keep the kernel from trying. Zen 1 leaves results in its
/// divider; returns are untrained on Zen 1 and 2 for retbleed, on Zen 3 for
/// SRSO, so there are no rides on any of these. On Zen 3 buffers are cleared for TSA.
/// Retpolines and page tables are no business of a ride.
const MODELS: [(&str, &[&str]); 7] = [
    ("Haswell-noTSX", &["no_smap", "clear_buffers"]),
    ("Skylake-Server", &["clear_buffers"]),
    ("Cascadelake-Server", &["clear_buffers"]),
    ("EPYC", &["divider", "untrained_returns", "untrain"]),
    ("EPYC-Rome", &["untrained_returns", "untrain"]),
    ("EPYC-Milan", &["untrained_returns", "clear_buffers", "untrain"]),
    ("max", &[]),
];

#[test]
#[ignore = "long: seven machines"]
fn vm_mitigations_of_processors_on_6_12() {
    for (cpu, expected) in MODELS {
        policy_is_as_told(Machine::V6_12_KPTI_ON, cpu, expected);
    }
}

#[test]
#[ignore = "long: seven machines"]
fn vm_mitigations_of_processors_on_6_1() {
    for (cpu, expected) in MODELS {
        policy_is_as_told(Machine::V6_1_KPTI_ON, cpu, expected);
    }
}

/// Where interrupts wait until a fragment is left, long loops are left now and then, and
/// not at each turn: what is done on the way into a fragment would cost more than is saved.
#[test]
fn vm_loops_go_on_where_interrupts_wait_on_6_12() {
    let lab = lab();
    let job = Machine::V6_12_KPTI_ON.job(&lab, "waiting-loops", true);
    let mut job = with_program(job, "pace", &["pace.c"]).shell(format!(
        "{RUN_FUNCTIONS}
         cd /results
         ub run --eager --require --report report.json -- pace long 4000 500
         await_report report.json"
    ));
    job.cpu = Some("Cascadelake-Server".into());
    job.la57 = false;
    let outcome = run(&lab, &job);
    let report: Value = serde_json::from_str(&result(&outcome, "report.json")).expect("a report");
    let count = |name: &str| report[name].as_u64().expect("a number");
    let stays = count("fragments_run") as f64 / count("ridden") as f64;
    println!("{stays:.1} stays for a gap of 50,000 instructions");
    // Some four thousand instructions of the fragments' own are in a budget, some twenty in
    // each of 12,500 turns.
    assert!((1.5..100.0).contains(&stays), "{stays}: {report}");
}

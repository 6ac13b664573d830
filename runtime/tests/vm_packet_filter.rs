//! The packet filter in guests with Debian's kernels, without the module.

mod support;

#[path = "../../ebpf-fallback/tests/support/mod.rs"]
mod packets;

use support::{Machine, lab, result, run};

/// The counter gets datagrams that it does not want until there is a filter,
/// or a reason why there is none, then wanted ones among others, and in the
/// end the last one.
const SCRIPT: &str = "\
ub doctor >/results/doctor || true
ub run --backend bpf -v --log /results/log -- count udp >/results/printed &
until grep -sq filter /results/log; do count send 100 9; done
for _ in 1 2 3 4; do count send 10 4242; count send 100 9; done
count send 1 1
wait $!
until grep -q ended /results/log; do sleep 0.1; done
";

#[track_caller]
fn filters(machine: Machine) {
    let lab = lab();
    let folder = tempfile::tempdir().expect("a folder for the program");
    let program = packets::compile(folder.path(), &[]);
    let job = machine
        .job_without_modules("packet-filter")
        .file(program, "/usr/bin/count")
        .command(["sh", "-e", "-c", SCRIPT]);
    let outcome = run(&lab, &job);
    let log = result(&outcome, "log");
    assert!(result(&outcome, "printed").starts_with("wanted 40 bytes 3600 "), "{log}");
    let dropped = packets::number(&log, "dropped");
    assert!(log.contains("packets are filtered") && dropped >= 200, "{log}");
    let doctor = result(&outcome, "doctor");
    assert!(doctor.contains("would throw away are dropped: available"), "{doctor}");
}

#[test]
fn vm_6_12_filters_packets() {
    filters(Machine::V6_12_KPTI_ON);
}

#[test]
fn vm_6_1_filters_packets() {
    filters(Machine::V6_1_KPTI_OFF);
}

//! The profiler in guests with Debian's kernels, without the module, and what
//! predictions learn from the module.

mod support;

use serde_json::Value;
use support::strace::{Passages, assert_same_shares};
use support::{Machine, lab, result, run, with_debian_program, with_program};

/// Requests to the redis-server, which strace makes slow.
const REQUESTS: u64 = 1000;

const SCRIPT: &str = "\
ub profile --format json --output /results/profile.json -- \
    dd if=/dev/zero of=/dev/null bs=1 count=20000; echo $? >/results/status
ub predict --format json --output /results/prediction.json -- \
    dd if=/dev/zero of=/dev/null bs=1 count=20000
# With -D strace is the child, so that the server belongs to ub.
ub profile --format json --output /results/redis.json -- \
    strace -D -f -i -o /results/trace redis-server --port 7777 --save '' --logfile /results/redis.log &
until redis-cli -p 7777 ping; do sleep 0.1; done
redis-benchmark -p 7777 -t get -c 10 -n 1000 >/results/benchmark
redis-cli -p 7777 shutdown nosave
wait $!
until grep -q 'exited with' /results/trace; do sleep 0.1; done
module load /ub/modules/ub_gate.ko
module load /ub/modules/ub.ko
# Killed while it measures, it takes the process that does so with it, even one that
# does nothing.
ub doctor --measure >/results/killed &
asker=$!
until read -r worker _ </proc/$asker/task/$asker/children || [ \"$worker\" ]; do sleep 0.1; done
# It is there for seconds; before it has begun it would be too early.
sleep 0.5
kill -STOP $worker
kill -KILL $asker
while [ -e /proc/$worker ]; do sleep 0.1; done
ub predict --format json --output /results/measured.json -- \
    dd if=/dev/zero of=/dev/null bs=1 count=20000
ub predict --estimate --format json --output /results/estimated.json -- \
    dd if=/dev/zero of=/dev/null bs=1 count=20000
# The supervisor of ub's own rides ends a moment later.
until [ \"$(module unload ub)\" = ok ]; do sleep 0.1; done
";

#[track_caller]
fn profiles(machine: Machine) {
    let lab = lab();
    let job = machine.job(&lab, "profile", false).program("dd").program("strace");
    let job = with_program(job, "module", &["module.c"]);
    let redis = ["redis-server", "redis-cli", "redis-benchmark"];
    let job = redis.into_iter().fold(job, with_debian_program);
    let job = job.command(["sh", "-e", "-c", SCRIPT]);
    let outcome = run(&lab, &job);
    assert_eq!(result(&outcome, "status").trim(), "0", "{}", outcome.stderr_text());
    let profile: Value =
        serde_json::from_str(&result(&outcome, "profile.json")).expect("a profile");
    let gaps = profile["profile"]["gaps"].as_array().expect("gaps");
    let count = |call: &str, next: &str| -> u64 {
        let gaps = gaps.iter().filter(|gap| gap["call"] == call && gap["next"] == next);
        gaps.filter_map(|gap| gap["count"].as_u64()).sum()
    };
    assert_eq!((count("read", "write"), count("write", "read")), (20_000, 19_999));
    let named = |field: &str, start: &str| {
        gaps.iter().any(|gap| gap[field].as_str().is_some_and(|name| name.starts_with(start)))
    };
    assert!(named("function", "libc!") && named("calling", "dd"), "{profile}");
    let prediction: Value =
        serde_json::from_str(&result(&outcome, "prediction.json")).expect("a prediction");
    assert!(prediction["costs"]["switch_ns"].as_f64().is_some_and(|ns| ns > 0.0), "{prediction}");
    assert_ne!(prediction["verdict"], "nothing");
    // Where there is the module, rides are timed, and nothing is left of them.
    let measured = |name: &str| {
        let json: Value = serde_json::from_str(&result(&outcome, name)).expect("a prediction");
        json["ride"]["measured"]["ridden"]["null_call_ns"].as_f64()
    };
    assert!(measured("measured.json") > Some(0.0), "{}", result(&outcome, "measured.json"));
    assert_eq!((measured("prediction.json"), measured("estimated.json")), (None, None));
    let redis: Value = serde_json::from_str(&result(&outcome, "redis.json")).expect("a profile");
    names_the_calls_of_redis(&redis);
    let spaces = redis["processes"].as_array().expect("processes").iter();
    let of_redis: Vec<_> = spaces
        .filter(|process| process["name"] == "redis-server")
        .filter_map(|process| process["space"].as_u64())
        .collect();
    let counted = Passages::profiled(&redis["profile"], |space| of_redis.contains(&space));
    let traced = Passages::traced(&result(&outcome, "trace"));
    assert!(traced.total() > 2 * REQUESTS, "{} passages", traced.total());
    assert_same_shares(&traced, &counted);
}

/// Each request has a read and a write whose callers are known; Debian strips
/// the names of static ones.
#[track_caller]
fn names_the_calls_of_redis(profile: &Value) {
    let gaps = profile["profile"]["gaps"].as_array().expect("gaps");
    for call in ["read", "write"] {
        let of_redis = gaps.iter().filter(|gap| {
            let named =
                |field: &str, start| gap[field].as_str().is_some_and(|n| n.starts_with(start));
            gap["call"] == call && named("calling", "redis-server") && named("function", "libc!")
        });
        let count: u64 = of_redis.filter_map(|gap| gap["count"].as_u64()).sum();
        assert!(count >= REQUESTS / 2, "{call}: {count} of {REQUESTS}: {gaps:?}");
    }
}

#[test]
fn vm_6_12_profiles() {
    profiles(Machine::V6_12_KPTI_ON);
}

#[test]
fn vm_6_1_profiles() {
    profiles(Machine::V6_1_KPTI_OFF);
}

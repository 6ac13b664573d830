//! The profiler in guests with Debian's kernels, without the module.

mod support;

use support::{Machine, lab, result, run};

#[track_caller]
fn profiles(machine: Machine) {
    let lab = lab();
    let script = "ub profile --format json --output /results/profile.json -- \
                  dd if=/dev/zero of=/dev/null bs=1 count=20000; echo $? >/results/status; \
                  ub predict --json --output /results/prediction.json -- \
                  dd if=/dev/zero of=/dev/null bs=1 count=20000";
    let job =
        machine.job_without_modules("profile").program("dd").command(["sh", "-e", "-c", script]);
    let outcome = run(&lab, &job);
    assert_eq!(result(&outcome, "status").trim(), "0", "{}", outcome.stderr_text());
    let profile: serde_json::Value =
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
    let prediction: serde_json::Value =
        serde_json::from_str(&result(&outcome, "prediction.json")).expect("a prediction");
    assert!(prediction["switch_ns"].as_f64().is_some_and(|ns| ns > 0.0), "{prediction}");
    assert_ne!(prediction["verdict"], "nothing");
}

#[test]
fn vm_6_12_profiles() {
    profiles(Machine::V6_12_KPTI_ON);
}

#[test]
fn vm_6_1_profiles() {
    profiles(Machine::V6_1_KPTI_OFF);
}

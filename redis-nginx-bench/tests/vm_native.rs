//! The whole way of the demo but for the bypass: lab, guest driver, servers
//! in the guest, report.

use std::path::Path;
use std::process::Command;

use ub_bench::plan::{Mode, Workload};
use ub_bench::report::Report;

#[test]
fn vm_demo_measures_natively_and_reports() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo/report.json");
    let own = Path::new(env!("CARGO_BIN_EXE_ub-bench-guest")).parent().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ub-demo"))
        .args(["--native-only", "--no-smoke", "--kernel", "6.1", "--kpti", "on"])
        .args(["--rounds", "1", "--timed-ms", "200", "--warmup-ms", "0"])
        .args(["--workload", "null", "--workload", "redis-get", "--workload", "nginx"])
        .arg("--bin-dir")
        .arg(own)
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");

    let report: Report = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    let cells: Vec<_> = report.cells.iter().map(|cell| (cell.workload, cell.mode)).collect();
    let expected =
        [Workload::Null, Workload::REDIS_GET, Workload::NGINX].map(|w| (w, Mode::Native));
    assert_eq!(cells, expected);
    for cell in &report.cells {
        assert!(cell.results_match && cell.kpti && cell.ops_per_s > 0.0, "{cell:?}");
        assert!(cell.kernel.starts_with("6.1."), "{cell:?}");
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    let emulated = report.environment.accelerator == "tcg";
    assert_eq!(stdout.contains("(emulated)"), emulated, "{stdout}");
    // Everything the guest said lies beside the report.
    let log = std::fs::read_to_string(out.with_file_name("6.1-kpti-on.log")).unwrap();
    assert!(log.contains("Linux version 6.1."));
}

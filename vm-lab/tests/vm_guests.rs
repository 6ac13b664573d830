//! Jobs whose guests stay healthy, on both kernels with page-table isolation
//! on and off.

mod common;

use std::path::Path;
use std::process::Command;

use common::run;
use sha2::{Digest, Sha256};
use ub_vm_lab::{Accelerator, ExitStatus, Job, KernelVersion};

fn runs_a_command(kernel: KernelVersion, kpti: bool, la57: bool) {
    let mut job =
        Job::new(format!("uname-la57_{la57}"), kernel).kpti(kpti).command(["uname", "-a"]);
    job.la57 = la57;
    let outcome = run(&job);
    let environment = &outcome.environment;
    assert_eq!(outcome.status, ExitStatus::Code(0));
    assert!(outcome.stdout_text().starts_with(&format!("Linux ub-guest {} ", environment.kernel)));
    assert!(environment.kernel.starts_with(&format!("{kernel}.")), "{environment:?}");
    assert_eq!(environment.kpti, kpti);
    // Every CPU that TCG offers has five-level page tables, not so with KVM.
    if environment.accelerator == Accelerator::Tcg || !la57 {
        assert_eq!(environment.la57, la57);
    }
    assert!(!environment.cpu.is_empty());
    assert!(environment.mitigations.contains_key("meltdown"), "{environment:?}");
    let enabled = outcome.console.contains("page tables isolation: enabled");
    assert_eq!(enabled, kpti, "{}", outcome.console);
}

#[test]
fn kernel_6_12_with_kpti() {
    runs_a_command(KernelVersion::V6_12, true, true);
}

#[test]
fn kernel_6_12_without_kpti() {
    runs_a_command(KernelVersion::V6_12, false, false);
}

#[test]
fn kernel_6_1_with_kpti() {
    runs_a_command(KernelVersion::V6_1, true, false);
}

#[test]
fn kernel_6_1_without_kpti() {
    runs_a_command(KernelVersion::V6_1, false, true);
}

#[test]
fn output_status_and_files_come_back() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("input"), "from the host").unwrap();
    let script = r#"
        cat /data/input
        echo "$COLOUR in $PWD" >&2
        head -c 8000000 /dev/urandom > big
        sha256sum < big
        mkdir -p tree/below
        : > tree/below/empty
        # Holds the output pipes open, as a server left behind does.
        sleep 1000 &
        exit 3
    "#;
    let mut job = Job::new("results", KernelVersion::V6_12)
        .shell(script)
        .file(dir.path(), "/data")
        .env("COLOUR", "green")
        .collect("/work/big")
        .collect("/work/tree")
        .collect("/work/missing");
    for program in ["cat", "head", "sha256sum", "mkdir", "sleep"] {
        job = job.program(program);
    }
    job.cwd = "/work".into();
    let outcome = run(&job);
    assert_eq!(outcome.status, ExitStatus::Code(3));
    assert_eq!(outcome.stderr_text(), "green in /work\n");
    let big = outcome.file("/work/big").expect("file came back");
    assert_eq!(big.len(), 8_000_000);
    let digest: String = Sha256::digest(big).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(outcome.stdout_text(), format!("from the host{digest}  -\n"));
    assert_eq!(outcome.file("/work/tree/below/empty"), Some(&[][..]));
    assert_eq!(outcome.files.len(), 2, "{:?}", outcome.files.keys());
    assert_eq!(std::fs::read(outcome.directory.join("stdout")).unwrap(), outcome.stdout);
}

/// Compiles a C program for the guest.
fn compile(dir: &Path, name: &str, source: &str) -> std::path::PathBuf {
    let (input, output) = (dir.join(format!("{name}.c")), dir.join(name));
    std::fs::write(&input, source).unwrap();
    let status = Command::new("gcc").arg("-o").args([&output, &input]).status().unwrap();
    assert!(status.success());
    output
}

#[test]
fn a_program_killed_by_a_signal_is_no_kernel_failure() {
    let dir = tempfile::tempdir().unwrap();
    let program =
        compile(dir.path(), "segv", "int main(void) { *(volatile int *)0 = 1; return 0; }");
    let mut job =
        Job::new("segv", KernelVersion::V6_12).kpti(false).command([program.to_str().unwrap()]);
    job.smp = 1;
    let outcome = run(&job);
    assert_eq!(outcome.status, ExitStatus::Signal(11));
    assert_eq!(outcome.status.shell_code(), 139);
    assert!(outcome.console.contains("segfault at 0"), "{}", outcome.console);
}

/// With `icount` the guest's cycle counter counts instructions: a loop of
/// known length takes as many cycles, and idle time costs no time.
#[test]
fn instructions_are_the_clock() {
    let dir = tempfile::tempdir().unwrap();
    let source = r#"
        #include <stdio.h>
        #include <x86intrin.h>
        int main(void) {
            unsigned long best = ~0ul;
            for (int round = 0; round < 20; round++) {
                unsigned long start = __rdtsc(), left = 500000;
                /* Two instructions each. */
                __asm__ volatile("1: dec %0\n\tjnz 1b" : "+r"(left));
                unsigned long cycles = __rdtsc() - start;
                best = cycles < best ? cycles : best;
            }
            printf("%lu\n", best);
            return 0;
        }
    "#;
    let program = compile(dir.path(), "count", source);
    let mut job = Job::new("icount", KernelVersion::V6_12)
        .kpti(false)
        .icount(0)
        .shell("sleep 3600; /usr/bin/count")
        .program(program)
        .program("sleep");
    job.smp = 1;
    // The interrupts of the timer are in the longer rounds, not in the best.
    let outcome = run(&job);
    let cycles: u64 = outcome.stdout_text().trim().parse().unwrap();
    assert!((1_000_000..1_000_100).contains(&cycles), "{cycles} cycles");
}

#[test]
fn stock_modules_are_loaded_with_their_dependencies() {
    let mut job = Job::new("stock-modules", KernelVersion::V6_12)
        .kpti(false)
        .command(["cat", "/proc/modules"]);
    job.stock_modules = vec!["virtio_net".into()];
    // Also finds the guest's init by itself, as other crates' tests must.
    let outcome = ub_vm_lab::run(&job).unwrap_or_else(|error| panic!("{error}"));
    let loaded = outcome.stdout_text();
    for module in ["virtio_net ", "net_failover ", "failover "] {
        assert!(loaded.contains(module), "{module} not in\n{loaded}");
    }
}

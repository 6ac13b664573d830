//! Out-of-tree modules: built against the stock headers, loaded, unloaded,
//! and their failures noticed.

mod common;

use std::fs;
use std::path::Path;

use common::{fail, lab, run};
use tempfile::TempDir;
use ub_vm_lab::{ExitStatus, Job, KernelVersion, LabError, Module};

/// A source folder with one module per (name, body of its init function).
fn sources(modules: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut kbuild = String::new();
    for (name, body) in modules {
        let source = format!(
            r#"#include <linux/module.h>
static int value = 1;
module_param(value, int, 0444);
static int __init start(void)
{{
	{body}
}}
static void __exit stop(void)
{{
	pr_info("{name} stops\n");
}}
module_init(start);
module_exit(stop);
MODULE_DESCRIPTION("Test of the VM lab");
MODULE_LICENSE("GPL");
"#
        );
        fs::write(dir.path().join(format!("{name}.c")), source).unwrap();
        kbuild.push_str(&format!("obj-m += {name}.o\n"));
    }
    fs::write(dir.path().join("Kbuild"), kbuild).unwrap();
    dir
}

fn build(kernel: KernelVersion, dir: &Path) -> Vec<std::path::PathBuf> {
    match lab().kernel(kernel).unwrap().build_module(dir) {
        Ok(modules) => modules,
        Err(error) => panic!("{error}"),
    }
}

fn modules_live_and_leave(kernel: KernelVersion) {
    let dir = sources(&[
        ("lab_first", r#"pr_info("first has %d\n", value); return 0;"#),
        ("lab_second", r#"pr_info("second has %d\n", value); return 0;"#),
    ]);
    let files = build(kernel, dir.path());
    let names: Vec<_> =
        files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["lab_first.ko", "lab_second.ko"]);
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        3,
        "the build wrote to the source folder"
    );
    assert_eq!(build(kernel, dir.path()), files, "the second build is the first one's result");

    let mut job = Job::new("modules", kernel).kpti(false).command([
        "cat",
        "/proc/modules",
        "/proc/sys/kernel/softlockup_panic",
        "/proc/sys/kernel/hung_task_panic",
    ]);
    job.modules = files.into_iter().map(Module::new).collect();
    job.modules[1].parameters = "value=42".into();
    job.unload_modules = true;
    let outcome = run(&job);
    assert_eq!(outcome.status, ExitStatus::Code(0));
    let loaded = outcome.stdout_text();
    assert!(loaded.contains("lab_first ") && loaded.contains("lab_second "), "{loaded}");
    assert!(loaded.ends_with("\n1\n1\n"), "lockups are not fatal:\n{loaded}");
    let said = |text: &str| {
        outcome.console.find(text).unwrap_or_else(|| panic!("{text} not in\n{}", outcome.console))
    };
    assert!(said("first has 1") < said("second has 42"));
    assert!(said("lab_second stops") < said("lab_first stops"));
}

#[test]
fn modules_live_and_leave_on_6_12() {
    modules_live_and_leave(KernelVersion::V6_12);
}

#[test]
fn modules_live_and_leave_on_6_1() {
    modules_live_and_leave(KernelVersion::V6_1);
}

#[test]
fn a_warning_of_a_module_fails_the_job() {
    let dir = sources(&[("lab_warns", "WARN_ON(value == 1); return 0;")]);
    let mut job = Job::new("warns", KernelVersion::V6_12).kpti(false).command(["true"]);
    job.modules = build(KernelVersion::V6_12, dir.path()).into_iter().map(Module::new).collect();
    match fail(&job) {
        LabError::GuestKernel(report) => {
            assert!(
                report.finding.as_deref().is_some_and(|line| line.starts_with("WARNING: ")),
                "{report}"
            );
            assert!(report.log_excerpt.contains("lab_warns"), "{report}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_module_that_refuses_to_load_is_no_kernel_failure() {
    let dir = sources(&[("lab_refuses", "return value == 1 ? -ENODEV : 0;")]);
    let mut job = Job::new("refuses", KernelVersion::V6_12).kpti(false).command(["true"]);
    job.modules = build(KernelVersion::V6_12, dir.path()).into_iter().map(Module::new).collect();
    match fail(&job) {
        LabError::GuestSetup { message, .. } => {
            assert!(message.contains("lab_refuses.ko") && message.contains("ENODEV"), "{message}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn compiler_warnings_fail_the_build() {
    let dir = sources(&[("lab_sloppy", "int unused; return 0;")]);
    let error = lab().kernel(KernelVersion::V6_12).unwrap().build_module(dir.path()).unwrap_err();
    match error {
        LabError::ModuleBuild { output, .. } => assert!(output.contains("unused"), "{output}"),
        other => panic!("{other}"),
    }
}

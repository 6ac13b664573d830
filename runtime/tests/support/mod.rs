//! Guests for the tests in virtual machines: what goes into them and what is
//! expected of what comes back.

#![allow(dead_code, reason = "each test file uses its part of this module")]

pub mod both_ways;
pub mod compare;
pub mod documents;
pub mod scenarios;
pub mod strace;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ub_bench::demo::find_program;
use ub_vm_lab::{ExitStatus, Job, Kernel, KernelVersion, Lab, LabError, Module, Outcome};

/// What the shell scripts of the tests use besides `ub` and the shell.
const TOOLS: [&str; 6] = ["cat", "cp", "grep", "rm", "sleep", "timeout"];

/// Parameters of ub.ko for tests of the ride itself: whatever is seen a few
/// times rides and goes on riding, also where an emulator makes it slower. `module`
/// takes them from the environment.
pub const EAGER: &str = "sample_interval=1 min_rate=1 hot_count=64 miss_window_ms=3600000 \
                         gap_short_ns=1000000000 gap_max_ns=1000000000 native_interval=4294967295";

/// The shell functions `once NAME COMMAND...`, which leaves what a program printed and its
/// exit status in files of that name, and `await_report FILE`.
pub const RUN_FUNCTIONS: &str = r#"
once() {
	local run=$1 status=0
	shift
	timeout --foreground --kill-after=2 $((280 * ${UB_LAB_SLOWNESS:?})) "$@" >$run.out 2>$run.err </dev/null || status=$?
	echo $status >$run.status
}
# The supervisor outlives the program by a moment.
await_report() {
	for i in 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9; do
		! grep -qs '"ended":true' $1 || return 0
		sleep 0.1
	done
	echo "$1: the session did not end" >&2
}
"#;

/// Folder of the guest whose files come back.
pub const RESULTS: &str = "/results";

/// One of the machines that every promise is kept on.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    pub kernel: KernelVersion,
    pub kpti: bool,
}

impl Machine {
    pub const V6_12_KPTI_ON: Self = Self { kernel: KernelVersion::V6_12, kpti: true };
    pub const V6_12_KPTI_OFF: Self = Self { kernel: KernelVersion::V6_12, kpti: false };
    pub const V6_1_KPTI_ON: Self = Self { kernel: KernelVersion::V6_1, kpti: true };
    pub const V6_1_KPTI_OFF: Self = Self { kernel: KernelVersion::V6_1, kpti: false };

    /// A job with `ub`, the shell and its tools. The modules lie in
    /// `/ub/modules`, loaded if `load` is set.
    pub fn job(self, lab: &Lab, name: &str, load: bool) -> Job {
        self.job_of_build(lab, name, load, &[])
    }

    /// The same with modules that lack a protection (see `protection.h`).
    pub fn job_without(self, lab: &Lab, name: &str, load: bool, protection: &str) -> Job {
        self.job_of_build(lab, name, load, &[&without(protection)])
    }

    fn job_of_build(self, lab: &Lab, name: &str, load: bool, settings: &[&str]) -> Job {
        let mut job = self.job_without_modules(name);
        let files = module_files(&self.kernel(lab), settings);
        job.modules = files.into_iter().map(Module::new).collect();
        for module in &mut job.modules {
            module.load = load;
        }
        if let Some(ub) = job.modules.last_mut() {
            ub.parameters = EAGER.into();
        }
        job
    }

    /// The same for what needs no modules; none are there.
    pub fn job_without_modules(self, name: &str) -> Job {
        let mut job = Job::new(name, self.kernel)
            .kpti(self.kpti)
            .timeout(Duration::from_secs(300))
            .file(env!("CARGO_BIN_EXE_ub"), "/usr/bin/ub")
            .collect(RESULTS)
            .env("UB_PARAMETERS", EAGER);
        // Both settings are covered without doubling the number of guests.
        job.la57 = self.kpti;
        job.programs.extend(TOOLS.iter().map(PathBuf::from));
        job.directories.push(RESULTS.into());
        job
    }

    pub fn kernel(self, lab: &Lab) -> Kernel {
        lab.kernel(self.kernel).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// This host, ready to boot guests.
pub fn lab() -> Lab {
    Lab::new().unwrap_or_else(|error| panic!("{error}"))
}

/// Files of the modules, built with more settings for make, in the order of loading.
pub fn module_files(kernel: &Kernel, settings: &[&str]) -> Vec<PathBuf> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel-patch/module");
    let mut files =
        kernel.build_module_with(&sources, settings).unwrap_or_else(|error| panic!("{error}"));
    files.sort_by_key(|file| !file.ends_with("ub_gate.ko"));
    assert_eq!(files.len(), 2, "ub_gate.ko and ub.ko: {files:?}");
    files
}

/// The setting of make for a build without a protection.
fn without(protection: &str) -> String {
    format!("UB_WITHOUT_PROTECTION={protection}")
}

/// How the kernel of a guest goes down that runs what is no code any more.
const FATAL: [&str; 3] = ["int3: 0000", "Oops: ", "unable to handle page fault"];

/// Fails unless the job takes its guest's kernel down, as it must without a protection.
#[track_caller]
pub fn assert_takes_kernel_down(lab: &Lab, job: &Job) {
    match lab.run(job) {
        Err(error @ LabError::GuestKernel(_)) => {
            let error = error.to_string();
            assert!(FATAL.iter().any(|what| error.contains(what)), "{error}");
            println!("{error}");
        }
        Err(error) => panic!("{error}"),
        Ok(outcome) => panic!("passes without the protection: {}", outcome.stdout_text()),
    }
}

/// Adds modules built without a protection (see `protection.h`), in
/// `/ub/without/PROTECTION`. They are not loaded.
pub fn with_modules_without(job: Job, kernel: &Kernel, protection: &str) -> Job {
    module_files(kernel, &[&without(protection)]).into_iter().fold(job, |job, file| {
        let name = file.file_name().expect("modules have names");
        let place = Path::new("/ub/without").join(protection).join(name);
        job.file(&file, place)
    })
}

/// Compiles a program of `tests/guest` from its sources.
pub fn compile(name: &str, sources: &[&str]) -> PathBuf {
    compile_with(name, sources, &[])
}

/// [`compile`] with options for the compiler.
fn compile_with(name: &str, sources: &[&str], options: &[&str]) -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = manifest.join("tests/guest");
    let built = tempfile::Builder::new()
        .prefix("guest-")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .expect("cargo's folder for test files is writable");
    let program = built.path().join(name);
    let output = Command::new("gcc")
        .args(["-std=gnu11", "-O1", "-mavx", "-pthread", "-Wall", "-Wextra", "-Werror"])
        // What a table leaves out is zero.
        .arg("-Wno-missing-field-initializers")
        .arg("-I")
        .arg(manifest.join("../kernel-patch/module/uapi"))
        .arg("-o")
        .arg(&program)
        .args(options)
        .args(sources.iter().map(|source| folder.join(source)))
        .output()
        .expect("gcc is installed");
    assert!(
        output.status.success(),
        "compiling {name}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Tests may run at the same time: replace the old program at once.
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::rename(&program, &place).expect("same folder");
    place
}

/// Adds a compiled program as `/usr/bin/NAME`.
pub fn with_program(job: Job, name: &str, sources: &[&str]) -> Job {
    job.file(compile(name, sources), Path::new("/usr/bin").join(name))
}

/// Makes the job run `tests/guest/NAME.sh` with these programs of that folder.
pub fn scripted(job: Job, name: &str, programs: &[&str]) -> Job {
    let job = programs.iter().fold(job.program("cut").program("mkfifo"), |job, program| {
        with_program(job, program, &[&format!("{program}.c")])
    });
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest");
    let place = format!("/usr/bin/{name}.sh");
    job.file(folder.join("steps.sh"), "/usr/bin/steps.sh")
        .file(folder.join(format!("{name}.sh")), &place)
        .command(["sh", "-e", &place])
}

/// The steps that the script told of must be exactly these.
#[track_caller]
pub fn assert_steps(outcome: &Outcome, expected: &[String]) {
    let stdout = outcome.stdout_text();
    let steps: Vec<&str> = stdout.lines().collect();
    assert_eq!(
        steps,
        expected,
        "stderr: {}\nlogs: {}",
        outcome.stderr_text(),
        outcome.directory.display()
    );
}

/// The session report must tell of calls that were ridden.
#[track_caller]
pub fn assert_ridden(outcome: &Outcome, report: &str) {
    let json: serde_json::Value = serde_json::from_str(&result(outcome, report))
        .unwrap_or_else(|error| panic!("{report}: {error}"));
    assert!(json["ridden"].as_u64() > Some(0), "{report}: nothing rode: {json}");
}

/// What a session report tells of translations that must not happen, as text.
pub fn supervisor_failures(report: &serde_json::Value) -> Vec<String> {
    ["translator_bug", "verifier_refused", "panic", "module_refused"]
        .into_iter()
        .filter_map(|failure| {
            let count = report["translations"]["failed"][failure].as_u64().unwrap_or(0);
            (count != 0).then(|| format!("supervisor: {count} times {failure}"))
        })
        .collect()
}

/// Adds a compiled library as `/usr/lib/NAME`.
pub fn with_library(job: Job, name: &str, source: &str, options: &[&str]) -> Job {
    let options: Vec<_> = ["-shared", "-fPIC"].iter().chain(options).copied().collect();
    job.file(compile_with(name, &[source], &options), Path::new("/usr/lib").join(name))
}

/// Adds a program of Debian's, installed or unpacked by `make deps`.
#[track_caller]
pub fn with_debian_program(job: Job, name: &str) -> Job {
    let found = find_program(name).unwrap_or_else(|error| panic!("{error}"));
    // Some are links to a program of another name.
    let file = found.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", found.display()));
    job.file(file, Path::new("/usr/bin").join(name))
}

/// Runs the job; the lab fails it for whatever the guest's kernel complains of.
#[track_caller]
pub fn run(lab: &Lab, job: &Job) -> Outcome {
    let outcome = lab.run(job).unwrap_or_else(|error| panic!("{error}"));
    for (path, content) in &outcome.files {
        // For whoever has to find out why a test failed.
        let name = path.strip_prefix(RESULTS).unwrap_or(path).to_string_lossy().replace('/', "-");
        let _ = std::fs::write(outcome.directory.join(name), content);
    }
    assert_eq!(
        outcome.status,
        ExitStatus::Code(0),
        "the guest's script failed\n--- stdout ---\n{}\n--- stderr ---\n{}",
        outcome.stdout_text(),
        outcome.stderr_text()
    );
    outcome
}

/// A file that the guest left in [`RESULTS`]; empty if it left none.
pub fn result(outcome: &Outcome, name: &str) -> String {
    let path = Path::new(RESULTS).join(name);
    String::from_utf8_lossy(outcome.file(path).unwrap_or_default()).into_owned()
}

/// The first line in which two texts differ.
pub fn difference(what: &str, native: &str, ridden: &str) -> Option<String> {
    if native == ridden {
        return None;
    }
    let line = native
        .lines()
        .map(Some)
        .chain([None])
        .zip(ridden.lines().map(Some).chain([None]))
        .find(|(native, ridden)| native != ridden);
    let (native, ridden) = line.unwrap_or((Some(native), Some(ridden)));
    Some(format!("{what} differs:\n    native {native:?}\n    ridden {ridden:?}"))
}

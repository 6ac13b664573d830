//! The profiler on Debian's redis-server under load, on this machine's own
//! kernel: against what strace counts, and what it costs. Where the user who
//! runs the tests may not use BPF, nothing is tested, which is said.

#[path = "../../ebpf-fallback/tests/support/not_tested.rs"]
mod not_tested;
mod support;

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use not_tested::not_tested;
use serde_json::Value;
use support::strace::{self, Passages};
use ub_bench::demo::find_program;
use ub_bench::output;
use ub_bench::resp::Client;
use ub_ebpf_fallback::Profiler;

const UB: &str = env!("CARGO_BIN_EXE_ub");
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests while strace watches, which makes each of them slow.
const TRACED_REQUESTS: u64 = 10_000;

/// Requests of one measurement of the cost: about a second.
const MEASURED_REQUESTS: u64 = 50_000;
const CONNECTIONS: u32 = 50;
const PAIRS: usize = 16;
const PROMISED: f64 = 0.95;
/// Times that something is predicted.
const PREDICTIONS: usize = 8;
/// The CPUs of server and load, where there are two.
const SERVER_CPU: &str = "0";
const CLIENT_CPU: &str = "1";

/// Something started, which ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the program starts"),
        )
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    /// Ends it as Ctrl-C does.
    fn interrupt(mut self) {
        kill(self.pid(), Signal::SIGINT).expect("it runs");
        self.0.wait().expect("it ends");
    }
}

/// A redis-server.
struct Server {
    running: Running,
    port: u16,
}

impl Server {
    fn start(folder: &Path, cpu: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it has a port");
        drop(listener);
        let program = find_program("redis-server").unwrap_or_else(|error| panic!("{error}"));
        let mut command = on_cpu(cpu, &program);
        command.args(["--port", &address.port().to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--loglevel", "warning", "--dir"]).arg(folder);
        let running = Running::start(&mut command);
        wait_until("redis answers", || Client::connect(address).is_ok());
        Self { running, port: address.port() }
    }

    /// CPU time of its main thread so far.
    fn cpu_ns(&self) -> u64 {
        let path = format!("/proc/{}/schedstat", self.running.0.id());
        let text = fs::read_to_string(path).expect("it runs");
        text.split(' ').next().and_then(|time| time.parse().ok()).expect("a number")
    }

    /// Puts a load on it; returns requests per second.
    fn load(&self, clients: u32, requests: u64, cpu: Option<&str>) -> f64 {
        let program = find_program("redis-benchmark").unwrap_or_else(|error| panic!("{error}"));
        let output = on_cpu(cpu, &program)
            .args(["-p", &self.port.to_string(), "-t", "get", "--csv"])
            .args(["-c", &clients.to_string(), "-n", &requests.to_string()])
            .output()
            .expect("redis-benchmark starts");
        let printed = String::from_utf8_lossy(&output.stdout);
        output::redis_benchmark(&printed, "GET").expect("a table").per_second
    }
}

/// A command on one CPU.
fn on_cpu(cpu: Option<&str>, program: &Path) -> Command {
    match cpu {
        None => Command::new(program),
        Some(cpu) => {
            let mut command = Command::new("taskset");
            command.args(["-c", cpu]).arg(program);
            command
        }
    }
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn shares_of_redis_are_those_that_strace_counts() {
    let mut profiler = match Profiler::new() {
        Ok(profiler) => profiler,
        Err(reason) => return not_tested(reason),
    };
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), None);
    profiler.watch_process(server.running.0.id()).unwrap();
    let (trace, errors) = (dir.path().join("trace"), dir.path().join("errors"));
    let strace = Running::start(
        Command::new("strace")
            .args(["-f", "-i", "-o"])
            .arg(&trace)
            .args(["-p", &server.running.0.id().to_string()])
            .stderr(File::create(&errors).unwrap()),
    );
    wait_until("strace is attached", || fs::read_to_string(&errors).unwrap().contains(" attached"));
    load_and_name(&server, &mut profiler, TRACED_REQUESTS);
    strace.interrupt();
    let profile = profiler.finish();
    let traced = Passages::traced(&fs::read_to_string(&trace).unwrap());
    let counted = Passages::profiled(&serde_json::to_value(&profile).unwrap(), |_| true);
    strace::assert_same_shares(&traced, &counted);
    assert!(traced.total() > 2 * TRACED_REQUESTS);
    // The calls for each request have names, and their callers are known;
    // Debian strips the names of static ones.
    for call in ["read", "write", "epoll_wait"] {
        let gaps = profile.gaps.iter().filter(|gap| gap.call.as_deref() == Some(call));
        let most = gaps.max_by_key(|gap| gap.count).unwrap_or_else(|| panic!("no {call}"));
        let from = most.from().unwrap_or_default();
        println!("{from}");
        assert!(from.starts_with("redis-server") && from.contains(" -> libc!"), "{call}: {from}");
    }
}

/// Puts a load on the server while the profiler looks what is new.
fn load_and_name(server: &Server, profiler: &mut Profiler, requests: u64) {
    std::thread::scope(|scope| {
        let load = scope.spawn(|| server.load(8, requests, None));
        while !load.is_finished() {
            profiler.take_events();
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    profiler.take_events();
}

/// What a load was like.
struct Measured {
    requests_per_second: f64,
    /// Of the server's main thread.
    cpu_ns_per_request: f64,
}

impl Measured {
    fn of(server: &Server, cpu: Option<&str>) -> Self {
        let before = server.cpu_ns();
        let requests_per_second = server.load(CONNECTIONS, MEASURED_REQUESTS, cpu);
        let cpu_ns_per_request = (server.cpu_ns() - before) as f64 / MEASURED_REQUESTS as f64;
        Self { requests_per_second, cpu_ns_per_request }
    }

    /// The same while `ub profile -p` counts.
    fn profiled(server: &Server, folder: &Path, cpu: Option<&str>) -> Self {
        let file = folder.join("profile.json");
        let profiler = Running::start(
            Command::new(UB)
                .args(["profile", "--format", "json", "--output"])
                .arg(&file)
                .args(["-p", &server.running.0.id().to_string()]),
        );
        // It measures the machine first; whether it was there in time shows
        // below.
        std::thread::sleep(Duration::from_secs(1));
        let measured = Self::of(server, cpu);
        profiler.interrupt();
        let json: Value =
            serde_json::from_slice(&fs::read(file).expect("a profile")).expect("JSON");
        let calls = json["syscalls"].as_u64().expect("a number");
        assert!(calls >= 2 * MEASURED_REQUESTS, "only {calls} calls were seen");
        measured
    }
}

/// Throughput without and with `ub profile -p`, in turns.
#[test]
#[ignore = "long: make profiler-cost"]
fn cost_of_profiling_redis() {
    if let Err(reason) = Profiler::check() {
        return eprintln!("not measured: {reason}");
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let (ours, theirs) = if cpus > 1 { (Some(SERVER_CPU), Some(CLIENT_CPU)) } else { (None, None) };
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), ours);
    let native = || Measured::of(&server, theirs);
    let profiled = || Measured::profiled(&server, dir.path(), theirs);
    native();
    let (mut rates, mut times) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        // What drifts meets both of them.
        let (native, profiled) = if pair % 2 == 0 {
            (native(), profiled())
        } else {
            let profiled = profiled();
            (native(), profiled)
        };
        rates.push(profiled.requests_per_second / native.requests_per_second);
        times.push(profiled.cpu_ns_per_request / native.cpu_ns_per_request);
        println!(
            "native {:.0}, profiled {:.0} requests a second; {:.0} and {:.0} ns of CPU time each",
            native.requests_per_second,
            profiled.requests_per_second,
            native.cpu_ns_per_request,
            profiled.cpu_ns_per_request
        );
    }
    let (rate, time) = (median(rates), median(times));
    println!(
        "a profiled redis-server keeps {:.1} % of its throughput and takes {:.1} % of its CPU time \
         for a request (medians of {PAIRS} pairs); promised: {:.0} % of the throughput: {}",
        rate * 100.0,
        time * 100.0,
        PROMISED * 100.0,
        if rate >= PROMISED { "kept" } else { "NOT KEPT" }
    );
}

/// CPU time of a program as `ub predict` finds it while it watches, against what the program
/// takes when nobody does, in turns.
#[test]
#[ignore = "long: make profiler-cost"]
fn cpu_time_that_predictions_start_from() {
    if let Err(reason) = Profiler::check() {
        return eprintln!("not measured: {reason}");
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), None);
    Measured::of(&server, None);
    compare(
        "redis-server, for a request",
        || Measured::of(&server, None).cpu_ns_per_request,
        || {
            predicted_cpu_ns(dir.path(), MEASURED_REQUESTS, |predict| {
                let predict =
                    Running::start(predict.args(["-p", &server.running.0.id().to_string()]));
                std::thread::sleep(Duration::from_secs(1));
                server.load(CONNECTIONS, MEASURED_REQUESTS, None);
                predict.interrupt();
            })
        },
    );
    let copy = ["dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=2000000", "status=none"];
    let calls = 4_000_000;
    let run = |command: &mut Command| assert!(command.status().expect("it starts").success());
    let native = || {
        let before = cpu_ns_of_children();
        run(Command::new(copy[0]).args(&copy[1..]));
        (cpu_ns_of_children() - before) / calls as f64
    };
    compare("dd bs=1, for a call", native, || {
        predicted_cpu_ns(dir.path(), calls, |predict| run(predict.arg("--").args(copy)))
    });
}

/// Prints how far what is predicted is from what is so.
fn compare(what: &str, native: impl Fn() -> f64, predicted: impl Fn() -> f64) {
    let (mut ratios, mut all) = (Vec::new(), Vec::new());
    for round in 0..PREDICTIONS {
        let (native, predicted) = if round % 2 == 0 {
            (native(), predicted())
        } else {
            let predicted = predicted();
            (native(), predicted)
        };
        ratios.push(predicted / native);
        all.push(format!("{predicted:.0} for {native:.0}"));
    }
    println!(
        "{what}: {:.1} % of its CPU time (median); ns: {}",
        100.0 * median(ratios),
        all.join(", ")
    );
}

/// CPU time for each of `units` of work, that had a profiler meanwhile, by `ub predict`.
fn predicted_cpu_ns(folder: &Path, units: u64, watch: impl FnOnce(&mut Command)) -> f64 {
    let file = folder.join("prediction.json");
    let mut predict = Command::new(UB);
    watch(predict.args(["predict", "--estimate", "--format", "json", "--output"]).arg(&file));
    let json: Value = serde_json::from_slice(&fs::read(&file).expect("a prediction")).unwrap();
    let number = |value: &Value| value.as_f64().expect("a number");
    let timed = number(&json["calls"]);
    let calls = timed + number(&json["counted"]["calls"]);
    assert!(calls >= 0.9 * units as f64, "only {calls} calls were seen");
    number(&json["busy_ns"]) / timed * calls / units as f64
}

fn cpu_ns_of_children() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("it is always known");
    let ns = |time: TimeVal| 1e9 * time.tv_sec() as f64 + 1e3 * time.tv_usec() as f64;
    ns(usage.user_time()) + ns(usage.system_time())
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    f64::midpoint(numbers[(numbers.len() - 1) / 2], numbers[numbers.len() / 2])
}

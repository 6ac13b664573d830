//! How programs' code comes to be cut into fragments: records what redis-server
//! and nginx run under load, and a loop of null calls, by single-stepping them,
//! and lets that pass by the real supervisor again and again. Each link from
//! fragment to fragment costs a ride instructions; `kernel-patch/module/README.md`
//! counts them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ub_bench::demo::find_program;
use ub_benches::recording::{Load, Server};
use ub_benches::replay::{Because, Pass, Replay, Way};
use ub_runtime::supervisor::{Pipeline, Supervisor};

const PORT: u16 = 17_777;
const REDIS: Load<'_> = Load {
    port: PORT,
    connections: 50,
    request: b"*2\r\n$3\r\nGET\r\n$16\r\nkey:__rand_int__\r\n",
};
const NGINX: Load<'_> = Load {
    port: PORT + 1,
    connections: 10,
    request: b"GET /4096 HTTP/1.1\r\nHost: 127.0.0.1:17778\r\n\r\n",
};
/// Bytes of the file that nginx serves, which bears this name.
const FILE_BYTES: usize = 4096;
/// Instructions that are recorded: dozens of requests.
const STEPS: usize = 200_000;
/// How long they pass, and how often that is told.
const TIME: Duration = Duration::from_secs(12);
const TOLD: Duration = Duration::from_secs(1);
/// Between two passes, so that the supervisor's waiting is not all that happens.
const PAUSE: Duration = Duration::from_millis(2);
/// How many of the most frequent ways from one fragment to another are told.
const WAYS: usize = 10;
/// With this argument this program is the loop of null calls.
const LOOP: &str = "--loop-of-null-calls";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == LOOP) {
        loop {
            black_box(ub_bench::micro::null(1 << 20, 0));
        }
    }
    println!("{}", ub_benches::environment()?);
    // Those that are named, or all.
    let names: Vec<_> = arguments.iter().filter(|name| !name.starts_with('-')).collect();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| *wanted == name);
    let folder = tempfile::tempdir().context("making a folder for nginx")?;
    if wanted("redis") {
        told("redis-server", &Server::start_loaded(&mut redis()?, &REDIS)?)?;
    }
    if wanted("nginx") {
        told("nginx", &Server::start_loaded(&mut nginx(folder.path())?, &NGINX)?)?;
    }
    if wanted("null") {
        let program = env::current_exe().context("finding this program")?;
        told("a loop of null calls", &Server::start(Command::new(program).arg(LOOP))?)?;
    }
    Ok(())
}

fn redis() -> Result<Command> {
    let mut redis = Command::new(find_program("redis-server")?);
    redis.args(["--port", &REDIS.port.to_string(), "--bind", "127.0.0.1"]);
    // Stepping is slow: its clockwork would be most of what is recorded.
    redis.args(["--save", "", "--appendonly", "no", "--hz", "1"]);
    Ok(redis)
}

/// One process, everything below `folder`.
fn nginx(folder: &Path) -> Result<Command> {
    let port = NGINX.port;
    let at = folder.display();
    let configuration = format!(
        "daemon off;
master_process off;
pid {at}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 100; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000000;
    default_type application/octet-stream;
    client_body_temp_path {at}/body;
    proxy_temp_path {at}/proxy;
    fastcgi_temp_path {at}/fastcgi;
    uwsgi_temp_path {at}/uwsgi;
    scgi_temp_path {at}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {at};
    }}
}}
"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, configuration).context("configuring nginx")?;
    let served = folder.join(FILE_BYTES.to_string());
    fs::write(served, vec![b'x'; FILE_BYTES]).context("writing what nginx serves")?;
    let mut nginx = Command::new(find_program("nginx")?);
    nginx.arg("-p").arg(folder).arg("-c").arg(file).args(["-e", "stderr"]);
    Ok(nginx)
}

/// Records `server`, whose name is `name`, and tells how it is cut.
fn told(name: &str, server: &Server) -> Result<()> {
    let replay = Replay::new(server.record(STEPS)?);
    println!("\n{STEPS} instructions of {name}, {} of them different", replay.distinct());
    println!(
        "seconds   ridden  links  look-ups  inside  native  fragments  translations  translated  \
         code  took"
    );
    println!(
        "         % calls     per    system call, instructions                     instructions   \
         KiB     s"
    );
    let pipeline = replay.pipeline();
    let mut supervisor = Supervisor::new(replay, pipeline);
    let start = Instant::now();
    let mut told = start;
    let mut last = Pass::default();
    while start.elapsed() < TIME {
        let pass = supervisor.kernel().pass();
        supervisor.work()?;
        if told.elapsed() >= TOLD {
            told = Instant::now();
            tell(start.elapsed(), &pass, &supervisor);
        }
        last = pass;
        thread::sleep(PAUSE);
    }
    tell_ways(&last, supervisor.kernel());
    Ok(())
}

fn tell<P: Pipeline>(elapsed: Duration, pass: &Pass, supervisor: &Supervisor<Replay, P>) {
    let per_call = |count: u64| count as f64 / pass.calls.max(1) as f64;
    let counters = supervisor.counters();
    println!(
        "{:7.1} {:8.1} {:6.1} {:9.1} {:7.0} {:7.0} {:10} {:13} {:11} {:5} {:5.2}",
        elapsed.as_secs_f64(),
        100.0 * per_call(pass.ridden),
        per_call(pass.links),
        per_call(pass.lookups),
        per_call(pass.inside),
        per_call(pass.native),
        supervisor.kernel().fragments(),
        counters.installed,
        counters.guest_instructions,
        supervisor.kernel().code_bytes() >> 10,
        counters.time_total().as_secs_f64(),
    );
}

/// Why and where fragments are left for others in the end.
fn tell_ways(pass: &Pass, replay: &Replay) {
    let per_call = |count: u64| count as f64 / pass.calls.max(1) as f64;
    let mut reasons: BTreeMap<Because, u64> = BTreeMap::new();
    for (way, count) in &pass.ways {
        *reasons.entry(way.because).or_default() += count;
    }
    for (because, count) in reasons {
        println!("{:6.2} a call: {because}", per_call(count));
    }
    let mut ways: Vec<(&Way, u64)> = pass.ways.iter().map(|(way, count)| (way, *count)).collect();
    ways.sort_unstable_by_key(|(_, count)| Reverse(*count));
    for (way, count) in ways.into_iter().take(WAYS) {
        let place = |entry| match replay.size(entry) {
            Some((instructions, reach)) => {
                format!("{} ({instructions} instructions, {reach:?})", replay.place(entry))
            }
            None => replay.place(entry),
        };
        let (from, to, site) = (place(way.fragment), place(way.target), replay.place(way.site));
        println!("{:6.2} from {from} at {site} to {to}: {}", per_call(count), way.because);
    }
    for (address, count) in &pass.ends {
        println!("{:6.2} rides end at {}", per_call(*count), replay.place(*address));
    }
}

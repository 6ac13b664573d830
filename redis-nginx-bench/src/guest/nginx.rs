//! Measures nginx: wrk puts the load on it, an own client fetches bodies of
//! several sizes and compares them with what was written to disk.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::launch::{How, Launcher, Running, free_address};
use super::{Amount, Sample};
use crate::content::{self, Digest};
use crate::http::Client;
use crate::outcome::Round;
use crate::{Error, Result, output};

/// Sizes of the served files, in bytes. The load is on the one of 4 KiB; the
/// others go through header-only answers, one `writev` and partial sends.
const SIZES: [usize; 6] = [0, 1, 500, 4096, 65_536, 1 << 20];
/// The file under load.
const LOADED: usize = 4096;

pub(super) fn sample(launcher: &Launcher, how: How, amount: &Amount) -> Result<Sample> {
    let address = free_address()?;
    let mut server = start(launcher, how, address)?;
    let mut faults = Vec::new();
    fetch(address, &mut Digest::default(), &mut faults)?;
    if amount.warmup > Duration::ZERO {
        load(launcher, address, amount.warmup, &mut faults)?;
    }
    let settled = server.settle(how, launcher.plan(), || {
        load(launcher, address, amount.warmup, &mut faults).map(drop)
    })?;
    let earlier = server.session_so_far()?;
    let cpu_before = server.cpu_time()?;
    let timed = load(launcher, address, amount.timed, &mut faults)?;
    let cpu = server.cpu_time()? - cpu_before;
    let mut digest = Digest::default();
    let fetched = fetch(address, &mut digest, &mut faults)?;
    server.stop(Signal::SIGQUIT)?;
    Ok(Sample {
        round: Round {
            operations: timed.requests,
            seconds: timed.requests as f64 / timed.per_second,
        },
        digest: digest.finish(),
        faults,
        cpu: Some(cpu),
        settled,
        session: server.session(earlier.as_ref(), timed.requests + fetched)?,
    })
}

/// Writes files and configuration, starts nginx, waits until it listens.
fn start(launcher: &Launcher, how: How, address: SocketAddr) -> Result<Running> {
    let plan = launcher.plan();
    let folder = plan.scratch.join("nginx");
    let write = |path: &Path, data: &[u8]| {
        fs::write(path, data).map_err(Error::io(format!("writing {}", path.display())))
    };
    fs::create_dir_all(folder.join("www"))
        .map_err(Error::io(format!("creating {}", folder.display())))?;
    for size in SIZES {
        write(&folder.join("www").join(size.to_string()), &content::bytes(size as u64, size))?;
    }
    let file = folder.join("nginx.conf");
    write(&file, configuration(&folder, address).as_bytes())?;
    let (folder, file) = (folder.to_string_lossy(), file.to_string_lossy());
    let program = &plan.programs.nginx;
    let mut server =
        launcher.server(how, program, &["-p", &folder, "-c", &file, "-e", "stderr"])?;
    server.until("an open port", || Client::connect(address).ok())?;
    Ok(server)
}

/// One worker, nothing logged, everything below `folder`.
fn configuration(folder: &Path, address: SocketAddr) -> String {
    let folder = folder.display();
    // The user directive means something (and is allowed) for root only.
    let user = if nix::unistd::geteuid().is_root() { "user root root;" } else { "" };
    format!(
        "{user}
daemon off;
master_process on;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000000;
    default_type application/octet-stream;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {address};
        root {folder}/www;
    }}
}}
"
    )
}

/// Fetches every file and one that is not there; returns how many requests
/// that were.
fn fetch(address: SocketAddr, digest: &mut Digest, faults: &mut Vec<String>) -> Result<u64> {
    let mut client = Client::connect(address)?;
    for size in SIZES {
        let response = client.get(&format!("/{size}"))?;
        if response.status != 200 || response.body != content::bytes(size as u64, size) {
            let (status, length) = (response.status, response.body.len());
            faults.push(format!("file of {size} bytes came as {length} bytes, status {status}"));
        }
        digest.add(&response.status.to_string(), &response.body);
    }
    let missing = client.get("/missing")?;
    if missing.status != 404 {
        faults.push(format!("a missing file has status {}", missing.status));
    }
    digest.add("missing", &missing.body);
    Ok(SIZES.len() as u64 + 1)
}

/// One run of wrk. It takes whole seconds only.
fn load(
    launcher: &Launcher,
    address: SocketAddr,
    duration: Duration,
    faults: &mut Vec<String>,
) -> Result<output::Wrk> {
    let plan = launcher.plan();
    let seconds = duration.as_millis().div_ceil(1000).max(1).to_string();
    let connections = plan.connections.to_string();
    let url = format!("http://{address}/{LOADED}");
    let arguments = [
        "--threads",
        "1",
        "--connections",
        &connections,
        "--duration",
        &seconds,
        "--timeout",
        "30",
        &url,
    ];
    let result = output::wrk(&launcher.client(&plan.programs.wrk, &arguments)?)?;
    if result.errors > 0 {
        faults.push(format!("wrk saw {} errors", result.errors));
    }
    if result.requests == 0 {
        faults.push("wrk completed no request".into());
    }
    Ok(result)
}

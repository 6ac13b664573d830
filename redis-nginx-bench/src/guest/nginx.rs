//! Measures nginx: wrk puts the load on it, a client of our own fetches bodies of
//! several sizes and compares them with what was written to disk.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use super::launch::{How, Launcher, Running, free_address};
use super::subject::{Findings, Load, Subject, Timed};
use crate::content;
use crate::http::Client;
use crate::outcome::Round;
use crate::{Error, Result, output};

/// Sizes of the files that are checked, in bytes. Those beside the one under
/// load go through header-only answers, one `writev` and partial sends.
const SIZES: [u32; 6] = [0, 1, 500, 4096, 65_536, 1 << 20];
/// Connections beyond the load's that the server must be able to keep: the
/// checks' and nginx's own.
const SPARE_CONNECTIONS: u32 = 64;

/// The load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    /// Bytes of the file.
    pub bytes: u32,
    /// Concurrent connections.
    pub connections: u32,
    /// Whether requests are logged.
    pub access_log: bool,
    /// Whether connections are kept for further requests.
    pub keep_alive: bool,
}

/// A server.
#[derive(Debug)]
pub(super) struct Server<'a> {
    launcher: &'a Launcher,
    request: Request,
    address: SocketAddr,
    running: Running,
    log: PathBuf,
}

impl<'a> Server<'a> {
    /// Writes files and configuration, starts nginx, waits until it listens.
    pub(super) fn start(launcher: &'a Launcher, how: How, request: Request) -> Result<Self> {
        let address = free_address()?;
        let plan = launcher.plan();
        // Each server has its own folder: two may run at the same time.
        let folder = plan.scratch.join(format!("nginx-{}", address.port()));
        let write = |path: &Path, data: &[u8]| {
            fs::write(path, data).map_err(Error::io(format!("writing {}", path.display())))
        };
        fs::create_dir_all(folder.join("www"))
            .map_err(Error::io(format!("creating {}", folder.display())))?;
        for size in SIZES.into_iter().chain([request.bytes]) {
            write(&folder.join("www").join(size.to_string()), &body(size))?;
        }
        let file = folder.join("nginx.conf");
        write(&file, configuration(&folder, address, &request).as_bytes())?;
        let log = folder.join("access.log");
        let (folder, file) = (folder.to_string_lossy(), file.to_string_lossy());
        let program = &plan.programs.nginx;
        let mut running =
            launcher.server(how, program, &["-p", &folder, "-c", &file, "-e", "stderr"])?;
        running.until("an open port", || Client::connect(address).ok())?;
        Ok(Self { launcher, request, address, running, log })
    }
}

impl Subject for Server<'_> {
    fn running(&mut self) -> &mut Running {
        &mut self.running
    }

    /// One run of wrk. It takes whole seconds only.
    fn load(&mut self, load: &Load, findings: &mut Findings) -> Result<Timed> {
        let seconds = load.duration.as_millis().div_ceil(1000).max(1).to_string();
        let connections = self.request.connections.to_string();
        let url = format!("http://{}/{}", self.address, self.request.bytes);
        let mut arguments = vec!["--threads", "1", "--connections", &connections];
        arguments.extend(["--duration", &seconds, "--timeout", "30", "--latency"]);
        if !self.request.keep_alive {
            arguments.extend(["--header", "Connection: close"]);
        }
        arguments.push(&url);
        let program = &self.launcher.plan().programs.wrk;
        let result = output::wrk(&self.launcher.client(program, &arguments)?)?;
        if result.errors > 0 {
            findings.faults.push(format!("wrk saw {} errors", result.errors));
        }
        if result.requests == 0 {
            findings.faults.push("wrk completed no request".into());
        }
        if self.request.access_log {
            // It grows by gigabytes in a long run, on a tmpfs.
            let file = fs::OpenOptions::new().write(true).open(&self.log);
            file.and_then(|file| file.set_len(0))
                .map_err(Error::io(format!("emptying {}", self.log.display())))?;
        }
        let seconds = result.requests as f64 / result.per_second;
        let round = Round { operations: result.requests, seconds };
        Ok(Timed { round, latency: result.latency })
    }

    /// Fetches every file and one that is not there.
    fn check(&mut self, findings: &mut Findings) -> Result<()> {
        let mut client = Client::connect(self.address)?;
        let faults = &mut findings.faults;
        for size in SIZES.into_iter().chain([self.request.bytes]) {
            let response = client.get(&format!("/{size}"))?;
            if response.status != 200 || response.body != body(size) {
                let (status, length) = (response.status, response.body.len());
                faults
                    .push(format!("file of {size} bytes came as {length} bytes, status {status}"));
            }
            findings.digest.add(&response.status.to_string(), &response.body);
        }
        let missing = client.get("/missing")?;
        if missing.status != 404 {
            faults.push(format!("a missing file has status {}", missing.status));
        }
        findings.digest.add("missing", &missing.body);
        findings.operations += SIZES.len() as u64 + 2;
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.running.stop(Signal::SIGQUIT)
    }
}

/// What is in the file of `size` bytes.
fn body(size: u32) -> Vec<u8> {
    content::bytes(u64::from(size), size as usize)
}

/// One worker, everything below `folder`.
fn configuration(folder: &Path, address: SocketAddr, request: &Request) -> String {
    let connections = request.connections + SPARE_CONNECTIONS;
    let folder = folder.display();
    let log =
        if request.access_log { format!("{folder}/access.log combined") } else { "off".into() };
    // The user directive means something (and is allowed) for root only.
    let user = if nix::unistd::geteuid().is_root() { "user root root;" } else { "" };
    format!(
        "{user}
daemon off;
master_process on;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections {connections}; }}
http {{
    access_log {log};
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

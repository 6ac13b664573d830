//! Measures memcached, with a client of our own.

use std::net::SocketAddr;

use nix::sys::signal::Signal;

use super::launch::{How, Launcher, Running, free_address};
use super::subject::{Findings, Load, Subject, Timed};
use crate::memcache::{Client, Loaded};
use crate::outcome::Round;
use crate::workload::Access;
use crate::{Error, Result};

/// Number of keys.
const KEYS: u64 = 1000;

/// A server.
#[derive(Debug)]
pub(super) struct Server<'a> {
    launcher: &'a Launcher,
    access: Access,
    bytes: u32,
    clients: u32,
    address: SocketAddr,
    running: Running,
}

impl<'a> Server<'a> {
    /// Starts a server and stores the known values.
    pub(super) fn start(
        launcher: &'a Launcher,
        how: How,
        access: Access,
        bytes: u32,
        clients: u32,
    ) -> Result<Self> {
        let address = free_address()?;
        let port = address.port().to_string();
        let arguments =
            ["-l", "127.0.0.1", "-p", &port, "-U", "0", "-t", "1", "-u", "root", "-m", "64"];
        let program = &launcher.plan().programs.memcached;
        let mut running = launcher.server(how, program, &arguments)?;
        let mut client = running.until("an open port", || Client::connect(address).ok())?;
        client.store(KEYS, bytes)?;
        Ok(Self { launcher, access, bytes, clients, address, running })
    }
}

impl Subject for Server<'_> {
    fn running(&mut self) -> &mut Running {
        &mut self.running
    }

    fn load(&mut self, load: &Load, findings: &mut Findings) -> Result<Timed> {
        let options = [
            ("--address", self.address.to_string()),
            ("--access", self.access.word().to_owned()),
            ("--bytes", self.bytes.to_string()),
            ("--clients", self.clients.to_string()),
            ("--keys", KEYS.to_string()),
            ("--requests", load.operations.to_string()),
        ];
        let mut arguments = vec!["memcached"];
        arguments.extend(options.iter().flat_map(|(name, value)| [*name, value.as_str()]));
        let text = self.launcher.client(&self.launcher.plan().programs.workload, &arguments)?;
        let loaded: Loaded = serde_json::from_str(text.trim())
            .map_err(|error| Error::output("ub-workload", format!("{error} in {text:?}")))?;
        if loaded.wrong > 0 {
            findings.faults.push(format!("memcached gave {} wrong answers", loaded.wrong));
        }
        let seconds = loaded.elapsed_ns as f64 / 1e9;
        let round = Round { operations: loaded.requests, seconds };
        Ok(Timed { round, latency: Some(loaded.latency) })
    }

    fn check(&mut self, findings: &mut Findings) -> Result<()> {
        let mut client = Client::connect(self.address)?;
        for index in 0..KEYS {
            let value = client.fetch(index)?;
            findings.digest.add("value", &value.unwrap_or_default());
        }
        findings.operations += KEYS;
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.running.stop(Signal::SIGTERM)
    }
}

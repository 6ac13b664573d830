//! Measures redis-server: redis-benchmark puts the load on it, a client of our own
//! loads a known dataset and checks what the server says about it.

use std::net::SocketAddr;

use nix::sys::signal::Signal;

use super::launch::{How, Launcher, Running, free_address};
use super::subject::{Findings, Load, Subject, Timed};
use crate::content::{self, Digest};
use crate::outcome::Round;
use crate::resp::{Client, Reply};
use crate::workload::Access;
use crate::{Error, Result, output};

/// Bytes of a list's item and the like in the checks.
const ITEM_BYTES: u32 = 64;

/// The load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    /// `GET` of random keys of the dataset, or `SET` of them to one value.
    pub access: Access,
    /// Bytes of a value.
    pub bytes: u32,
    /// Concurrent connections.
    pub clients: u32,
    /// Requests sent before their answers are read.
    pub pipeline: u32,
}

/// A server and a connection to it.
#[derive(Debug)]
pub(super) struct Server<'a> {
    launcher: &'a Launcher,
    request: Request,
    address: SocketAddr,
    running: Running,
    client: Client,
    /// Whether redis-benchmark has put a load on it.
    loaded: bool,
}

impl<'a> Server<'a> {
    /// Starts a server and stores the known dataset.
    pub(super) fn start(launcher: &'a Launcher, how: How, request: Request) -> Result<Self> {
        let address = free_address()?;
        let (running, client) = start(launcher, how, address)?;
        let mut server = Self { launcher, request, address, running, client, loaded: false };
        let mut faults = Vec::new();
        server.store(&mut faults)?;
        match faults.pop() {
            Some(fault) => Err(Error::Protocol(format!("redis: {fault}"))),
            None => Ok(server),
        }
    }

    /// One run of redis-benchmark; returns what it printed.
    fn benchmark(&self, requests: u64) -> Result<String> {
        let Request { access, bytes, clients, pipeline } = self.request;
        let plan = self.launcher.plan();
        let (host, port) = (self.address.ip().to_string(), self.address.port().to_string());
        let values = [
            ("-h", host),
            ("-p", port),
            ("-t", access.word().to_owned()),
            ("-n", requests.to_string()),
            ("-r", plan.redis_keys.to_string()),
            ("-d", bytes.to_string()),
            ("-c", clients.to_string()),
            ("-P", pipeline.to_string()),
        ];
        let mut arguments: Vec<&str> =
            values.iter().flat_map(|(option, value)| [*option, value]).collect();
        arguments.push("--csv");
        self.launcher.client(&plan.programs.redis_benchmark, &arguments)
    }

    /// Stores the known dataset.
    fn store(&mut self, faults: &mut Vec<String>) -> Result<()> {
        let bytes = self.request.bytes;
        let commands = (0..self.launcher.plan().redis_keys)
            .map(|index| [b"SET".to_vec(), key(index), value(index, bytes)]);
        self.client.pipeline(commands, |index, reply| {
            if reply != Reply::Status("OK".into()) {
                faults.push(format!("SET of key {index}: {reply:?}"));
            }
        })
    }
}

impl Subject for Server<'_> {
    fn running(&mut self) -> &mut Running {
        &mut self.running
    }

    fn load(&mut self, load: &Load, _: &mut Findings) -> Result<Timed> {
        let printed = self.benchmark(load.operations)?;
        self.loaded = true;
        let name = self.request.access.word().to_uppercase();
        let result = output::redis_benchmark(&printed, &name)?;
        let seconds = load.operations as f64 / result.per_second;
        let round = Round { operations: load.operations, seconds };
        Ok(Timed { round, latency: result.latency })
    }

    fn check(&mut self, findings: &mut Findings) -> Result<()> {
        let Findings { digest, faults, .. } = findings;
        let keys = self.launcher.plan().redis_keys;
        check_values(&mut self.client, keys, self.request, self.loaded, faults)?;
        // After SET the values depend on which keys the random load has hit, so
        // the dataset is loaded again: the digest is then that of known data
        // which this very server process stored.
        self.store(faults)?;
        load_structures(&mut self.client, digest, faults)?;
        for question in [&[&b"DBSIZE"[..]][..], &[b"DEBUG", b"DIGEST"]] {
            let answer = self.client.call(question)?;
            if let Reply::Error(text) = &answer {
                faults.push(format!("redis refused {:?}: {text}", question[0].escape_ascii()));
            }
            digest.add("redis", format!("{answer:?}").as_bytes());
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.running.stop(Signal::SIGTERM)
    }
}

/// Starts a server without persistence and waits until it answers.
fn start(launcher: &Launcher, how: How, address: SocketAddr) -> Result<(Running, Client)> {
    let plan = launcher.plan();
    let port = address.port().to_string();
    let folder = plan.scratch.to_string_lossy();
    let mut server = launcher.server(
        how,
        &plan.programs.redis_server,
        &[
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--dir",
            &folder,
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
            "--io-threads",
            "1",
            "--enable-debug-command",
            "yes",
            "--loglevel",
            "warning",
        ],
    )?;
    let client = server.until("an answer to PING", || {
        let mut client = Client::connect(address).ok()?;
        (client.call(&[b"PING"]).ok()? == Reply::Status("PONG".into())).then_some(client)
    })?;
    Ok((server, client))
}

/// The name that redis-benchmark gives key `index`.
fn key(index: u64) -> Vec<u8> {
    format!("key:{index:012}").into_bytes()
}

/// The value that belongs to key `index` in the known dataset.
fn value(index: u64, bytes: u32) -> Vec<u8> {
    content::bytes(index, bytes as usize)
}

/// Reads every key back. After GET each has its known value; after SET it
/// has either that one or the benchmark's, which is the same for all keys.
fn check_values(
    client: &mut Client,
    keys: u64,
    request: Request,
    loaded: bool,
    faults: &mut Vec<String>,
) -> Result<()> {
    let mut written: Option<Vec<u8>> = None;
    let mut changed = 0u64;
    client.pipeline((0..keys).map(|index| [b"GET".to_vec(), key(index)]), |index, reply| {
        let Reply::Bulk(Some(found)) = reply else {
            faults.push(format!("GET of key {index}: {reply:?}"));
            return;
        };
        if found == value(index as u64, request.bytes) {
            return;
        }
        changed += 1;
        let expected = written.get_or_insert_with(|| found.clone());
        if request.access == Access::Get
            || found != *expected
            || found.len() != request.bytes as usize
        {
            faults.push(format!("key {index} has a value that nobody stored"));
        }
    })?;
    // A value of a single byte may be what the key had before.
    if request.access == Access::Set && request.bytes > 1 && loaded && changed == 0 {
        faults.push("redis-benchmark's SETs changed no key".into());
    }
    Ok(())
}

/// Uses the other data types, with answers that are known to be the same
/// every time, and adds the answers to `digest`.
fn load_structures(
    client: &mut Client,
    digest: &mut Digest,
    faults: &mut Vec<String>,
) -> Result<()> {
    let commands = (0..256u64).flat_map(|index| {
        let item = value(index, ITEM_BYTES);
        let number = (index * 37 % 101).to_string().into_bytes();
        let words = |words: &[&[u8]]| words.iter().map(|word| word.to_vec()).collect::<Vec<_>>();
        [
            words(&[b"INCRBY", b"counter", &number]),
            words(&[b"RPUSH", b"list", &item]),
            words(&[b"SADD", b"set", &number]),
            words(&[b"HSET", b"hash", &number, &item]),
            words(&[b"ZADD", b"zset", &number, &item]),
            words(&[b"APPEND", b"long", &item]),
            words(&[b"LINDEX", b"list", &number]),
            words(&[b"ZRANGEBYSCORE", b"zset", &number, &number]),
        ]
    });
    client.pipeline(commands, |index, reply| {
        if let Reply::Error(text) = &reply {
            faults.push(format!("command {index} on structures: {text}"));
        }
        digest.add("structure", format!("{reply:?}").as_bytes());
    })
}

//! Measures redis-server: redis-benchmark puts the load on it, an own client
//! loads a known dataset and checks what the server says about it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::launch::{How, Launcher, Running, free_address};
use super::{Amount, Sample};
use crate::content::{self, Digest};
use crate::outcome::Round;
use crate::resp::{Client, Reply};
use crate::{Result, output};

/// Bytes of a value, here and in redis-benchmark's `-d`.
const VALUE_BYTES: usize = 64;

/// The load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    /// `SET` of random keys of the dataset to one value.
    Set,
    /// `GET` of random keys of the dataset.
    Get,
}

impl Test {
    /// As `redis-benchmark -t` takes it, and as it prints it.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Set => ("set", "SET"),
            Self::Get => ("get", "GET"),
        }
    }
}

pub(super) fn sample(launcher: &Launcher, how: How, amount: &Amount, test: Test) -> Result<Sample> {
    let plan = launcher.plan();
    let address = free_address()?;
    let (mut server, mut client) = start(launcher, how, address)?;
    let mut faults = Vec::new();
    load(&mut client, plan.redis_keys, &mut faults)?;

    let benchmark = |requests: u64| benchmark(launcher, address, test, requests);
    // A short warm-up has no rate: redis-benchmark counts milliseconds.
    if amount.warmup > Duration::ZERO {
        benchmark(amount.warmup_operations)?;
    }
    let settled = server.settle(how, plan, || benchmark(amount.warmup_operations).map(drop))?;
    let earlier = server.session_so_far()?;
    let cpu_before = server.cpu_time()?;
    let printed = benchmark(amount.operations)?;
    let cpu = server.cpu_time()? - cpu_before;
    let rate = output::redis_benchmark(&printed, test.names().1)?;
    // Unless the checks below may count as part of the load, which saves a
    // second.
    let timed = if amount.exact { server.session_so_far()? } else { None };

    let mut digest = Digest::default();
    check_values(&mut client, plan.redis_keys, test, &mut faults)?;
    // After SET the values depend on which keys the random load has hit, so
    // the dataset is loaded again: the digest is then that of known data
    // which this very server process stored.
    load(&mut client, plan.redis_keys, &mut faults)?;
    load_structures(&mut client, &mut digest, &mut faults)?;
    for question in [&[&b"DBSIZE"[..]][..], &[b"DEBUG", b"DIGEST"]] {
        let answer = client.call(question)?;
        if let Reply::Error(text) = &answer {
            faults.push(format!("redis refused {:?}: {text}", question[0].escape_ascii()));
        }
        digest.add("redis", format!("{answer:?}").as_bytes());
    }
    drop(client);
    server.stop(Signal::SIGTERM)?;

    let mut session = server.session(earlier.as_ref(), amount.operations)?;
    if let (Some(session), Some(timed), Some(earlier)) = (&mut session, timed, &earlier) {
        session.counts = timed.counts.since(&earlier.counts, amount.operations);
    }
    Ok(Sample {
        round: Round { operations: amount.operations, seconds: amount.operations as f64 / rate },
        digest: digest.finish(),
        faults,
        cpu: Some(cpu),
        settled,
        session,
    })
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

/// One run of redis-benchmark; returns what it printed.
fn benchmark(
    launcher: &Launcher,
    address: SocketAddr,
    test: Test,
    requests: u64,
) -> Result<String> {
    let plan = launcher.plan();
    let program: &Path = &plan.programs.redis_benchmark;
    let (name, _) = test.names();
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let (keys, bytes) = (plan.redis_keys.to_string(), VALUE_BYTES.to_string());
    let connections = plan.connections.to_string();
    let requests = requests.to_string();
    launcher.client(
        program,
        &[
            "-h",
            &host,
            "-p",
            &port,
            "-t",
            name,
            "-n",
            &requests,
            "-r",
            &keys,
            "-d",
            &bytes,
            "-c",
            &connections,
            "--csv",
        ],
    )
}

/// The name that redis-benchmark gives key `index`.
fn key(index: u64) -> Vec<u8> {
    format!("key:{index:012}").into_bytes()
}

/// The value that belongs to key `index` in the known dataset.
fn value(index: u64) -> Vec<u8> {
    content::bytes(index, VALUE_BYTES)
}

/// Stores the known dataset.
fn load(client: &mut Client, keys: u64, faults: &mut Vec<String>) -> Result<()> {
    let commands = (0..keys).map(|index| [b"SET".to_vec(), key(index), value(index)]);
    client.pipeline(commands, |index, reply| {
        if reply != Reply::Status("OK".into()) {
            faults.push(format!("SET of key {index}: {reply:?}"));
        }
    })
}

/// Reads every key back. After GET each has its known value; after SET it
/// has either that one or the benchmark's, which is the same for all keys.
fn check_values(
    client: &mut Client,
    keys: u64,
    test: Test,
    faults: &mut Vec<String>,
) -> Result<()> {
    let mut written: Option<Vec<u8>> = None;
    let mut changed = 0u64;
    client.pipeline((0..keys).map(|index| [b"GET".to_vec(), key(index)]), |index, reply| {
        let Reply::Bulk(Some(found)) = reply else {
            faults.push(format!("GET of key {index}: {reply:?}"));
            return;
        };
        if found == value(index as u64) {
            return;
        }
        changed += 1;
        let expected = written.get_or_insert_with(|| found.clone());
        if test == Test::Get || found != *expected || found.len() != VALUE_BYTES {
            faults.push(format!("key {index} has a value that nobody stored"));
        }
    })?;
    if test == Test::Set && changed == 0 {
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
        let item = value(index);
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

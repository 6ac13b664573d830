//! A small client for memcached's text protocol, and a load generator with it:
//! Debian has none.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::content;
use crate::outcome::Latency;
use crate::workload::Access;
use crate::{Error, Result};

/// Longest wait for any single answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest line of an answer that is not data, in bytes.
const MAX_LINE: u64 = 1 << 10;

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
}

/// The name of key `index`.
fn key(index: u64) -> String {
    format!("key:{index:08}")
}

/// The value that belongs to it.
fn value(index: u64, bytes: u32) -> Vec<u8> {
    content::bytes(index, bytes as usize)
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::Io`] if nobody listens at `address`.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let fail = || Error::io(format!("connecting to memcached at {address}"));
        let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(fail())?;
        stream.set_nodelay(true).map_err(fail())?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(fail())?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request for key `index`.
    fn ask(&mut self, access: Access, index: u64, bytes: u32) -> Result<()> {
        let mut request = match access {
            Access::Get => format!("get {}\r\n", key(index)).into_bytes(),
            Access::Set => format!("set {} 0 0 {bytes}\r\n", key(index)).into_bytes(),
        };
        if access == Access::Set {
            request.extend(value(index, bytes));
            request.extend(b"\r\n");
        }
        self.stream.get_mut().write_all(&request).map_err(Error::io("writing to memcached"))
    }

    /// Reads the answer; returns whether it is the right one.
    fn hear(&mut self, access: Access, index: u64, bytes: u32) -> Result<bool> {
        match access {
            Access::Set => Ok(read_line(&mut self.stream)? == "STORED"),
            Access::Get => Ok(read_value(&mut self.stream)? == Some(value(index, bytes))),
        }
    }

    /// Stores `keys` known values.
    ///
    /// # Errors
    /// As the answers say.
    pub fn store(&mut self, keys: u64, bytes: u32) -> Result<()> {
        for index in 0..keys {
            self.ask(Access::Set, index, bytes)?;
            if !self.hear(Access::Set, index, bytes)? {
                return Err(Error::Protocol(format!("memcached did not store key {index}")));
            }
        }
        Ok(())
    }

    /// Fetches the value of key `index`.
    ///
    /// # Errors
    /// [`Error::Protocol`] for anything that is not an answer to `get`.
    pub fn fetch(&mut self, index: u64) -> Result<Option<Vec<u8>>> {
        self.ask(Access::Get, index, 0)?;
        read_value(&mut self.stream)
    }
}

fn read_line(input: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    input.take(MAX_LINE).read_line(&mut line).map_err(Error::io("reading from memcached"))?;
    line.strip_suffix("\r\n")
        .map(str::to_owned)
        .ok_or_else(|| Error::Protocol(format!("memcached line without end: {line:?}")))
}

/// Reads the answer to `get` of one key; `None` if there is none.
fn read_value(input: &mut impl BufRead) -> Result<Option<Vec<u8>>> {
    let line = read_line(input)?;
    if line == "END" {
        return Ok(None);
    }
    let length: usize = line
        .strip_prefix("VALUE ")
        .and_then(|rest| rest.split(' ').nth(2)?.parse().ok())
        .filter(|length| *length <= 1 << 20)
        .ok_or_else(|| Error::Protocol(format!("not a value of memcached: {line:?}")))?;
    let mut data = vec![0; length + 2];
    input.read_exact(&mut data).map_err(Error::io("reading from memcached"))?;
    let end = read_line(input)?;
    if !data.ends_with(b"\r\n") || end != "END" {
        return Err(Error::Protocol("value of memcached without end".into()));
    }
    data.truncate(length);
    Ok(Some(data))
}

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Server.
    pub address: SocketAddr,
    /// get or set.
    pub access: Access,
    /// Bytes of a value.
    pub bytes: u32,
    /// Connections, each with one request under way.
    pub clients: u32,
    /// Number of keys.
    pub keys: u64,
    /// Number of requests.
    pub requests: u64,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Loaded {
    /// Requests.
    pub requests: u64,
    /// How long they took, in nanoseconds.
    pub elapsed_ns: u64,
    /// Wrong answers.
    pub wrong: u64,
    /// How long single requests took.
    pub latency: Latency,
}

impl Load {
    /// Sends everything.
    ///
    /// # Errors
    /// When the server cannot be reached or breaks the protocol.
    pub fn run(&self) -> Result<Loaded> {
        let mut clients =
            (0..self.clients).map(|_| Client::connect(self.address)).collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        let (mut sent, mut wrong) = (0, 0);
        let mut times = Vec::new();
        while sent < self.requests {
            let batch = u64::from(self.clients).min(self.requests - sent) as usize;
            let mut asked = Vec::with_capacity(batch);
            for (number, client) in clients.iter_mut().take(batch).enumerate() {
                asked.push(Instant::now());
                client.ask(self.access, (sent + number as u64) % self.keys, self.bytes)?;
            }
            for (number, client) in clients.iter_mut().take(batch).enumerate() {
                let index = (sent + number as u64) % self.keys;
                wrong += u64::from(!client.hear(self.access, index, self.bytes)?);
                times.push(asked[number].elapsed().as_secs_f64() * 1e6);
            }
            sent += batch as u64;
        }
        let elapsed_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok(Loaded { requests: sent, elapsed_ns, wrong, latency: latency(times) })
    }
}

/// Mean and percentiles of `times`, in microseconds.
fn latency(mut times: Vec<f64>) -> Latency {
    times.sort_by(f64::total_cmp);
    let last = times.len().saturating_sub(1);
    let at = |percent: u32| times.get(last * percent as usize / 100).copied().unwrap_or(0.0);
    Latency {
        mean_us: times.iter().sum::<f64>() / times.len().max(1) as f64,
        percentiles_us: [50, 90, 99].map(|percent| (percent, at(percent))).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_their_absence() {
        let read = |text: &str| read_value(&mut text.as_bytes());
        let text = "VALUE key:00000001 0 3\r\na\nb\r\nEND\r\n";
        assert_eq!(read(text).unwrap(), Some(b"a\nb".to_vec()));
        assert_eq!(read("END\r\n").unwrap(), None);
        for text in ["", "ERROR\r\n", "VALUE k 0 3\r\nabcdEND\r\n", "VALUE k 0 x\r\n", "END"] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn percentiles_of_times() {
        let latency = latency((0..=100).rev().map(f64::from).collect());
        assert_eq!((latency.mean_us, latency.percentiles_us[&99]), (50.0, 99.0));
        assert_eq!(super::latency(vec![]).mean_us, 0.0);
    }
}

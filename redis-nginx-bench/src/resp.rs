//! A small client for the redis protocol (RESP2): enough to load a dataset,
//! read it back and ask for its digest.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::{Error, Result};

/// Longest wait for any single answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Commands sent before their answers are read. Small enough that neither
/// side's socket buffer fills while the other one is writing.
const PIPELINE: usize = 128;
/// Deepest nesting and longest element that a reply may have.
const MAX_DEPTH: u32 = 8;
const MAX_LENGTH: usize = 64 << 20;

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`.
    Status(String),
    /// `-ERR ...`.
    Error(String),
    /// `:1`.
    Integer(i64),
    /// A string; `None` for the null string.
    Bulk(Option<Vec<u8>>),
    /// An array; `None` for the null array.
    Array(Option<Vec<Reply>>),
}

/// Reads one reply.
///
/// # Errors
/// [`Error::Protocol`] for anything that is not RESP2, [`Error::Io`] when
/// the input fails or ends.
pub fn read_reply(input: &mut impl BufRead) -> Result<Reply> {
    read_nested(input, 0)
}

fn read_nested(input: &mut impl BufRead, depth: u32) -> Result<Reply> {
    if depth > MAX_DEPTH {
        return Err(Error::Protocol("redis reply nested too deeply".into()));
    }
    let line = read_line(input)?;
    let (kind, rest) = line.split_at_checked(1).unwrap_or((&line, ""));
    match kind {
        "+" => Ok(Reply::Status(rest.to_owned())),
        "-" => Ok(Reply::Error(rest.to_owned())),
        ":" => number(rest).map(Reply::Integer),
        "$" => {
            let Some(length) = length(rest)? else {
                return Ok(Reply::Bulk(None));
            };
            let mut data = vec![0; length + 2];
            input.read_exact(&mut data).map_err(Error::io("reading from redis"))?;
            if !data.ends_with(b"\r\n") {
                return Err(Error::Protocol("redis string without end".into()));
            }
            data.truncate(length);
            Ok(Reply::Bulk(Some(data)))
        }
        "*" => {
            let Some(length) = length(rest)? else {
                return Ok(Reply::Array(None));
            };
            (0..length)
                .map(|_| read_nested(input, depth + 1))
                .collect::<Result<_>>()
                .map(|items| Reply::Array(Some(items)))
        }
        _ => Err(Error::Protocol(format!("unknown redis reply {line:?}"))),
    }
}

fn read_line(input: &mut impl BufRead) -> Result<String> {
    let mut line = Vec::new();
    input.take(64 << 10).read_until(b'\n', &mut line).map_err(Error::io("reading from redis"))?;
    if line.is_empty() {
        let source = std::io::ErrorKind::UnexpectedEof.into();
        return Err(Error::Io { what: "reading from redis".into(), source });
    }
    let text = line
        .strip_suffix(b"\r\n")
        .ok_or_else(|| Error::Protocol("redis line without end".into()))?;
    String::from_utf8(text.to_vec()).map_err(|_| Error::Protocol("redis line is not UTF-8".into()))
}

fn number(text: &str) -> Result<i64> {
    text.parse().map_err(|_| Error::Protocol(format!("not a number: {text:?}")))
}

/// A length, or `None` for the null marker -1.
fn length(text: &str) -> Result<Option<usize>> {
    match number(text)? {
        -1 => Ok(None),
        value => usize::try_from(value)
            .ok()
            .filter(|length| *length <= MAX_LENGTH)
            .map(Some)
            .ok_or_else(|| Error::Protocol(format!("redis length {value} out of range"))),
    }
}

/// Appends a command in the form servers expect: an array of strings.
pub fn encode(command: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
    for argument in command {
        out.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
}

/// A connection to a redis server.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::Io`] if nobody listens at `address`.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let fail = || Error::io(format!("connecting to redis at {address}"));
        let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(fail())?;
        stream.set_nodelay(true).map_err(fail())?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(fail())?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(fail())?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends one command and waits for the answer.
    ///
    /// # Errors
    /// As [`read_reply`]. An error *reply* is a value, not an error.
    pub fn call(&mut self, command: &[&[u8]]) -> Result<Reply> {
        let mut out = Vec::new();
        encode(command, &mut out);
        self.send(&out)?;
        read_reply(&mut self.stream)
    }

    /// Sends many commands, a number of them at once, and gives each answer
    /// to `check` with the index of its command.
    ///
    /// # Errors
    /// As [`read_reply`].
    pub fn pipeline<C>(
        &mut self,
        commands: impl IntoIterator<Item = C>,
        mut check: impl FnMut(usize, Reply),
    ) -> Result<()>
    where
        C: AsRef<[Vec<u8>]>,
    {
        let mut commands = commands.into_iter();
        let mut answered = 0;
        loop {
            let mut out = Vec::new();
            let mut sent = 0;
            for command in commands.by_ref().take(PIPELINE) {
                let arguments: Vec<&[u8]> = command.as_ref().iter().map(Vec::as_slice).collect();
                encode(&arguments, &mut out);
                sent += 1;
            }
            if sent == 0 {
                return Ok(());
            }
            self.send(&out)?;
            for _ in 0..sent {
                check(answered, read_reply(&mut self.stream)?);
                answered += 1;
            }
        }
    }

    fn send(&mut self, data: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(data).map_err(Error::io("writing to redis"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[u8]) -> Result<Reply> {
        read_reply(&mut &text[..])
    }

    #[test]
    fn replies_of_every_kind() {
        assert_eq!(parse(b"+OK\r\n").unwrap(), Reply::Status("OK".into()));
        assert_eq!(parse(b"-ERR no\r\n").unwrap(), Reply::Error("ERR no".into()));
        assert_eq!(parse(b":-42\r\n").unwrap(), Reply::Integer(-42));
        assert_eq!(parse(b"$4\r\na\r\nb\r\n").unwrap(), Reply::Bulk(Some(b"a\r\nb".to_vec())));
        assert_eq!(parse(b"$-1\r\n").unwrap(), Reply::Bulk(None));
        assert_eq!(parse(b"*-1\r\n").unwrap(), Reply::Array(None));
        let nested = Reply::Array(Some(vec![Reply::Integer(1), Reply::Bulk(Some(vec![]))]));
        assert_eq!(parse(b"*2\r\n:1\r\n$0\r\n\r\n").unwrap(), nested);
    }

    #[test]
    fn broken_replies_are_errors() {
        for text in [
            &b""[..],
            b"\r\n",
            b"+OK\n",
            b"?\r\n",
            b":x\r\n",
            b"$5\r\nab\r\n",
            b"$2\r\nabcd",
            b"$-2\r\n",
            b"$99999999999\r\n",
            b"*2\r\n:1\r\n",
            &b"*1\r\n".repeat(20),
        ] {
            assert!(parse(text).is_err(), "{:?}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn commands_are_arrays_of_strings() {
        let mut out = Vec::new();
        encode(&[b"SET", b"k", b"\r\n"], &mut out);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n\r\n\r\n");
    }
}

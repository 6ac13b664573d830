//! A small HTTP/1.1 client: GET over one kept-alive connection, bodies with a
//! `Content-Length`. It fetches what nginx serves so that it can be hashed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::{Error, Result};

/// Longest wait for any single answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most header lines and bytes that an answer may have.
const MAX_HEADERS: usize = 100;
const MAX_LINE: u64 = 16 << 10;
const MAX_BODY: usize = 64 << 20;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Body, of exactly the announced length.
    pub body: Vec<u8>,
}

/// Reads one answer to a GET.
///
/// # Errors
/// [`Error::Protocol`] for anything but HTTP/1.x with a `Content-Length`,
/// [`Error::Io`] when the input fails or ends early.
pub fn read_response(input: &mut impl BufRead) -> Result<Response> {
    let line = read_line(input)?;
    let status = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| Error::Protocol(format!("not an HTTP status line: {line:?}")))?;
    let mut length = None;
    for _ in 0..MAX_HEADERS {
        let line = read_line(input)?;
        if line.is_empty() {
            let length = length
                .ok_or_else(|| Error::Protocol("HTTP answer without Content-Length".into()))?;
            let mut body = vec![0; length];
            input.read_exact(&mut body).map_err(Error::io("reading an HTTP body"))?;
            return Ok(Response { status, body });
        }
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| Error::Protocol(format!("not an HTTP header: {line:?}")))?;
        if name.eq_ignore_ascii_case("content-length") {
            let value = value
                .trim()
                .parse()
                .ok()
                .filter(|length| *length <= MAX_BODY)
                .ok_or_else(|| Error::Protocol(format!("bad header {line:?}")))?;
            length = Some(value);
        }
    }
    Err(Error::Protocol("too many HTTP headers".into()))
}

fn read_line(input: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    input.take(MAX_LINE).read_line(&mut line).map_err(Error::io("reading an HTTP answer"))?;
    line.strip_suffix("\r\n")
        .map(str::to_owned)
        .ok_or_else(|| Error::Protocol(format!("HTTP line without end: {line:?}")))
}

/// A kept-alive connection.
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
        let fail = || Error::io(format!("connecting to nginx at {address}"));
        let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(fail())?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(fail())?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(fail())?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Fetches `path`, which must start with a slash and need no escapes.
    ///
    /// # Errors
    /// As [`read_response`]. An error *status* is a value, not an error.
    pub fn get(&mut self, path: &str) -> Result<Response> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.stream
            .get_mut()
            .write_all(request.as_bytes())
            .map_err(Error::io("writing an HTTP request"))?;
        read_response(&mut self.stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Response> {
        read_response(&mut text.as_bytes())
    }

    #[test]
    fn body_has_the_announced_length() {
        let text = "HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: 3\r\n\r\nabcdef";
        assert_eq!(parse(text).unwrap(), Response { status: 200, body: b"abc".to_vec() });
        let text = "HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(parse(text).unwrap(), Response { status: 404, body: vec![] });
    }

    #[test]
    fn broken_answers_are_errors() {
        for text in [
            "",
            "HTTP/1.1",
            "HTTP/1.1 xyz\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\n\nx",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\n{}", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert!(parse(&endless).is_err());
    }
}

//! Functions of nginx as it is installed.

use anyhow::Result;

use super::Kernel;
use super::compiled::many_headers;
use super::memory::{Memory, Numbers, keys};
use crate::guest::Call;
use crate::loader::Image;

const PROGRAM: &str = "nginx";
/// `REQUEST_BYTES` in `c/servers.c`.
const REQUEST_BYTES: usize = 2048;

/// The kernels of this file.
pub static KERNELS: [Kernel; 6] = [
    Kernel::loaded("nginx request line", PROGRAM, request_line),
    Kernel::loaded("nginx header lines", PROGRAM, header_lines),
    Kernel::loaded("nginx hash_key_lc", PROGRAM, hash_key),
    Kernel::loaded("nginx sprintf", PROGRAM, sprintf),
    Kernel::loaded("nginx escape_uri", PROGRAM, escape_uri),
    Kernel::loaded("nginx utf8_decode", PROGRAM, utf8_decode),
];

fn request_line(memory: &mut Memory, image: &Image) -> Result<Call> {
    let lines: Vec<String> = keys(40)
        .iter()
        .enumerate()
        .map(|(number, key)| match number % 3 {
            0 => format!("GET /static/{key}.html HTTP/1.1\r\n"),
            1 => format!("POST /api/v2/items/{number}?key={key}&page=3 HTTP/1.1\r\n"),
            _ => format!("HEAD http://www.example.org:8080/a/b/../{key} HTTP/1.0\r\n"),
        })
        .collect();
    let (pointers, lengths) = memory.strings(&lines);
    let function = image.symbol("ngx_http_parse_request_line")?;
    let request = memory.zeroed(REQUEST_BYTES);
    Ok(call!(ub_nginx_request_line, function, request, pointers, lengths, lines.len()))
}

fn header_lines(memory: &mut Memory, image: &Image) -> Result<Call> {
    let function = image.symbol("ngx_http_parse_header_line")?;
    let request = memory.zeroed(REQUEST_BYTES);
    let text = many_headers();
    let at = memory.bytes(text.as_bytes());
    Ok(call!(ub_nginx_header_lines, function, request, at, text.len()))
}

fn hash_key(memory: &mut Memory, image: &Image) -> Result<Call> {
    let keys = keys(200);
    let (pointers, lengths) = memory.strings(&keys);
    Ok(call!(ub_nginx_hash_key, image.symbol("ngx_hash_key_lc")?, pointers, lengths, keys.len()))
}

fn sprintf(memory: &mut Memory, image: &Image) -> Result<Call> {
    let keys = keys(40);
    let (pointers, lengths) = memory.strings(&keys);
    let to = memory.zeroed(160 * keys.len());
    Ok(call!(ub_nginx_sprintf, image.symbol("ngx_sprintf")?, to, pointers, lengths, keys.len()))
}

fn escape_uri(memory: &mut Memory, image: &Image) -> Result<Call> {
    // One character in eight needs escaping.
    let mut numbers = Numbers::new(40);
    let text: Vec<u8> = (0..3000)
        .map(|_| if numbers.below(8) == 0 { b' ' } else { b'a' + numbers.below(26) as u8 })
        .collect();
    let to = memory.zeroed(3 * text.len());
    let function = image.symbol("ngx_escape_uri")?;
    Ok(call!(ub_nginx_escape, function, to, memory.bytes(&text), text.len()))
}

fn utf8_decode(memory: &mut Memory, image: &Image) -> Result<Call> {
    let text = "Fußgänger überqueren – наконец – die Straße; 天気がいい. plain text in between. "
        .repeat(8);
    let function = image.symbol("ngx_utf8_decode")?;
    Ok(call!(ub_nginx_utf8, function, memory.bytes(text.as_bytes()), text.len()))
}

//! Fragments for people.

use crate::oracle::Cache;
use iced_x86::{Decoder, DecoderOptions};
use std::collections::BTreeMap;
use std::fmt::Write;
use ub_translator::fragment::Unsupported;

/// All fragments, with the user addresses that their code is for.
pub fn listing(cache: &Cache) -> String {
    let mut text = String::new();
    for (entry, known) in cache {
        let Some((_, parts)) = known else {
            let _ = writeln!(text, "{entry:#x}: useless");
            continue;
        };
        let _ = writeln!(text, "{entry:#x}:");
        let marks: BTreeMap<u32, u64> = parts.map.iter().map(|&(ip, at)| (at, ip)).collect();
        for i in Decoder::with_ip(64, &parts.code, 0, DecoderOptions::NONE).iter() {
            if let Some(ip) = marks.get(&(i.ip() as u32)) {
                let _ = writeln!(text, "  ; {ip:#x}");
            }
            let _ = writeln!(text, "  {:#06x} {i}", i.ip());
        }
        for (id, exit) in parts.exits.iter().enumerate() {
            let reason = match exit.reason {
                Unsupported::None => String::new(),
                reason => format!(" {reason:?}"),
            };
            let _ = writeln!(text, "  exit {id}: {:?} {:#x}{reason}", exit.kind, exit.user_ip);
        }
    }
    text
}

/// The instructions of `code` around `offset`.
pub fn around(code: &[u8], offset: usize) -> String {
    let mut out = String::new();
    for i in Decoder::with_ip(64, code, 0, DecoderOptions::NONE).iter() {
        let at = i.ip() as usize;
        if at + 100 > offset && at < offset + 60 {
            let mark = if at == offset { ">" } else { " " };
            let _ = writeln!(out, "{mark}{at:#06x} {i}");
        }
    }
    out
}

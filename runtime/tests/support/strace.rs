//! Passages of gaps as `strace -f -i` and as the profiler count them.

use std::collections::BTreeMap;

use serde_json::Value;

/// Share of all passages from which on a gap must be counted as strace does,
/// and by how much of that share the two may differ.
const COMPARED: f64 = 0.01;
const TOLERANCE: f64 = 0.02;

/// A gap: thread, where it resumes, the call before and the call after.
type Gap = (u32, u64, String, String);

/// How often each gap was passed.
#[derive(Debug, Default)]
pub struct Passages(BTreeMap<Gap, u64>);

impl Passages {
    /// Those in what `strace -f -i` wrote.
    pub fn traced(text: &str) -> Self {
        let mut before: BTreeMap<u32, (u64, String)> = BTreeMap::new();
        let mut passages = Self::default();
        for line in text.lines() {
            let Some((thread, address, call)) = traced_call(line) else { continue };
            if let Some((resume, last)) = before.insert(thread, (address, call.clone())) {
                passages.add((thread, resume, last, call), 1);
            }
        }
        passages
    }

    /// Those in a profile in its JSON form, of the address spaces that
    /// `is_watched` names.
    pub fn profiled(profile: &Value, is_watched: impl Fn(u64) -> bool) -> Self {
        let mut passages = Self::default();
        let number = |value: &Value| value.as_u64().expect("a number");
        for gap in profile["gaps"].as_array().expect("gaps") {
            let (Some(call), Some(next)) = (gap["call"].as_str(), gap["next"].as_str()) else {
                continue;
            };
            if is_watched(number(&gap["space"])) {
                let thread = u32::try_from(number(&gap["thread"])).expect("a thread");
                let key = (thread, number(&gap["resume"]), call.to_owned(), next.to_owned());
                passages.add(key, number(&gap["count"]));
            }
        }
        passages
    }

    fn add(&mut self, gap: Gap, count: u64) {
        *self.0.entry(gap).or_default() += count;
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    fn share(&self, gap: &Gap) -> f64 {
        self.0.get(gap).copied().unwrap_or_default() as f64 / self.total() as f64
    }
}

/// Thread, address and name in the line of a call that begins:
/// `1234  [00007f0123456789] read(7, ...`.
fn traced_call(line: &str) -> Option<(u32, u64, String)> {
    let (thread, rest) = line.split_once(" [")?;
    let (address, rest) = rest.split_once("] ")?;
    let (call, _) = rest.split_once('(')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if call.is_empty() || !call.chars().all(is_name) {
        return None;
    }
    let address = u64::from_str_radix(address, 16).ok()?;
    Some((thread.trim().parse().ok()?, address, call.to_owned()))
}

/// Each gap of a server that matters has the share that strace counts.
#[track_caller]
pub fn assert_same_shares(traced: &Passages, counted: &Passages) {
    let mut compared = 0;
    for gap in traced.0.keys() {
        let (theirs, ours) = (traced.share(gap), counted.share(gap));
        if theirs < COMPARED {
            continue;
        }
        compared += 1;
        println!("{gap:x?}: strace {:.2} %, ub {:.2} %", theirs * 100.0, ours * 100.0);
        assert!((ours - theirs).abs() <= theirs * TOLERANCE, "{gap:x?}: {theirs} {ours}");
    }
    println!("{} passages by strace, {} by the profiler", traced.total(), counted.total());
    assert!(compared >= 3, "read, write and epoll_wait at least");
}

//! What packet filters did for a program that runs without the kernel module.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::{Line, share};
use crate::units::{duration, grouped};

/// Events kept, the first ones: a program may lose its filter again and again.
const EVENTS: usize = 256;
/// What is said if there is no event.
pub(crate) const NO_EVENTS: &str = "no packet filter was tried: the program did not wait for \
                                    packets often enough, or not in read or recv on a packet or \
                                    UDP socket";

/// Packets that came while there was a filter, and when that was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PacketFilters {
    /// Packets dropped, each of which would have ended a receive call.
    pub dropped: u64,
    /// Packets delivered because the program wants them.
    pub kept: u64,
    /// Packets delivered because the program was not waiting for them.
    pub passed: u64,
    /// What happened, oldest first.
    pub events: Vec<PacketFilterEvent>,
    /// Events for which there was no room.
    pub events_lost: u64,
}

/// Something that happened to a receive call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PacketFilterEvent {
    /// Nanoseconds from the start of the observation.
    pub at_ns: u64,
    /// The socket's descriptor.
    pub fd: u32,
    /// Address behind the call.
    pub address: u64,
    /// Name of that address.
    pub from: Option<String>,
    /// What happened.
    pub outcome: PacketFilterOutcome,
    /// Why, unless a filter began.
    pub reason: Option<String>,
}

/// What happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PacketFilterOutcome {
    /// Packets are filtered from now on.
    #[default]
    Begun,
    /// There is no filter for this call.
    Refused,
    /// The filter was taken away.
    Ended,
}

impl PacketFilters {
    /// Remembers `event`, if there is room.
    pub fn add(&mut self, event: PacketFilterEvent) {
        if self.events.len() < EVENTS {
            self.events.push(event);
        } else {
            self.events_lost += 1;
        }
    }

    /// Packets that came to a filter.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.dropped + self.kept + self.passed
    }

    /// What happened last, or how much happened that there was no room for.
    #[must_use]
    pub fn latest(&self) -> String {
        self.sentences().pop().unwrap_or_default()
    }

    /// The counters as every renderer shows them.
    pub(crate) fn counters(&self) -> Vec<Line> {
        let all = self.packets();
        let line = |number: u64, what: &str, note: String| Line {
            number: grouped(number),
            what: what.to_owned(),
            note,
        };
        let while_filtered = |part| share(part, all, "of those that came to a filter");
        vec![
            line(self.dropped, "packets dropped", while_filtered(self.dropped)),
            line(self.dropped, "transitions saved", "a receive call for each of them".to_owned()),
            line(self.kept, "packets wanted", while_filtered(self.kept)),
            line(self.passed, "packets not judged", "came while the program was busy".to_owned()),
        ]
    }

    /// The events as sentences.
    pub(crate) fn sentences(&self) -> Vec<String> {
        let mut sentences: Vec<_> = self.events.iter().map(ToString::to_string).collect();
        if sentences.is_empty() {
            sentences.push(NO_EVENTS.to_owned());
        }
        if self.events_lost > 0 {
            sentences.push(format!("and {} more", grouped(self.events_lost)));
        }
        sentences
    }
}

impl fmt::Display for PacketFilterEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: descriptor {}, ", duration(self.at_ns as f64), self.fd)?;
        match &self.from {
            Some(name) => write!(f, "{name}: ")?,
            None => write!(f, "{:#x}: ", self.address)?,
        }
        f.write_str(match self.outcome {
            PacketFilterOutcome::Begun => "packets are filtered",
            PacketFilterOutcome::Refused => "no packet filter",
            PacketFilterOutcome::Ended => "packet filter taken away",
        })?;
        self.reason.as_ref().map_or(Ok(()), |reason| write!(f, ": {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Report, Source, html, text};

    fn example() -> Report {
        let mut filters =
            PacketFilters { dropped: 900, kept: 90, passed: 10, ..Default::default() };
        let begun = PacketFilterEvent {
            at_ns: 2_500_000_000,
            fd: 3,
            address: 0x5000,
            from: Some("libc!recv+0x19".into()),
            ..Default::default()
        };
        filters.add(begun.clone());
        filters.add(PacketFilterEvent {
            from: None,
            outcome: PacketFilterOutcome::Ended,
            reason: Some("the process called <dup>".into()),
            ..begun
        });
        let mut report = Report::new(Source::Session, vec!["count".into()], Default::default());
        report.packet_filters = Some(filters);
        report
    }

    #[test]
    fn what_was_saved_and_why_not_more_is_shown() {
        let shown = text::render(&example(), usize::MAX);
        for words in [
            "900  packets dropped           90.0 % of those",
            "900  transitions saved",
            "90  packets wanted",
            "10  packets not judged",
            "2.50 s: descriptor 3, libc!recv+0x19: packets are filtered\n",
            "2.50 s: descriptor 3, 0x5000: packet filter taken away: the process called <dup>\n",
        ] {
            assert!(shown.contains(words), "{words} in {shown}");
        }
        assert!(!shown.contains("ridden") && !shown.contains("fragments"), "{shown}");
        let page = html::render(&example());
        assert!(
            page.contains("packets dropped") && page.contains("the process called &lt;dup&gt;")
        );
        assert!(!page.contains("of them ridden") && !page.contains("fragments"), "{page}");
    }

    #[test]
    fn the_number_of_events_is_bounded() {
        let mut filters = PacketFilters::default();
        assert_eq!(filters.sentences(), [NO_EVENTS]);
        for _ in 0..EVENTS + 7 {
            filters.add(PacketFilterEvent::default());
        }
        assert_eq!(filters.sentences().len(), EVENTS + 1);
        assert_eq!(filters.sentences().last().map(String::as_str), Some("and 7 more"));
    }

    #[test]
    fn json_keeps_it_and_other_reports_do_not_mention_it() {
        let report = example();
        let read: Report = serde_json::from_slice(&report.to_json()).unwrap();
        assert_eq!(read, report);
        let other = Report { packet_filters: None, ..report };
        assert!(!String::from_utf8(other.to_json()).unwrap().contains("packet_filters"));
    }
}

//! What `ub top` shows: differences between two looks at every session.

use std::cmp::Ordering;

use clap::ValueEnum;
use serde::Serialize;
use ub_report::packet_filter::PacketFilters;
use ub_report::text::outcome;
use ub_report::{GapRow, GapState, Report};

use crate::inspect::{Found, Peer};

/// Version of the JSON form of [`View`].
pub(super) const SCHEMA: u32 = 1;

/// What gaps can be sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Column {
    /// Passages per second
    Rate,
    /// Time saved per second
    Saved,
    /// Time natively
    Native,
    /// Time in rides
    Ride,
    /// Share ridden
    Ridden,
}

impl Column {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Saved => "saved",
            Self::Native => "native",
            Self::Ride => "ride",
            Self::Ridden => "ridden",
        }
    }

    /// The next one, in a circle.
    pub(super) fn next(self) -> Self {
        let all = Self::value_variants();
        let index = all.iter().position(|column| *column == self).unwrap_or(0);
        all[(index + 1) % all.len()]
    }
}

/// The latest two looks.
#[derive(Debug, Default)]
pub(super) struct Rates {
    before: Vec<Found>,
    now: Vec<Found>,
}

/// One screen. Its JSON form is versioned by [`SCHEMA`].
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct View {
    /// Machine of the sessions.
    #[serde(rename = "machine")]
    pub(super) facts: String,
    /// Whether its times are an emulator's.
    pub(super) emulated: bool,
    /// Sessions in which nothing rides, by the reason.
    pub(super) native: Vec<NativeLine>,
    pub(super) processes: Vec<ProcessLine>,
    /// Sessions of the packet filters, which have no rides.
    pub(super) filters: Vec<FilterLine>,
    pub(super) gaps: Vec<GapLine>,
}

impl View {
    /// Remembers why nothing rides in a session, if that is so.
    fn tell_native(&mut self, report: &Report) {
        let Some(reason) = &report.native_reason else { return };
        match self.native.iter_mut().find(|line| line.reason == *reason) {
            Some(line) => line.pids.extend(report.pid),
            None => {
                let pids = report.pid.into_iter().collect();
                self.native.push(NativeLine { pids, reason: reason.clone() });
            }
        }
    }

    /// Sessions, of either kind.
    pub(super) fn sessions(&self) -> usize {
        self.processes.iter().filter(|line| line.is_session).count() + self.filters.len()
    }
}

/// Sessions in which nothing rides, for the same reason.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct NativeLine {
    pub(super) pids: Vec<u32>,
    pub(super) reason: String,
}

/// A session, or one process of a session that has several.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct ProcessLine {
    pub(super) pid: Option<u32>,
    pub(super) name: String,
    /// Of a session: its other processes are below.
    pub(super) is_session: bool,
    /// System calls a second; of a process, passages of known gaps.
    #[serde(rename = "calls_per_second")]
    pub(super) calls: f64,
    /// Share of these that rode.
    #[serde(rename = "ridden_share")]
    pub(super) ridden: f64,
    /// Nanoseconds saved a second.
    #[serde(rename = "saved_ns_per_second")]
    pub(super) saved: Option<f64>,
    pub(super) fragments: Option<u64>,
    /// The commonest end of rides.
    #[serde(rename = "top_exit")]
    pub(super) exit: String,
}

/// A session whose packets are filtered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct FilterLine {
    pub(super) pid: Option<u32>,
    pub(super) name: String,
    /// Packets a second that came to a filter.
    #[serde(rename = "packets_per_second")]
    pub(super) packets: f64,
    /// Share of these that were dropped.
    #[serde(rename = "dropped_share")]
    pub(super) dropped: f64,
    /// Receive calls saved a second, one for each dropped packet.
    #[serde(rename = "calls_saved_per_second")]
    pub(super) saved: f64,
    /// The latest that happened to a filter.
    pub(super) latest: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct GapLine {
    pub(super) pid: Option<u32>,
    pub(super) address: u64,
    pub(super) label: String,
    /// Passages a second.
    #[serde(rename = "passages_per_second")]
    pub(super) rate: f64,
    #[serde(rename = "ridden_share")]
    pub(super) ridden: f64,
    #[serde(rename = "native_ns")]
    pub(super) native: Option<f64>,
    #[serde(rename = "ride_ns")]
    pub(super) ride: Option<f64>,
    /// Nanoseconds saved a second.
    #[serde(rename = "saved_ns_per_second")]
    pub(super) saved: Option<f64>,
    pub(super) state: GapState,
    pub(super) outcome: String,
}

impl Rates {
    /// Takes over a new look.
    pub(super) fn update(&mut self, sessions: Vec<Found>) {
        self.before = std::mem::replace(&mut self.now, sessions);
    }

    /// The rates between the last two looks; of a session that is new, since
    /// its start.
    pub(super) fn view(&self, sort: Column, reverse: bool) -> View {
        let mut view = View::default();
        for found in &self.now {
            let report = &found.report;
            view.facts = report.environment.facts();
            view.emulated |= report.environment.emulated();
            view.tell_native(report);
            let before = before(&self.before, &found.peer);
            if let Some(filters) = &report.packet_filters {
                view.filters.push(filter_line(report, filters, before));
                continue;
            }
            let gaps = gap_lines(report, before);
            view.processes.extend(process_lines(report, before, &gaps));
            view.gaps.extend(gaps);
        }
        view.gaps.sort_by(|a, b| {
            let order = key(b, sort).total_cmp(&key(a, sort));
            let order = if reverse { order.reverse() } else { order };
            order.then_with(|| a.address.cmp(&b.address))
        });
        view
    }
}

fn before<'a>(sessions: &'a [Found], peer: &Peer) -> Option<&'a Report> {
    sessions.iter().find(|found| found.peer == *peer).map(|found| &found.report)
}

/// Gaps without a figure come last.
fn key(gap: &GapLine, sort: Column) -> f64 {
    let figure = match sort {
        Column::Rate => Some(gap.rate),
        Column::Saved => gap.saved,
        Column::Native => gap.native,
        Column::Ride => gap.ride,
        Column::Ridden => Some(gap.ridden),
    };
    figure.unwrap_or(f64::MIN)
}

/// Seconds from `before` to `report`.
fn seconds(report: &Report, before: Option<&Report>) -> f64 {
    let start = before.map_or(0, |before| before.elapsed_ns);
    (report.elapsed_ns.saturating_sub(start) as f64 / 1e9).max(1e-3)
}

fn difference(now: u64, before: Option<u64>) -> f64 {
    now.saturating_sub(before.unwrap_or(0)) as f64
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { (part / whole).min(1.0) } else { 0.0 }
}

fn gap_lines(report: &Report, before: Option<&Report>) -> Vec<GapLine> {
    let seconds = seconds(report, before);
    let line = |gap: &GapRow| {
        let old = before.and_then(|before| {
            before.hot_gaps.iter().find(|old| (old.space, old.address) == (gap.space, gap.address))
        });
        let count = difference(gap.count, old.map(|old| old.count));
        let ridden = difference(gap.ridden, old.map(|old| old.ridden));
        GapLine {
            pid: report.process(gap).and_then(|process| process.pid),
            address: gap.address,
            label: gap.label(),
            rate: count / seconds,
            ridden: share(ridden, count),
            native: gap.native.mean(),
            ride: gap.ride.mean(),
            saved: gap.gain().map(|gain| gain.ns * ridden / seconds),
            state: gap.state,
            outcome: outcome(gap),
        }
    };
    report.hot_gaps.iter().map(line).collect()
}

fn filter_line(report: &Report, filters: &PacketFilters, before: Option<&Report>) -> FilterLine {
    let seconds = seconds(report, before);
    let old = before.and_then(|before| before.packet_filters.as_ref());
    let packets = difference(filters.packets(), old.map(PacketFilters::packets));
    let dropped = difference(filters.dropped, old.map(|old| old.dropped));
    FilterLine {
        pid: report.pid,
        name: report.command_line(),
        packets: packets / seconds,
        dropped: share(dropped, packets),
        saved: dropped / seconds,
        latest: filters.latest(),
    }
}

fn process_lines(report: &Report, before: Option<&Report>, gaps: &[GapLine]) -> Vec<ProcessLine> {
    let seconds = seconds(report, before);
    let totals = &report.totals;
    let old = before.map(|before| &before.totals);
    let calls = difference(totals.syscalls, old.map(|old| old.syscalls));
    let ridden = difference(totals.ridden, old.map(|old| old.ridden));
    let exit = totals
        .exits
        .iter()
        .map(|(reason, count)| {
            let old = old.and_then(|old| old.exits.get(reason)).copied();
            (difference(*count, old), reason)
        })
        .max_by(|a, b| a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal).then(b.1.cmp(a.1)))
        .filter(|(count, _)| *count > 0.0);
    let saved = |gaps: &mut dyn Iterator<Item = &GapLine>| -> Option<f64> {
        gaps.filter_map(|gap| gap.saved).reduce(|a, b| a + b)
    };
    let mut lines = vec![ProcessLine {
        pid: report.pid,
        name: report.command_line(),
        is_session: true,
        calls: calls / seconds,
        ridden: share(ridden, calls),
        saved: saved(&mut gaps.iter()),
        fragments: Some(totals.fragments),
        exit: exit.map(|(_, reason)| reason.clone()).unwrap_or_default(),
    }];
    if report.processes.len() > 1 {
        lines.extend(report.processes.iter().map(|process| {
            let own = || gaps.iter().filter(|gap| gap.pid == process.pid);
            let calls: f64 = own().map(|gap| gap.rate).sum();
            ProcessLine {
                pid: process.pid,
                name: process.name.clone(),
                is_session: false,
                calls,
                ridden: share(own().map(|gap| gap.rate * gap.ridden).sum(), calls),
                saved: saved(&mut own()),
                fragments: None,
                exit: String::new(),
            }
        }));
    }
    lines
}

#[cfg(test)]
pub(super) mod tests {
    use ub_report::model::Gain;
    use ub_report::packet_filter::PacketFilterEvent;
    use ub_report::{Process, Source, Timing};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Two looks at one session, one second apart.
    pub(in super::super) fn example() -> Rates {
        let mut rates = Rates::default();
        for second in 1..=2 {
            let mut report = Report::new(
                Source::Session,
                vec!["redis-server".into(), "--save".into(), String::new()],
                Default::default(),
            );
            report.pid = Some(4242);
            report.elapsed_ns = second * SECOND;
            report.environment.kernel = "6.12.95".into();
            report.environment.accelerator = "tcg".into();
            report.environment.cpu = "QEMU".into();
            report.totals.syscalls = second * 100_000;
            report.totals.ridden = second * 60_000;
            report.totals.fragments = 37;
            report.totals.exits = [("poll", 10), ("syscall_refused", 5000 * second)]
                .map(|(n, c)| (n.into(), c))
                .into();
            let process =
                |space, pid, name: &str| Process { space, pid: Some(pid), name: name.into() };
            report.processes = vec![process(1, 4242, "redis-server"), process(2, 5000, "child")];
            let timing = |mean_ns| Timing { samples: 32, mean_ns, error_ns: Some(1.0) };
            report.hot_gaps = vec![
                GapRow {
                    space: 1,
                    address: 0x7f00_1234_5678,
                    from: Some("libc!write+0x14".into()),
                    to: Some("epoll_wait".into()),
                    count: second * 50_000,
                    ridden: second * 40_000,
                    native: timing(900.0),
                    ride: timing(400.0),
                    gain: Some(Gain { ns: 500.0, error_ns: Some(1.0) }),
                    state: GapState::Riding,
                    reason: Some("saves time, with confidence".into()),
                },
                GapRow {
                    space: 2,
                    address: 0x5555_0000_1000,
                    from: Some("redis-server!bioProcessBackgroundJobs+0x152".into()),
                    to: Some("futex".into()),
                    count: second * 10,
                    native: timing(70_000.0),
                    state: GapState::Native,
                    reason: Some("mostly longer than gap_max_ns".into()),
                    ..Default::default()
                },
            ];
            rates.update(vec![Found { peer: Peer::at("/x/1.sock".into()), report }]);
        }
        rates
    }

    /// Two looks at a session of the packet filters, two seconds apart.
    pub(in super::super) fn filtered() -> Rates {
        let mut rates = Rates::default();
        for look in 1..=2 {
            let mut report = Report::new(
                Source::Session,
                vec!["packet-counter".into(), "veth0".into()],
                Default::default(),
            );
            report.pid = Some(777);
            report.elapsed_ns = look * 2 * SECOND;
            let mut filters = PacketFilters {
                dropped: look * 9000,
                kept: look * 900,
                passed: look * 100,
                ..Default::default()
            };
            filters.add(PacketFilterEvent {
                at_ns: SECOND,
                fd: 3,
                from: Some("libc!recv+0x19".into()),
                ..Default::default()
            });
            report.packet_filters = Some(filters);
            rates.update(vec![Found { peer: Peer::at("/x/2.sock".into()), report }]);
        }
        rates
    }

    #[test]
    fn what_packet_filters_save_is_shown_apart() {
        let view = filtered().view(Column::Rate, false);
        assert!(view.processes.is_empty(), "{view:?}");
        let [line] = view.filters.as_slice() else { panic!("{view:?}") };
        assert_eq!((line.packets, line.dropped, line.saved), (5000.0, 0.9, 4500.0));
        assert!(line.latest.ends_with("packets are filtered"), "{}", line.latest);
        assert_eq!(view.sessions(), 1);
    }

    #[test]
    fn rates_are_differences_over_the_sessions_own_time() {
        let view = example().view(Column::Rate, false);
        let session = &view.processes[0];
        assert_eq!((session.pid, session.calls, session.ridden), (Some(4242), 100_000.0, 0.6));
        assert_eq!(session.saved, Some(40_000.0 * 500.0));
        assert_eq!(session.exit, "syscall_refused");
        assert_eq!(view.processes.len(), 3);
        assert_eq!(view.processes[1].ridden, 0.8);
        assert_eq!((view.gaps[0].rate, view.gaps[1].rate), (50_000.0, 10.0));
        assert_eq!(view.gaps[1].saved, None);
    }

    #[test]
    fn sessions_that_stay_native_for_one_reason_are_told_together() {
        let mut rates = example();
        let session = rates.now[0].clone();
        rates.now[0].report.native_reason = Some("rides do not pay".into());
        for (pid, reason) in [(5, "rides do not pay"), (6, "another")] {
            let mut other = session.clone();
            other.report.pid = Some(pid);
            other.report.native_reason = Some(reason.into());
            rates.now.push(other);
        }
        rates.now.push(session);
        let line = |pids: &[u32], reason: &str| NativeLine {
            pids: pids.to_vec(),
            reason: reason.to_owned(),
        };
        let expected = [line(&[4242, 5], "rides do not pay"), line(&[6], "another")];
        assert_eq!(rates.view(Column::Rate, false).native, expected);
    }

    #[test]
    fn a_new_session_has_rates_since_its_start() {
        let mut rates = Rates::default();
        rates.update(example().now);
        let view = rates.view(Column::Rate, false);
        assert_eq!(view.processes[0].calls, 100_000.0);
    }

    #[test]
    fn every_column_sorts_both_ways() {
        let rates = example();
        let first = |column, reverse| rates.view(column, reverse).gaps[0].address;
        for (column, address) in [
            (Column::Rate, 0x7f00_1234_5678),
            (Column::Saved, 0x7f00_1234_5678),
            (Column::Ride, 0x7f00_1234_5678),
            (Column::Ridden, 0x7f00_1234_5678),
            (Column::Native, 0x5555_0000_1000),
        ] {
            assert_eq!(first(column, false), address, "{column:?}");
            assert_ne!(first(column, true), address, "{column:?}");
        }
    }
}

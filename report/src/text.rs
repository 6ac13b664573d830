//! A report for terminals, in the shape of `perf stat`.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::model::{GapRow, Report, Source, TimeSaved, Timing};
use crate::units::{duration, grouped, percent};

/// What goes with every time that was taken under emulation.
pub const EMULATED: &str = "emulated: times and rates say nothing about real hardware; counts do";

/// The reason, among exits and refusals, of passages that went native on
/// purpose.
const MEASURED: &str = "measured";

/// Gaps shown unless the caller wants another number.
pub const GAPS: usize = 10;

/// The counters, then the `gaps` most frequent gaps.
#[must_use]
pub fn render(report: &Report, gaps: usize) -> String {
    let mut out = format!("\n ub: {} of `{}`", subject(report), report.command_line());
    if report.elapsed_ns > 0 {
        let _ = write!(out, ", {}", duration(report.elapsed_ns as f64));
    }
    out.push_str(":\n");
    let _ = writeln!(out, " {}", report.environment.facts());
    if report.environment.emulated() {
        let _ = writeln!(out, " {EMULATED}");
    }
    out.push('\n');
    if let Some(reason) = &report.inactive_reason {
        let _ = writeln!(out, "    nothing was counted: {reason}\n");
        return out;
    }
    if let Some(reason) = &report.native_reason {
        let _ = writeln!(out, " no rides: {reason}\n");
    }
    for Line { number, what, note } in counters(report) {
        let text = format!("{number:>18}  {what:<26}{note}");
        let _ = writeln!(out, "{}", text.trim_end());
    }
    out.push('\n');
    if let Some(filters) = &report.packet_filters {
        for sentence in filters.sentences() {
            let _ = writeln!(out, " {sentence}");
        }
        out.push('\n');
    }
    out.push_str(&gap_table(report, gaps));
    out
}

fn subject(report: &Report) -> &'static str {
    match (report.source, report.ended) {
        (Source::Profile, _) => "profile",
        (Source::Session, true) => "session",
        (Source::Session, false) => "session so far",
    }
}

/// One counter, as every renderer shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// The figure.
    pub(crate) number: String,
    /// What it counts.
    pub(crate) what: String,
    /// What puts it into proportion.
    pub(crate) note: String,
}

/// Every counter worth saying something about.
pub(crate) fn counters(report: &Report) -> Vec<Line> {
    if let Some(filters) = &report.packet_filters {
        return filters.counters();
    }
    let totals = &report.totals;
    let mut lines = Vec::new();
    let mut line = |number: u64, what: &str, note: String| {
        lines.push(Line { number: grouped(number), what: what.to_owned(), note });
    };
    let rate = if report.elapsed_ns == 0 {
        String::new()
    } else {
        let rate = totals.syscalls as f64 / (report.elapsed_ns as f64 / 1e9);
        format!("{} per second", grouped(rate as u64))
    };
    line(totals.syscalls, "system calls", rate);
    if report.source == Source::Profile {
        return lines;
    }
    line(totals.ridden, "ridden", share(totals.ridden, totals.syscalls, "of system calls"));
    line(totals.ridden, "transitions saved", format!("{} left", grouped(totals.transitions)));
    line(totals.rides, "rides", ratio(totals.ridden, totals.rides, "system calls each"));
    let (number, note) = saved(report.time_saved.as_ref());
    lines.push(Line { number, what: "saved (estimate)".to_owned(), note });
    let mut line = |number: u64, what: &str, note: String| {
        lines.push(Line { number: grouped(number), what: what.to_owned(), note });
    };
    let measured: u64 =
        [&totals.exits, &totals.refused].iter().filter_map(|by| by.get(MEASURED)).sum();
    if measured > 0 {
        line(measured, "native to measure", share(measured, totals.syscalls, "of system calls"));
    }
    for (reason, count) in by_frequency(&totals.exits) {
        line(count, &format!("exits: {reason}"), share(count, totals.rides, "of rides"));
    }
    for (reason, count) in by_frequency(&totals.refused) {
        line(
            count,
            &format!("no ride: {reason}"),
            share(count, totals.syscalls, "of system calls"),
        );
    }
    let note = format!(
        "{} now, {} retired, {} bytes",
        grouped(totals.fragments),
        grouped(totals.fragments_retired),
        grouped(totals.arena_bytes)
    );
    line(totals.fragments_installed, "fragments", note);
    let translations = &report.translations;
    let median = translations
        .time_median_us
        .map(|median| format!(", median {}", duration(median as f64 * 1e3)))
        .unwrap_or_default();
    let total = duration(translations.time_total_us as f64 * 1e3);
    line(translations.attempted, "translations", format!("{total} in total{median}"));
    for (failure, count) in &translations.failed {
        line(*count, &format!("not translated: {failure}"), String::new());
    }
    if totals.reports_dropped > 0 {
        line(totals.reports_dropped, "reports lost", String::new());
    }
    lines
}

/// What was counted by reason, the most frequent first, without what went
/// native on purpose.
fn by_frequency(counts: &BTreeMap<String, u64>) -> Vec<(&str, u64)> {
    let counted = counts.iter().filter(|(reason, count)| **count > 0 && *reason != MEASURED);
    let mut counted: Vec<_> = counted.map(|(reason, count)| (reason.as_str(), *count)).collect();
    counted.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    counted
}

/// Figure and note of the time saved. An estimate that is not distinguishable
/// from nothing says so.
pub(crate) fn saved(saved: Option<&TimeSaved>) -> (String, String) {
    let Some(saved) = saved else {
        return ("not measured".to_owned(), "no gap was timed both natively and ridden".to_owned());
    };
    let confidence = match saved.margin_ns {
        Some(margin) if margin >= saved.ns.abs() => {
            format!("+- {} (95 %): may be nothing", duration(margin))
        }
        Some(margin) => format!("+- {} (95 %)", duration(margin)),
        None => "spread not measured".to_owned(),
    };
    let covered = format!("from {:.0} % of ridden calls", 100.0 * saved.measured_share);
    (duration(saved.ns), format!("{confidence}, {covered}"))
}

/// A share in words; nothing if there is no whole.
pub(crate) fn share(part: u64, whole: u64, of: &str) -> String {
    if whole == 0 { String::new() } else { format!("{} {of}", percent(part, whole)) }
}

fn ratio(part: u64, whole: u64, of: &str) -> String {
    if whole == 0 {
        return String::new();
    }
    format!("{:.1} {of}", part as f64 / whole as f64)
}

/// The mean with its unit, or a dash.
#[must_use]
pub fn mean(timing: &Timing) -> String {
    timing.mean().map_or_else(|| "-".to_owned(), duration)
}

/// What became of a gap, with the reason if there is one.
#[must_use]
pub fn outcome(gap: &GapRow) -> String {
    match &gap.reason {
        Some(reason) => format!("{}: {reason}", gap.state.name()),
        None => gap.state.name().to_owned(),
    }
}

fn gap_table(report: &Report, most: usize) -> String {
    let gaps = &report.hot_gaps;
    if gaps.is_empty() || most == 0 {
        return String::new();
    }
    if report.source == Source::Profile {
        return profiled_gaps(report, most);
    }
    let mut out = format!(
        " {:>12} {:>8} {:>9} {:>9}  gap ({} of {})\n",
        "passages",
        "ridden",
        "native",
        "ride",
        gaps.len().min(most),
        gaps.len()
    );
    for gap in gaps.iter().take(most) {
        let _ = writeln!(
            out,
            " {:>12} {:>8} {:>9} {:>9}  {}",
            grouped(gap.count),
            percent(gap.ridden, gap.count),
            mean(&gap.native),
            mean(&gap.ride),
            gap.label()
        );
        let _ = writeln!(out, " {:>42}{}", "", outcome(gap));
    }
    out.push('\n');
    out
}

/// Of a profile, in which nothing rides: each gap's share of the calls.
fn profiled_gaps(report: &Report, most: usize) -> String {
    let gaps = &report.hot_gaps;
    let shown = gaps.len().min(most);
    let mut out = format!(
        " {:>12} {:>8} {:>9}  gap ({shown} of {})\n",
        "passages",
        "share",
        "time",
        gaps.len()
    );
    for gap in gaps.iter().take(most) {
        let _ = writeln!(
            out,
            " {:>12} {:>8} {:>9}  {}",
            grouped(gap.count),
            percent(gap.count, report.totals.syscalls),
            mean(&gap.native),
            gap.label()
        );
    }
    out.push('\n');
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::{GapState, Process, Totals};

    /// A session with everything in it, and round numbers.
    pub(crate) fn example() -> Report {
        let mut report = Report::new(
            Source::Session,
            vec!["redis-server".into(), "--save".into(), "<none>".into()],
            Default::default(),
        );
        report.environment.kernel = "6.12.0".into();
        report.environment.accelerator = "tcg".into();
        report.environment.cpu = "CPU & more".into();
        report.environment.kpti = Some(true);
        report.elapsed_ns = 4_000_000_000;
        report.totals = Totals {
            syscalls: 4_000_000,
            ridden: 3_000_000,
            rides: 500_000,
            fragments: 12,
            fragments_installed: 14,
            fragments_retired: 2,
            ..Default::default()
        };
        report.totals.exits =
            [("poll", 1000), ("guard", 0), ("syscall_refused", 400_000), ("measured", 8000)]
                .map(pair)
                .into();
        report.totals.refused = [("syscall_work", 2000), ("condition", 0)].map(pair).into();
        report.totals.settle();
        report.translations.attempted = 15;
        report.translations.time_total_us = 45_000;
        report.translations.time_median_us = Some(2500);
        report.translations.failed = [("no_room", 1)].map(pair).into();
        report.processes = vec![Process { space: 1, pid: Some(42), name: "redis-server".into() }];
        let timing = |mean_ns| Timing { samples: 1000, mean_ns, error_ns: Some(1.0) };
        report.hot_gaps = vec![
            GapRow {
                space: 1,
                address: 0x1000,
                from: Some("libc!write+0x14".into()),
                to: Some("libc!epoll_wait".into()),
                count: 2_500_000,
                ridden: 2_000_000,
                native: timing(900.0),
                ride: timing(400.0),
                gain: None,
                state: GapState::Riding,
                reason: None,
            },
            GapRow {
                space: 1,
                address: 0x2000,
                from: None,
                to: None,
                count: 9000,
                native: timing(70_000.0),
                state: GapState::Refused,
                reason: Some("x87 <fld1>".into()),
                ..Default::default()
            },
        ];
        for second in 0..5 {
            report.elapsed_ns = second * 1_000_000_000;
            report.totals.syscalls = second * 1_000_000;
            report.totals.ridden = second * 750_000;
            report.sample();
        }
        report.settle();
        report
    }

    fn pair((name, count): (&str, u64)) -> (String, u64) {
        (name.to_owned(), count)
    }

    #[test]
    fn a_profile_shows_shares_and_nothing_about_rides() {
        let mut report = example();
        report.source = Source::Profile;
        report.totals.syscalls = 5_000_000;
        let text = render(&report, 1);
        let row = "    2,500,000   50.0 %    900 ns  libc!write+0x14 -> libc!epoll_wait";
        assert!(text.contains(row), "{text}");
        assert!(!text.contains("rid"), "{text}");
    }

    #[test]
    fn a_session_in_the_shape_of_perf_stat() {
        let expected = "
 ub: session so far of `redis-server --save '<none>'`, 4.00 s:
 CPU & more, tcg, kernel 6.12.0, KPTI on
 emulated: times and rates say nothing about real hardware; counts do

         4,000,000  system calls              1,000,000 per second
         3,000,000  ridden                    75.0 % of system calls
         3,000,000  transitions saved         1,000,000 left
           500,000  rides                     6.0 system calls each
            1.00 s  saved (estimate)          +- 5.54 ms (95 %), from 67 % of ridden calls
             8,000  native to measure         0.2 % of system calls
           400,000  exits: syscall_refused    80.0 % of rides
             1,000  exits: poll               0.2 % of rides
             2,000  no ride: syscall_work     0.1 % of system calls
                14  fragments                 12 now, 2 retired, 0 bytes
                15  translations              45.0 ms in total, median 2.50 ms
                 1  not translated: no_room

     passages   ridden    native      ride  gap (2 of 2)
    2,500,000   80.0 %    900 ns    400 ns  libc!write+0x14 -> libc!epoll_wait
                                           riding
        9,000    0.0 %   70.0 us         -  0x2000
                                           refused: x87 <fld1>

";
        assert_eq!(render(&example(), GAPS), expected);
    }

    #[test]
    fn an_empty_session_has_no_shares() {
        let report = Report::new(Source::Session, vec!["a".into()], Default::default());
        let text = render(&report, GAPS);
        assert!(!text.contains("NaN") && !text.contains('%'), "{text}");
        assert!(text.contains("not measured"), "{text}");
    }

    #[test]
    fn nothing_observed_says_why() {
        let report = Report::inactive(vec!["a".into()], Default::default(), "no module");
        assert!(render(&report, GAPS).contains("nothing was counted: no module"));
    }

    #[test]
    fn an_estimate_within_its_error_may_be_nothing() {
        let unsure = TimeSaved { ns: 5.0, margin_ns: Some(6.0), measured_share: 1.0 };
        assert!(saved(Some(&unsure)).1.contains("may be nothing"));
        let sure = TimeSaved { margin_ns: Some(4.0), ..unsure };
        assert!(!saved(Some(&sure)).1.contains("may be nothing"));
    }
}

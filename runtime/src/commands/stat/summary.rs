//! The text that `ub stat` prints.

use std::ffi::OsString;
use std::fmt::Write;

use crate::abi::{Stats, Stop};
use crate::supervisor::Counters;

/// What there is to say about one session.
pub(super) fn text(command: &[OsString], stats: &Stats, counters: &Counters) -> String {
    let mut out = String::new();
    let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
    let mut line = |number: u64, what: &str, note: String| {
        let text = format!("{:>18}  {what:<24}{note}", grouped(number));
        let _ = writeln!(out, "{}", text.trim_end());
    };
    line(stats.syscalls, "system calls", String::new());
    line(stats.ridden, "ridden", share(stats.ridden, stats.syscalls, "of system calls"));
    line(stats.syscalls.saturating_sub(stats.ridden), "transitions", String::new());
    line(stats.rides, "rides", ratio(stats.ridden, stats.rides, "system calls each"));
    for stop in Stop::ALL {
        let count = stats.stops[*stop as usize];
        if count > 0 {
            let name = format!("exits: {}", stop.name());
            line(count, &name, share(count, stats.rides, "of rides"));
        }
    }
    line(
        stats.fragments_installed,
        "fragments",
        format!(
            "{} now, {} retired, {} bytes",
            grouped(stats.fragments),
            grouped(stats.fragments_retired),
            grouped(stats.arena_bytes)
        ),
    );
    let median = counters
        .time_median()
        .map(|median| format!(", median {:.3} ms", 1e3 * median.as_secs_f64()))
        .unwrap_or_default();
    line(
        counters.translations,
        "translations",
        format!("{:.3} ms in total{median}", 1e3 * counters.time_total().as_secs_f64()),
    );
    for (failure, count) in &counters.failures {
        line(*count, &format!("not translated: {}", failure.name()), String::new());
    }
    if stats.reports_dropped > 0 {
        line(stats.reports_dropped, "reports lost", String::new());
    }
    format!("\n ub: session of '{}':\n\n{out}\n", words.join(" "))
}

fn share(part: u64, whole: u64, of: &str) -> String {
    if whole == 0 {
        return String::new();
    }
    format!("{:.1} % {of}", 100.0 * part as f64 / whole as f64)
}

fn ratio(part: u64, whole: u64, of: &str) -> String {
    if whole == 0 {
        return String::new();
    }
    format!("{:.1} {of}", part as f64 / whole as f64)
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::Failure;

    #[test]
    fn numbers_are_grouped() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")];
        for (number, text) in cases {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn says_everything_that_happened_and_nothing_else() {
        let mut stats = Stats { syscalls: 2000, ridden: 1500, rides: 100, ..Default::default() };
        stats.stops[Stop::Poll as usize] = 25;
        let mut counters = Counters::default();
        counters.fail(Failure::NoRoom);
        let text = text(&["a".into(), "b".into()], &stats, &counters);
        for part in
            ["'a b'", "75.0 % of system calls", "15.0 system calls each", "exits: poll", "no_room"]
        {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert!(!text.contains("guard") && !text.contains("lost"), "{text}");
    }

    #[test]
    fn an_empty_session_has_no_shares() {
        let text = text(&["a".into()], &Stats::default(), &Counters::default());
        assert!(!text.contains("NaN") && !text.contains('%'), "{text}");
    }
}

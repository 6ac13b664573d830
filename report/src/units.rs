//! Numbers as people read them.

/// `1234567` as `1,234,567`.
#[must_use]
pub fn grouped(number: u64) -> String {
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

/// At most five characters: `999`, `12.3k`, `4.56M`.
#[must_use]
pub fn short(number: f64) -> String {
    let steps = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    match steps.iter().find(|(size, _)| number.abs() >= *size) {
        Some((size, suffix)) => format!("{}{suffix}", three_digits(number / size)),
        None => format!("{number:.0}"),
    }
}

/// Nanoseconds with the unit that leaves one to three digits before the point.
#[must_use]
pub fn duration(ns: f64) -> String {
    let steps = [(1e9, "s"), (1e6, "ms"), (1e3, "us")];
    match steps.iter().find(|(size, _)| ns.abs() >= *size) {
        Some((size, unit)) => format!("{} {unit}", three_digits(ns / size)),
        None => format!("{ns:.0} ns"),
    }
}

/// `part` of `whole` in per cent; empty if there is no whole.
#[must_use]
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return String::new();
    }
    format!("{:.1} %", 100.0 * part as f64 / whole as f64)
}

/// Three digits that count, as long as there are that many before the point.
fn three_digits(number: f64) -> String {
    match number.abs() {
        size if size >= 99.95 => format!("{number:.0}"),
        size if size >= 9.995 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")];
        for (number, text) in cases {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn short_numbers_keep_three_digits() {
        let cases = [(0.0, "0"), (999.0, "999"), (1234.0, "1.23k"), (123_456.0, "123k")];
        for (number, text) in cases {
            assert_eq!(short(number), text);
        }
        assert_eq!(short(4.56e6), "4.56M");
        assert_eq!(short(99.96e9), "100G");
    }

    #[test]
    fn durations_have_a_unit_of_their_size() {
        let cases = [(0.0, "0 ns"), (12.0, "12 ns"), (1500.0, "1.50 us"), (2.5e7, "25.0 ms")];
        for (ns, text) in cases {
            assert_eq!(duration(ns), text);
        }
        assert_eq!(duration(-3e9), "-3.00 s");
    }

    #[test]
    fn nothing_has_no_share() {
        assert_eq!(percent(1, 0), "");
        assert_eq!(percent(3, 4), "75.0 %");
    }
}

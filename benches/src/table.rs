//! The table that `make bench-code` ends with.

use std::fmt;

use crate::guest::Translated;
use crate::measure::Cost;

/// Promised: the geometric mean of the ratios.
pub const PROMISED_MEAN: f64 = 1.10;
/// Promised: the largest ratio.
pub const PROMISED_MAXIMUM: f64 = 1.5;

/// One measured kernel.
#[derive(Debug, Clone)]
pub struct Row {
    name: &'static str,
    cost: Cost,
    guest_instructions: usize,
    emitted_instructions: usize,
    emitted_bytes: usize,
    fragments: usize,
    entered: u64,
}

impl Row {
    /// What was measured of `translated`.
    #[must_use]
    pub fn new(name: &'static str, cost: Cost, translated: &Translated) -> Self {
        let parts = || translated.fragments().iter().map(|fragment| fragment.parts());
        Self {
            name,
            cost,
            guest_instructions: parts().map(|parts| parts.guest_instructions as usize).sum(),
            emitted_instructions: parts()
                .map(|parts| crate::listing::instructions(&parts.code))
                .sum(),
            emitted_bytes: parts().map(|parts| parts.code.len()).sum(),
            fragments: parts().count(),
            entered: translated.entered(),
        }
    }
}

/// The rows and the verdict on them.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// In the order in which they are printed.
    pub rows: Vec<Row>,
    /// Kernels that could not be measured, with reasons.
    pub left_out: Vec<String>,
}

impl Table {
    /// Geometric mean and maximum of the ratios.
    #[must_use]
    pub fn summary(&self) -> (f64, f64) {
        let logarithms: f64 = self.rows.iter().map(|row| row.cost.ratio.ln()).sum();
        let mean = (logarithms / self.rows.len() as f64).exp();
        (mean, self.rows.iter().map(|row| row.cost.ratio).fold(f64::NAN, f64::max))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24}{:>10}{:>12}{:>8}  {:<13}{:>6}{:>7}{:>8}{:>6}{:>9}",
            "kernel",
            "native ns",
            "translated",
            "ratio",
            "quartiles",
            "in",
            "out",
            "bytes",
            "frags",
            "entered"
        )?;
        for row in &self.rows {
            let (low, high) = row.cost.quartiles;
            writeln!(
                f,
                "{:<24}{:>10.0}{:>12.0}{:>8.3}  {low:.3} - {high:.3}{:>6}{:>7}{:>8}{:>6}{:>9}",
                row.name,
                row.cost.native,
                row.cost.translated,
                row.cost.ratio,
                row.guest_instructions,
                row.emitted_instructions,
                row.emitted_bytes,
                row.fragments,
                row.entered
            )?;
        }
        let (mean, maximum) = self.summary();
        for reason in &self.left_out {
            writeln!(f, "left out: {reason}")?;
        }
        let kept = self.left_out.is_empty() && mean <= PROMISED_MEAN && maximum <= PROMISED_MAXIMUM;
        writeln!(
            f,
            "geometric mean {mean:.3}, maximum {maximum:.3} (promised: {PROMISED_MEAN:.2} and \
             {PROMISED_MAXIMUM:.1}): {}",
            if kept { "kept" } else { "short of the promise" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(ratios: &[f64]) -> Table {
        let row = |ratio| Row {
            name: "kernel",
            cost: Cost {
                native: 100.0,
                translated: 100.0 * ratio,
                ratio,
                quartiles: (ratio, ratio),
            },
            guest_instructions: 1,
            emitted_instructions: 2,
            emitted_bytes: 3,
            fragments: 1,
            entered: 1,
        };
        Table { rows: ratios.iter().copied().map(row).collect(), ..Table::default() }
    }

    #[test]
    fn the_mean_is_geometric() {
        let (mean, maximum) = table(&[0.5, 2.0, 1.0]).summary();
        assert!((mean - 1.0).abs() < 1e-9, "{mean}");
        assert_eq!(maximum, 2.0);
    }

    #[test]
    fn the_verdict_needs_both_bounds_and_every_kernel() {
        let short = |table: &Table| table.to_string().contains("short of the promise");
        assert!(!short(&table(&[1.0, 1.2])));
        assert!(short(&table(&[1.2, 1.2])));
        assert!(short(&table(&[0.5, 0.5, 1.6])));
        assert!(short(&Table { left_out: vec!["x".into()], ..table(&[1.0]) }));
        assert!(short(&Table::default()));
    }
}

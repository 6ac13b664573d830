//! Values over a few named steps, such as sizes, as lines.

use plotters::prelude::*;

use super::{Axes, FAINT, INK, NATIVE, Plot, RIDDEN, plot};

/// What a line is of, which decides on its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Measured natively, or in the weaker of two states.
    Native,
    /// Measured with the bypass, or in the stronger of two states.
    Ridden,
    /// Not measured here at all.
    Reference,
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What it is of.
    pub look: Look,
    /// Index of a step, value there.
    pub points: Vec<(usize, f64)>,
    /// Index of a step, lower and upper end of the interval of the value.
    pub intervals: Vec<(usize, f64, f64)>,
    /// Drawn thinner and without points: the other state of the machine.
    pub secondary: bool,
}

/// A plot of lines.
#[derive(Debug, Clone, PartialEq)]
pub struct Lines<'a> {
    /// The steps below the plot, in order.
    pub steps: &'a [String],
    /// What the steps are, with their unit.
    pub x_name: &'a str,
    /// What the values are, with their unit.
    pub y_name: &'a str,
    /// The lines.
    pub series: &'a [Series],
    /// Whether the value 0 must be in the plot.
    pub from_zero: bool,
}

/// Draws `lines`; `None` if there are not two steps or no value.
#[must_use]
pub fn lines(lines: &Lines<'_>) -> Option<Plot> {
    let values = || {
        lines.series.iter().flat_map(|series| {
            let ends = series.intervals.iter().flat_map(|(_, low, high)| [*low, *high]);
            series.points.iter().map(|(_, value)| *value).chain(ends)
        })
    };
    if lines.steps.len() < 2 || values().next().is_none() {
        return None;
    }
    let zero = if lines.from_zero { 0.0 } else { f64::INFINITY };
    let low = values().fold(zero, f64::min);
    let high = values().fold(if lines.from_zero { 0.0 } else { f64::NEG_INFINITY }, f64::max);
    let room = ((high - low) * 0.06).max(high.abs() * 0.02).max(1e-3);
    let last = (lines.steps.len() - 1) as f64;
    let axes = Axes {
        x: -0.15..last + 0.15,
        y: (if low == 0.0 { 0.0 } else { low - room })..high + room,
        x_name: lines.x_name,
        y_name: lines.y_name,
        x_label: &|step| {
            let whole = (step - step.round()).abs() < 1e-6 && *step >= -1e-6;
            let name = whole.then(|| lines.steps.get(step.round() as usize)).flatten();
            name.cloned().unwrap_or_default()
        },
        y_label: &|value| value_label(*value, high - low),
        y_labels: 6,
    };
    plot(|area, ticks| {
        axes.draw(area, lines.steps.len().min(ticks), |chart| {
            for series in lines.series {
                let colour = match series.look {
                    Look::Native => NATIVE,
                    Look::Ridden => RIDDEN,
                    Look::Reference => INK,
                };
                let points = || series.points.iter().map(|(step, value)| (*step as f64, *value));
                let width = if series.secondary { 1 } else { 2 };
                if series.look == Look::Reference {
                    let style = colour.stroke_width(1);
                    chart.draw_series(DashedLineSeries::new(points(), 5, 4, style))?;
                    chart.draw_series(points().map(|at| Cross::new(at, 4, colour)))?;
                    continue;
                }
                chart.draw_series(LineSeries::new(points(), colour.stroke_width(width)))?;
                if !series.secondary {
                    chart.draw_series(points().map(|at| Circle::new(at, 3, colour.filled())))?;
                }
                for (step, low, high) in &series.intervals {
                    let ends = vec![(*step as f64, *low), (*step as f64, *high)];
                    chart.draw_series([PathElement::new(ends, colour.stroke_width(1))])?;
                }
            }
            if low < 0.0 && high > 0.0 {
                let zero = vec![(-0.15, 0.0), (last + 0.15, 0.0)];
                chart.draw_series([PathElement::new(zero, FAINT.stroke_width(2))])?;
            }
            Ok(())
        })
    })
}

/// A value of an axis that spans `range`.
fn value_label(value: f64, range: f64) -> String {
    if value.abs() >= 1e4 {
        return crate::units::short(value);
    }
    match range {
        _ if range < 1.0 => format!("{value:.2}"),
        _ if range < 10.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(look: Look) -> Series {
        Series {
            look,
            points: vec![(0, 10.0), (1, -3.0)],
            intervals: vec![(0, 8.0, 12.0)],
            secondary: false,
        }
    }

    #[test]
    fn steps_and_axes_are_named() {
        let steps = ["64".to_owned(), "4,096".to_owned()];
        let series = [series(Look::Native), series(Look::Reference)];
        let (x_name, y_name) = ("size (bytes)", "gain (%)");
        let drawn = Lines { steps: &steps, x_name, y_name, series: &series, from_zero: true };
        let svg = lines(&drawn).unwrap().wide;
        for part in ["4,096", "size (bytes)", "gain (%)", "var(--native)", "var(--ink)"] {
            assert!(svg.contains(part), "{part} missing in {svg}");
        }
        assert!(lines(&Lines { steps: &steps[..1], ..drawn.clone() }).is_none());
        assert!(lines(&Lines { series: &[], ..drawn }).is_none());
    }
}

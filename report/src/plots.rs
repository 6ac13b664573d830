//! The plots of the HTML page, as SVG that takes its colours from the page.
//!
//! plotters writes fixed colours. Each one used here is a name for a variable
//! of the page's style sheet, so that a plot follows light and dark.

mod lines;

use std::error::Error;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::model::{GapRow, Histogram, Sample, Timing};
use crate::units::{duration, short};

pub use lines::{Lines, Look, Series, lines};

const INK: RGBColor = RGBColor(1, 0, 0);
const FAINT: RGBColor = RGBColor(2, 0, 0);
const NATIVE: RGBColor = RGBColor(3, 0, 0);
const RIDDEN: RGBColor = RGBColor(4, 0, 0);
/// What plotters writes for the colours above, and what the page has instead.
const VARIABLES: [(&str, &str); 4] = [
    ("\"#010000\"", "\"var(--ink)\""),
    ("\"#020000\"", "\"var(--faint)\""),
    ("\"#030000\"", "\"var(--native)\""),
    ("\"#040000\"", "\"var(--ridden)\""),
];

/// A plot in the sizes for wide and narrow pages; text keeps its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plot {
    /// For wide pages.
    pub wide: String,
    /// For narrow pages.
    pub narrow: String,
}

const WIDE: (u32, u32) = (880, 260);
const NARROW: (u32, u32) = (340, 240);
/// Radius of a dot.
const DOT: i32 = 4;

type Drawn = Result<(), Box<dyn Error>>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws both sizes; the second argument of `draw` is how many labels fit below.
fn plot(draw: impl Fn(&Area<'_>, usize) -> Drawn) -> Option<Plot> {
    let one = |(width, height), ticks| {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
            draw(&area, ticks).ok()?;
            area.present().ok()?;
        }
        Some(VARIABLES.iter().fold(svg, |svg, (fixed, variable)| svg.replace(fixed, variable)))
    };
    Some(Plot { wide: one(WIDE, 8)?, narrow: one(NARROW, 4)? })
}

/// The axes of a plot, each with its unit.
struct Axes<'a> {
    x: Range<f64>,
    y: Range<f64>,
    x_name: &'a str,
    y_name: &'a str,
    x_label: &'a dyn Fn(&f64) -> String,
    y_label: &'a dyn Fn(&f64) -> String,
    y_labels: usize,
}

impl Axes<'_> {
    fn draw(
        &self,
        area: &Area<'_>,
        x_labels: usize,
        content: impl FnOnce(&mut Chart<'_, '_>) -> Drawn,
    ) -> Drawn {
        let text = |size: u32| ("sans-serif", size).into_font().color(&INK);
        let mut chart = ChartBuilder::on(area)
            .margin(6)
            .margin_right(28)
            .x_label_area_size(46)
            .y_label_area_size(66)
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        chart
            .configure_mesh()
            .axis_style(FAINT)
            .bold_line_style(FAINT)
            .light_line_style(TRANSPARENT)
            .x_labels(x_labels)
            .y_labels(self.y_labels)
            .x_desc(self.x_name)
            .y_desc(self.y_name)
            .x_label_formatter(self.x_label)
            .y_label_formatter(self.y_label)
            .label_style(text(15))
            .axis_desc_style(text(16))
            .draw()?;
        content(&mut chart)
    }
}

/// System calls a second over time, and how many of them rode.
pub(crate) fn rates(samples: &[Sample]) -> Option<Plot> {
    let rate = |count: fn(&Sample) -> u64| -> Vec<(f64, f64)> {
        samples
            .windows(2)
            .map(|pair| {
                let seconds = (pair[1].at_ns - pair[0].at_ns) as f64 / 1e9;
                let calls = count(&pair[1]).saturating_sub(count(&pair[0])) as f64;
                (pair[1].at_ns as f64 / 1e9, calls / seconds.max(1e-9))
            })
            .collect()
    };
    let (all, ridden) = (rate(|sample| sample.syscalls), rate(|sample| sample.ridden));
    // Fewer are no course of events.
    if all.len() < 2 {
        return None;
    }
    let most = all.iter().fold(1.0, |most: f64, (_, rate)| most.max(*rate));
    let axes = Axes {
        x: 0.0..all.last()?.0,
        y: 0.0..most * 1.05,
        x_name: "time since the start (s)",
        y_name: "system calls per second",
        x_label: &|seconds| short_or_tenths(*seconds),
        y_label: &|rate| short(*rate),
        y_labels: 5,
    };
    plot(|area, ticks| {
        axes.draw(area, ticks, |chart| {
            let fill = RIDDEN.mix(0.35);
            chart.draw_series(AreaSeries::new(ridden.iter().copied(), 0.0, fill))?;
            chart.draw_series(LineSeries::new(ridden.iter().copied(), RIDDEN.stroke_width(2)))?;
            chart.draw_series(LineSeries::new(all.iter().copied(), NATIVE.stroke_width(2)))?;
            Ok(())
        })
    })
}

fn short_or_tenths(number: f64) -> String {
    if number < 10.0 && number.fract() != 0.0 { format!("{number:.1}") } else { short(number) }
}

/// Mean time of the first `most` gaps, native and ridden, by their number.
pub(crate) fn gap_times(gaps: &[GapRow], most: usize) -> Option<Plot> {
    let gaps = &gaps[..gaps.len().min(most)];
    let means = || {
        gaps.iter()
            .flat_map(|gap| [gap.native.mean(), gap.ride.mean()])
            .flatten()
            .filter(|mean| *mean > 0.0)
    };
    let shortest = means().min_by(f64::total_cmp)?.log10();
    let longest = means().max_by(f64::total_cmp)?.log10();
    let power = |power: &f64| {
        if power.fract() == 0.0 { duration(10_f64.powf(*power)) } else { String::new() }
    };
    let axes = Axes {
        // Short gaps and long ones differ by orders of magnitude.
        x: shortest.floor()..longest.floor() + 1.0,
        // Downwards, as in the table.
        y: -(gaps.len() as f64) - 0.5..-0.5,
        x_name: "mean time from call to call (logarithmic)",
        y_name: "gap number",
        x_label: &power,
        y_label: &|row| if row.fract() == 0.0 { format!("{:.0}", -row) } else { String::new() },
        y_labels: gaps.len(),
    };
    plot(|area, ticks| {
        axes.draw(area, ticks, |chart| {
            for (index, gap) in gaps.iter().enumerate() {
                let row = -(index as f64) - 1.0;
                let at = |timing: Timing| {
                    let mean = timing.mean().filter(|mean| *mean > 0.0)?;
                    Some((mean.log10(), row))
                };
                let ends = [(at(gap.native), NATIVE), (at(gap.ride), RIDDEN)];
                if let [(Some(native), _), (Some(ride), _)] = ends {
                    chart.draw_series([PathElement::new([native, ride], FAINT)])?;
                }
                for (point, colour) in ends {
                    let dots = point.map(|point| Circle::new(point, DOT, colour.filled()));
                    chart.draw_series(dots)?;
                }
            }
            Ok(())
        })
    })
}

/// How long gaps are.
pub(crate) fn lengths(histogram: &Histogram) -> Option<Plot> {
    let total: u64 = histogram.log2_ns.iter().sum();
    let first = histogram.log2_ns.iter().position(|count| *count > 0)?;
    let shares: Vec<f64> =
        histogram.log2_ns.iter().map(|count| 100.0 * *count as f64 / total as f64).collect();
    let most = shares.iter().copied().fold(0.0, f64::max);
    let axes = Axes {
        x: first as f64..shares.len() as f64,
        y: 0.0..most * 1.05,
        x_name: "time from call to call (each bar doubles)",
        y_name: "share of gaps (%)",
        x_label: &|power| {
            if power.fract() == 0.0 { duration(power.exp2()) } else { String::new() }
        },
        y_label: &|share| short_or_tenths(*share),
        y_labels: 5,
    };
    plot(|area, ticks| {
        axes.draw(area, ticks, |chart| {
            chart.draw_series(shares.iter().enumerate().skip(first).map(|(power, share)| {
                let left = power as f64;
                Rectangle::new([(left + 0.05, 0.0), (left + 0.95, *share)], NATIVE.filled())
            }))?;
            Ok(())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests::example;

    #[test]
    fn colours_come_from_the_page() {
        let report = example();
        let mut lengths_of = Histogram::default();
        lengths_of.add(500, 7);
        lengths_of.add(4000, 3);
        let plots = [
            rates(&report.samples).unwrap(),
            gap_times(&report.hot_gaps, 10).unwrap(),
            lengths(&lengths_of).unwrap(),
        ];
        for plot in plots {
            for svg in [plot.wide, plot.narrow] {
                assert!(svg.contains("var(--ink)") && svg.contains("var(--native)"), "{svg}");
                assert!(!svg.contains("\"#"), "a fixed colour in {svg}");
            }
        }
    }

    #[test]
    fn axes_have_names_with_units() {
        let report = example();
        let svg = rates(&report.samples).unwrap().wide;
        assert!(svg.contains("time since the start (s)"), "{svg}");
        assert!(svg.contains("system calls per second"), "{svg}");
        let svg = gap_times(&report.hot_gaps, 10).unwrap().narrow;
        assert!(svg.contains("mean time from call to call") && svg.contains(" us"), "{svg}");
    }

    #[test]
    fn nothing_to_draw_is_no_plot() {
        assert_eq!(rates(&[Sample::default()]), None);
        assert_eq!(gap_times(&[GapRow::default()], 10), None);
        assert_eq!(lengths(&Histogram::default()), None);
    }
}

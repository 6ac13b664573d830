//! The plots of the page: figures over the parameter that a workload varies in.

use maud::{Markup, html};
use ub_report::html::figure;
use ub_report::plots::{Lines, Look, Series, lines};
use ub_report::units::grouped;

use super::{Known, kpti};
use crate::bootstrap::Interval;
use crate::harness::analysis::Figures;
use crate::harness::published::FIGURES;
use crate::harness::record::{Cell, Environment};
use crate::workload::Workload;

/// The parameter that a plot varies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Axis {
    Bytes,
    Connections,
    Depth,
}

impl Axis {
    fn name(self) -> &'static str {
        match self {
            Self::Bytes => "size (bytes)",
            Self::Connections => "connections",
            Self::Depth => "reads per call",
        }
    }

    /// The parameter's value, and the workload's name without it: what is
    /// equal in one plot.
    fn of(self, workload: &Workload) -> Option<(u32, String)> {
        let mut rest = *workload;
        let value = match (&mut rest, self) {
            (
                Workload::Read { bytes, .. }
                | Workload::Redis { bytes, .. }
                | Workload::Nginx { bytes, .. }
                | Workload::Memcached { bytes, .. },
                Self::Bytes,
            ) => std::mem::replace(bytes, 64),
            (Workload::Redis { clients, .. }, Self::Connections) => std::mem::replace(clients, 1),
            (Workload::Nginx { connections, .. }, Self::Connections) => {
                std::mem::replace(connections, 1)
            }
            (Workload::Ring { depth, .. }, Self::Depth) => std::mem::replace(depth, 1),
            _ => return None,
        };
        Some((value, rest.to_string()))
    }
}

/// A workload that was measured on a machine.
pub(super) type Row<'a> = (Known<'a>, &'a Cell, Figures);

/// A plot for each figure of each group of workloads that differ in one parameter.
pub(super) fn plots(rows: &[Row<'_>]) -> Vec<Markup> {
    let mut drawn = Vec::new();
    for axis in [Axis::Bytes, Axis::Connections, Axis::Depth] {
        let mut groups: Vec<String> =
            rows.iter().filter_map(|(_, cell, _)| Some(axis.of(&cell.workload)?.1)).collect();
        groups.dedup();
        groups.sort_unstable();
        groups.dedup();
        for group in groups {
            let of_group: Vec<(u32, &Row<'_>)> = rows
                .iter()
                .filter_map(|row| {
                    let (value, name) = axis.of(&row.1.workload)?;
                    (name == group).then_some((value, row))
                })
                .collect();
            let mut steps: Vec<u32> = of_group.iter().map(|(value, _)| *value).collect();
            steps.sort_unstable();
            steps.dedup();
            if steps.len() > 1 {
                drawn.extend(group_plots(axis, &steps, &of_group));
            }
        }
    }
    drawn
}

/// The figures of one machine, by the value that a plot varies.
type Measured<'a> = (&'a Environment, Vec<(u32, &'a Figures)>);

/// The figures of each machine.
fn by_machine<'a>(rows: &'a [(u32, &'a Row<'a>)]) -> Vec<Measured<'a>> {
    let mut machines: Vec<Measured<'_>> = Vec::new();
    for (value, ((_, environment), _, figures)) in rows {
        let known = machines.iter().position(|(other, _)| std::ptr::eq(*other, *environment));
        let index = known.unwrap_or_else(|| {
            machines.push((*environment, Vec::new()));
            machines.len() - 1
        });
        machines[index].1.push((*value, figures));
    }
    machines
}

fn group_plots(axis: Axis, steps: &[u32], rows: &[(u32, &Row<'_>)]) -> Vec<Markup> {
    let title = rows.first().map(|(_, row)| title(axis, &row.1.workload)).unwrap_or_default();
    let names: Vec<String> = steps.iter().map(|step| grouped(u64::from(*step))).collect();
    let step = |value: u32| steps.iter().position(|step| *step == value).unwrap_or(0);
    let machines = by_machine(rows);
    let emulated = machines.iter().any(|(environment, _)| environment.is_emulated());
    let draw = |what: &str, y_name: &str, key: &Markup, series: &[Series], timed: bool| {
        let y_name =
            if timed && emulated { format!("{y_name}, emulated") } else { y_name.to_owned() };
        let plot = lines(&Lines {
            steps: &names,
            x_name: axis.name(),
            y_name: &y_name,
            series,
            from_zero: true,
        });
        let facts = machines.iter().map(|(environment, _)| short_facts(environment));
        let key = html! { (key) br; span class="soft" { (facts.collect::<Vec<_>>().join("; ")) } };
        figure(&format!("{what}: {title}"), &key, timed && emulated, plot)
    };
    let mut all = vec![draw(
        "Transitions per operation",
        "transitions per operation",
        &modes_key(),
        &both_modes(&machines, &step, |f| [f.native_calls, f.ub_transitions()]),
        false,
    )];
    let gains: Vec<Series> = machines
        .iter()
        .map(|(environment, rows)| gain_series(environment, rows, &step))
        .chain(published(axis, steps, rows))
        .collect();
    all.push(draw("Gain of ub over native", "gain (%)", &states_key(), &gains, true));
    let latency = |figures: &Figures| {
        [0, 1].map(|mode| {
            let known = figures.latency_us[mode].iter().find(|(percent, _)| *percent == 99);
            known.map(|(_, us)| us / 1e3)
        })
    };
    let latencies = both_modes(&machines, &step, latency);
    if axis == Axis::Connections && latencies.iter().any(|series| !series.points.is_empty()) {
        let (what, y_name) = ("99th percentile of the latency", "latency (ms)");
        all.push(draw(what, y_name, &modes_key(), &latencies, true));
    }
    all
}

fn short_facts(environment: &Environment) -> String {
    let machine = &environment.machine;
    let state = kpti(environment);
    format!("{}, {state}, kernel {}, {}", environment.accelerator, machine.kernel, machine.cpu)
}

/// "nginx, access log off" without the parameter that varies.
fn title(axis: Axis, workload: &Workload) -> String {
    let family = workload.family();
    let family = family.trim_end_matches(|c: char| c == '-' || c.is_ascii_digit());
    let hidden = match axis {
        Axis::Bytes => ["bytes", ""],
        Axis::Connections => ["connections", "clients"],
        Axis::Depth => ["depth", ""],
    };
    std::iter::once(family.to_owned())
        .chain(
            workload
                .parameters()
                .into_iter()
                .filter(|(name, _)| !hidden.contains(name))
                .map(|(name, value)| format!("{name} {value}")),
        )
        .collect::<Vec<_>>()
        .join(", ")
}

fn modes_key() -> Markup {
    html! {
        span class="key" style="background:var(--native)" {} "native"
        span class="key" style="background:var(--ridden)" {} "ub"
        " (thin lines: KPTI on)"
    }
}

fn states_key() -> Markup {
    html! {
        span class="key" style="background:var(--native)" {} "KPTI off"
        span class="key" style="background:var(--ridden)" {} "KPTI on"
        " (dashed: published, other hardware)"
    }
}

/// A line for each mode and machine.
fn both_modes(
    machines: &[Measured<'_>],
    step: &dyn Fn(u32) -> usize,
    values: impl Fn(&Figures) -> [Option<f64>; 2],
) -> Vec<Series> {
    machines
        .iter()
        .flat_map(|(environment, rows)| {
            let secondary = environment.machine.kpti == Some(true) && machines.len() > 1;
            [(0, Look::Native), (1, Look::Ridden)].map(|(mode, look)| Series {
                look,
                points: sorted(
                    rows.iter()
                        .filter_map(|(value, figures)| Some((step(*value), values(figures)[mode]?)))
                        .collect(),
                ),
                intervals: vec![],
                secondary,
            })
        })
        .collect()
}

fn sorted(mut points: Vec<(usize, f64)>) -> Vec<(usize, f64)> {
    points.sort_unstable_by_key(|(step, _)| *step);
    points
}

fn gain_series(
    environment: &Environment,
    rows: &[(u32, &Figures)],
    step: &dyn Fn(u32) -> usize,
) -> Series {
    let on = environment.machine.kpti == Some(true);
    let percent = |ratio: f64| 100.0 * (ratio - 1.0);
    let gains = || rows.iter().filter_map(|(value, figures)| Some((step(*value), figures.gain?)));
    Series {
        look: if on { Look::Ridden } else { Look::Native },
        points: sorted(gains().map(|(at, gain)| (at, percent(gain.estimate))).collect()),
        intervals: gains()
            .map(|(at, Interval { low, high, .. })| (at, percent(low), percent(high)))
            .collect(),
        secondary: false,
    }
}

/// Published figures for these workloads, at the sizes that were measured.
fn published(axis: Axis, steps: &[u32], rows: &[(u32, &Row<'_>)]) -> Vec<Series> {
    let Some(family) = rows.first().map(|(_, row)| row.1.workload.family()) else {
        return vec![];
    };
    FIGURES
        .iter()
        .filter(|published| axis == Axis::Bytes && family.starts_with(published.family))
        .map(|published| Series {
            look: Look::Reference,
            points: published
                .gains
                .iter()
                .filter_map(|(bytes, gain)| {
                    Some((steps.iter().position(|step| step == bytes)?, *gain))
                })
                .collect(),
            intervals: vec![],
            secondary: false,
        })
        .collect()
}

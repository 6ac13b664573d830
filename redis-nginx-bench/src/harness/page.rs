//! A run as one self-contained HTML page.

use maud::{Markup, html};
use ub_report::html::{figure, page};
use ub_report::plots::{Lines, Look, Series, lines};
use ub_report::units::grouped;

use super::analysis::{Figures, LEVEL};
use super::instructions::{self, Split};
use super::published::{FIGURES, SOURCE};
use super::record::{Cell, Environment, MachineRecord, Record, Target};
use super::terminal::{label, percent, rate};
use crate::bootstrap::Interval;
use crate::workload::Workload;

/// The sections: heading, and whether a workload belongs there.
type Belongs = fn(&Workload) -> bool;
const SECTIONS: [(&str, Belongs); 8] = [
    ("Null call and reads", |w| matches!(w, Workload::Null | Workload::Read { .. })),
    ("A null call that something else interposes (context, measured natively only)", |w| {
        matches!(w, Workload::Interposed { .. })
    }),
    ("io_uring: the alternative a developer would have to code for", |w| {
        matches!(w, Workload::Ring { .. })
    }),
    ("Redis", |w| matches!(w, Workload::Redis { .. })),
    ("nginx", |w| matches!(w, Workload::Nginx { .. })),
    ("Packets over a veth pair: a raw socket, and the same as an eBPF program", |w| {
        matches!(w, Workload::Packets { .. })
    }),
    ("memcached", |w| matches!(w, Workload::Memcached { .. })),
    ("sqlite3", |w| matches!(w, Workload::Sqlite)),
];

/// A machine whose facts are known.
type Known<'a> = (&'a MachineRecord, &'a Environment);

/// The page.
#[must_use]
pub fn render(record: &Record) -> String {
    let machines: Vec<Known<'_>> = record
        .machines
        .iter()
        .filter_map(|machine| Some((machine, machine.environment.as_ref()?)))
        .collect();
    let emulated = machines.iter().any(|(_, environment)| environment.is_emulated());
    let settings = &record.settings;
    let body = html! {
        h1 { "Native against userspace bypass" }
        @if emulated {
            p class="warning" {
                "The CPU was emulated. Rates, times and gains marked (emulated) say nothing about "
                "real hardware. Counts (calls, transitions, shares) do."
            }
        }
        h2 { "Machines" }
        @for (machine, environment) in &machines {
            p { b { (machine.target) } ": " (label(environment).replace('\n', ". ")) }
        }
        p class="soft" {
            (settings.rounds) " rounds wanted over " (settings.launches) " pairs of processes, timed "
            "parts of " (settings.timed_ms) " ms; native and ub in turns, the order reversed every "
            "round. Ranges: bootstrap, " (format!("{:.0}", 100.0 * LEVEL)) " % confidence. A "
            "transition is a system call that enters ring 0. ub run had the options: "
            (if settings.ub_options.is_empty() { "none".into() } else { settings.ub_options.join(" ") })
        }
        @for (heading, belongs) in SECTIONS { (section(heading, belongs, &machines)) }
        @if machines.iter().any(|(machine, _)| !machine.instructions.is_empty()) {
            h2 { "Instructions" }
            p class="soft" { (instructions::CAPTION) }
            @for (machine, environment) in &machines { (counted(machine, environment)) }
        }
        h2 { "Published figures" }
        p class="soft" {
            "Dashed lines with crosses: " (SOURCE) ", measured on other people's hardware in virtual "
            "machines with KVM; for orientation only."
        }
        p class="soft" {
            "Made by ub " (env!("CARGO_PKG_VERSION")) ", run schema " (record.schema) "."
        }
    };
    page("Native against userspace bypass", &body)
}

fn section(heading: &str, belongs: Belongs, machines: &[Known<'_>]) -> Markup {
    let rows: Vec<(Known<'_>, &Cell, Figures)> = workloads(machines)
        .iter()
        .filter(|workload| belongs(workload))
        .flat_map(|workload| {
            machines.iter().filter_map(move |known| {
                let cell = known.0.cells.iter().find(|cell| cell.workload == *workload)?;
                (cell.rounds() > 0).then(|| (*known, cell, Figures::of(cell)))
            })
        })
        .collect();
    if rows.is_empty() {
        return html! {};
    }
    html! {
        h2 { (heading) }
        (table(&rows))
        @for plot in plots(&rows) { (plot) }
    }
}

/// All workloads in the order of the first machine.
fn workloads(machines: &[Known<'_>]) -> Vec<Workload> {
    let mut all: Vec<Workload> = Vec::new();
    for cell in machines.iter().flat_map(|(machine, _)| &machine.cells) {
        if !all.contains(&cell.workload) {
            all.push(cell.workload);
        }
    }
    all
}

fn kpti(environment: &Environment) -> &'static str {
    match environment.machine.kpti {
        Some(true) => "KPTI on",
        Some(false) => "KPTI off",
        None => "KPTI unknown",
    }
}

fn table(rows: &[(Known<'_>, &Cell, Figures)]) -> Markup {
    let all = rows.iter().all(|((_, environment), ..)| environment.is_emulated());
    // In the head of the column, or else beside the machine.
    let mark = |environment: &Environment| {
        if environment.is_emulated() && !all { " (emulated)" } else { "" }
    };
    let timed = |name: &str| if all { format!("{name} (emulated)") } else { name.to_owned() };
    html! {
        table class="gaps figures" {
            thead {
                tr {
                    th style="min-width:9rem" { "workload" } th style="min-width:7rem" { "machine" }
                    th class="number" { "transitions/op, native" }
                    th class="number" { "with ub" }
                    th class="number" { "ridden" }
                    th class="number" {
                        (timed("module not loaded, ops/s"))
                    }
                    th class="number" { (timed("native, ops/s")) }
                    th class="number" { (timed("ub, ops/s")) }
                    th class="number" { (timed("gain")) }
                    th style="min-width:4rem" { "results" }
                }
            }
            tbody {
                @for ((machine, environment), cell, figures) in rows {
                    tr {
                        td class="whole" { code { (cell.workload) } }
                        td class="whole" {
                            (kpti(environment)) " " span class="soft" { (short_name(&machine.target)) (mark(environment)) }
                        }
                        td class="number" data-name="native tr./op" { (count(figures.native_calls)) }
                        td class="number" data-name="ub tr./op" { (count(figures.ub_transitions())) }
                        td class="number" data-name="ridden" {
                            (figures.ridden_share().map_or("-".into(), |s| format!("{:.1} %", 100.0 * s)))
                        }
                        td class="number" data-name="not loaded/s" { (unbroken(&rate(figures.unloaded))) }
                        td class="number" data-name="native/s" { (unbroken(&rate(figures.native))) }
                        td class="number" data-name="ub/s" { (unbroken(&rate(figures.ub))) }
                        td class="number" data-name="gain" {
                            (unbroken(&figures.gain.map_or("-".into(), percent)))
                        }
                        td data-name="results" {
                            @if figures.results_match { "match" }
                            @else if figures.faults.is_empty() { "unchecked" }
                            @else { b { "DIFFER" } }
                        }
                    }
                }
            }
        }
    }
}

/// The kernel's line, or that it is this machine.
fn short_name(target: &Target) -> &str {
    match target {
        Target::Here => "here",
        Target::Guest { kernel, .. } => kernel,
    }
}

/// Keeps numbers and what belongs to them in one line.
fn unbroken(figure: &str) -> String {
    // After a hyphen a line may end, whatever follows.
    let rules = [("+- ", "±\u{a0}"), (" %", "\u{a0}%"), (" to ", "\u{a0}to\u{a0}")];
    rules.iter().fold(figure.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The instructions that were counted on one machine.
fn counted(machine: &MachineRecord, environment: &Environment) -> Markup {
    html! {
        table class="gaps figures" {
            thead {
                tr {
                    th { "workload" } th { "machine" } th { "run" }
                    th class="number" { "instructions/op" } th class="number" { "user" }
                    th class="number" { "kernel" } th class="number" { "switch" }
                }
            }
            tbody {
                @for cell in &machine.instructions {
                    @let split = Split::of(&machine.instructions, cell.workload, cell.way);
                    @let total = cell.figure(|run| Some(run.total())).map(|total| total.mean);
                    tr {
                        td class="whole" { code { (cell.workload) } }
                        td class="whole" {
                            (kpti(environment)) " " span class="soft" { (short_name(&machine.target)) }
                        }
                        td data-name="run" { (instructions::name(cell.way)) }
                        td class="number" data-name="instructions/op" { (count(total)) }
                        td class="number" data-name="user" { (count(split.map(|s| s.user))) }
                        td class="number" data-name="kernel" { (count(split.map(|s| s.kernel))) }
                        td class="number" data-name="switch" { (count(split.map(|s| s.switch))) }
                    }
                }
            }
        }
    }
}

fn count(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.3}"))
}

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

type Row<'a> = (Known<'a>, &'a Cell, Figures);

fn plots(rows: &[Row<'_>]) -> Vec<Markup> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::record::tests::record;

    #[test]
    fn the_page_stands_alone_and_labels_everything() {
        let page = render(&record(4, 1.1));
        for part in ["emulated", "KPTI on", "6.12.1", "Some CPU", "redis-get", "OSDI 2023", "2.000"]
        {
            assert!(page.contains(part), "{part} missing");
        }
        for outside in ["<script", "<link", "src=", "href="] {
            assert!(!page.contains(outside), "{outside} in the page");
        }
    }

    #[test]
    fn sizes_make_a_plot_with_named_axes() {
        let mut record = record(4, 1.1);
        let cell = record.machines[0].cells[0].clone();
        for bytes in [64, 4096] {
            record.machines[0].cells.push(Cell { workload: Workload::read(bytes), ..cell.clone() });
        }
        let page = render(&record);
        for part in ["size (bytes)", "gain (%), emulated", "transitions per operation", "<svg"] {
            assert!(page.contains(part), "{part} missing");
        }
    }

    #[test]
    fn machines_of_which_nothing_is_known_are_left_out() {
        let mut record = record(4, 1.1);
        record.machines[0].environment = None;
        assert!(!render(&record).contains("redis-get"));
    }
}

//! A run as one self-contained HTML page.

mod plots;

use maud::{Markup, html};
use ub_report::html::page;

use super::analysis::Figures;
use super::instructions::{self, Split};
use super::published::SOURCE;
use super::record::{Cell, Environment, MachineRecord, Record, Target};
use super::terminal::{percent, rate};
use crate::report::LEVEL;
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
            p { b { (machine.target) } ": " (environment.label().replace('\n', ". ")) }
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
        @for plot in plots::plots(&rows) { (plot) }
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

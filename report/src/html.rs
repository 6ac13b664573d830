//! A report as one HTML page that needs nothing else: no scripts, no fonts,
//! no network.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::model::{GapRow, Report, Source};
use crate::plots::{self, Plot};
use crate::text::{EMULATED, Line, counters, mean, outcome, saved};
use crate::units::{duration, grouped, percent, short};

const STYLE: &str = include_str!("page.css");
/// Gaps in the table.
const GAPS: usize = 50;
/// Gaps in the plot.
const PLOTTED: usize = 10;

/// The page.
#[must_use]
pub fn render(report: &Report) -> String {
    let command = report.command_line();
    let what = match report.source {
        Source::Session => "Session",
        Source::Profile => "Profile",
    };
    let body = html! {
        h1 { (what) " of " code { (command) } }
        p class="soft" { (report.environment.facts()) }
        @if report.environment.emulated() { p class="warning" { (EMULATED) } }
        @if let Some(reason) = &report.inactive_reason {
            p class="warning" { "Nothing was counted: " (reason) }
        } @else if let Some(filters) = &report.packet_filters {
            (counter_table(report))
            h2 { "Packet filters" }
            @for sentence in filters.sentences() { p { (sentence) } }
        } @else {
            @if let Some(reason) = &report.native_reason {
                p class="warning" { "No rides: " (reason) }
            }
            (tiles(report))
            (plots(report))
            (gap_table(report))
            (counter_table(report))
            (refused_table(report))
        }
        p class="soft" {
            br;
            "Made by ub " (env!("CARGO_PKG_VERSION")) ", report schema " (report.schema) "."
        }
    };
    page(&format!("{what} of {command}"), &body)
}

/// A self-contained page in the style of all reports.
#[must_use]
pub fn page(title: &str, body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    }
    .into_string()
}

fn tiles(report: &Report) -> Markup {
    let totals = &report.totals;
    let seconds = report.elapsed_ns as f64 / 1e9;
    let rate = totals.syscalls as f64 / seconds.max(1e-9);
    let ended = if report.ended { "" } else { ", still running" };
    let mut tiles = vec![(
        short(totals.syscalls as f64),
        "system calls",
        format!("{} per second for {}{ended}", short(rate), duration(report.elapsed_ns as f64)),
    )];
    if report.source == Source::Session {
        let (number, note) = saved(report.time_saved.as_ref());
        tiles.extend([
            (
                percent(totals.ridden, totals.syscalls),
                "of them ridden",
                format!("{} transitions saved", short(totals.ridden as f64)),
            ),
            (
                short(totals.fragments as f64),
                "fragments installed",
                format!("{} retired so far", grouped(totals.fragments_retired)),
            ),
            (number, "saved (estimate)", note),
        ]);
    }
    html! {
        div class="tiles" {
            @for (number, what, note) in tiles {
                div class="tile" { b { (number) } (what) small { (note) } }
            }
        }
    }
}

fn plots(report: &Report) -> Markup {
    let emulated = report.environment.emulated();
    let key = html! {
        span class="key" style="background:var(--native)" {} "native"
        span class="key" style="background:var(--ridden)" {} "ridden"
    };
    let rates = html! {
        span class="key" style="background:var(--native)" {} "all"
        span class="key" style="background:var(--ridden)" {} "ridden"
    };
    html! {
        (figure("System calls over time", &rates, emulated, plots::rates(&report.samples)))
        (figure("Time of the most frequent gaps", &key, emulated,
            plots::gap_times(&report.hot_gaps, PLOTTED)))
        @if let Some(lengths) = &report.gap_lengths {
            (figure("Length of gaps", &html! {}, emulated, plots::lengths(lengths)))
        }
    }
}

/// A plot with a heading and the key of its colours; nothing if there is none.
#[must_use]
pub fn figure(title: &str, key: &Markup, emulated: bool, plot: Option<Plot>) -> Markup {
    let Some(plot) = plot else { return html! {} };
    html! {
        h2 { (title) @if emulated { " (emulated)" } }
        figure {
            figcaption { (key) }
            div class="wide" { (PreEscaped(plot.wide)) }
            div class="narrow" { (PreEscaped(plot.narrow)) }
        }
    }
}

fn gap_table(report: &Report) -> Markup {
    let gaps = &report.hot_gaps;
    if gaps.is_empty() {
        return html! {};
    }
    html! {
        h2 { "Gaps" }
        p class="soft" {
            "The user code from a return of the kernel to the next system call, the most frequent "
            "first: " (gaps.len().min(GAPS)) " of " (gaps.len()) "."
        }
        table class="gaps" {
            thead {
                tr {
                    th { "#" } th { "gap" }
                    th class="number" { "passages" } th class="number" { "ridden" }
                    th class="number" { "native" } th class="number" { "ride" }
                    th class="number" { "saved" } th { "outcome" }
                }
            }
            tbody { @for (index, gap) in gaps.iter().take(GAPS).enumerate() { (gap_row(report, index + 1, gap)) } }
        }
    }
}

fn gap_row(report: &Report, number: usize, gap: &GapRow) -> Markup {
    let process = report.process(gap).map(|process| match process.pid {
        Some(pid) => format!("{} ({pid}), ", process.name),
        None => format!("{}, ", process.name),
    });
    let saved = gap.saved().map_or_else(|| "-".to_owned(), |saved| duration(saved.ns));
    html! {
        tr {
            td class="whole" { (number) }
            td class="whole" {
                code { (gap.label()) }
                div class="soft" { (process.unwrap_or_default()) code { (format!("{:#x}", gap.address)) } }
            }
            td class="number" data-name="passages" { (grouped(gap.count)) }
            td class="number" data-name="ridden" { (percent(gap.ridden, gap.count)) }
            td class="number" data-name="native" { (mean(&gap.native)) }
            td class="number" data-name="ride" { (mean(&gap.ride)) }
            td class="number" data-name="saved" { (saved) }
            td class="whole" { (outcome(gap)) }
        }
    }
}

fn counter_table(report: &Report) -> Markup {
    html! {
        h2 { "Counters" }
        table {
            tbody {
                @for Line { number, what, note } in counters(report) {
                    tr { td class="number" { (number) } td { (what) } td class="soft" { (note) } }
                }
            }
        }
    }
}

fn refused_table(report: &Report) -> Markup {
    let refused = &report.translations.refused;
    if refused.is_empty() {
        return html! {};
    }
    html! {
        h2 { "Not translated" }
        table {
            tbody {
                @for entry in refused {
                    tr {
                        td { code { (format!("{:#x}", entry.address)) } }
                        td { (entry.failure) }
                        td { (entry.message) }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests::example;

    #[test]
    fn the_page_needs_nothing_else() {
        let page = render(&example());
        for foreign in ["http:", "https:", "<script", "<link", "url(", "@import", "src="] {
            // The name of the SVG language is an address that nobody opens.
            let page = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!page.contains(foreign), "{foreign} in {page}");
        }
    }

    #[test]
    fn what_the_program_chose_is_text() {
        let page = render(&example());
        assert!(page.contains("--save '&lt;none&gt;'") && page.contains("x87 &lt;fld1&gt;"));
        assert!(!page.contains("<none>") && !page.contains("<fld1>"));
    }

    #[test]
    fn the_facts_are_there_and_emulation_is_marked() {
        let mut report = example();
        let page = render(&report);
        assert!(page.contains("CPU &amp; more, tcg, kernel 6.12.0, KPTI on"));
        assert!(page.contains(EMULATED) && page.contains("System calls over time (emulated)"));
        report.environment.accelerator = "kvm".into();
        assert!(!render(&report).contains("emulated"));
    }

    #[test]
    fn it_follows_light_and_dark() {
        assert!(STYLE.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn nothing_observed_is_a_page_that_says_why() {
        let report = Report::inactive(vec!["a".into()], Default::default(), "no module");
        let page = render(&report);
        assert!(page.contains("Nothing was counted: no module") && !page.contains("<table"));
    }
}

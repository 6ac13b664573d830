//! How `ub top` looks, on a terminal and as plain text.

use std::fmt::Write;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState, Wrap};
use ub_report::units::{duration, short};

use super::rates::{Column, FilterLine, GapLine, NativeLine, ProcessLine, View};

/// What the keys do; on the screen at all times.
const KEYS: &str = "q quit  s sort  r reverse  space pause  up/down select  +/- interval";
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const HEADER: Style = Style::new().add_modifier(Modifier::REVERSED);

/// What the user chose.
#[derive(Debug, Clone)]
pub(super) struct Choices {
    pub(super) sort: Column,
    pub(super) reverse: bool,
    pub(super) paused: bool,
    /// Seconds from screen to screen.
    pub(super) interval: f64,
    /// Index of the selected gap.
    pub(super) selected: usize,
}

/// Draws one screen.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View, choices: &Choices) {
    let most = 8.min(frame.area().height / 4).max(1);
    // On small terminals the gaps are what is looked for.
    let height = |lines: usize| match u16::try_from(lines).unwrap_or(u16::MAX) {
        0 => 0,
        lines => lines.min(most) + 1,
    };
    let about = about(view);
    let lines = about.iter().map(|line| wrapped(line, frame.area().width)).sum();
    let about: Vec<_> = about.into_iter().map(|line| Line::styled(line, DIM)).collect();
    let about = Paragraph::new(about).wrap(Wrap { trim: true });
    let [title, facts, top, filters, gaps, detail, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(lines),
        Constraint::Length(height(view.processes.len())),
        Constraint::Length(height(view.filters.len())),
        Constraint::Min(2),
        Constraint::Length(2),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(status(view, choices)), title);
    frame.render_widget(about, facts);
    if view.sessions() == 0 {
        let text = "no session is running; start one with `ub run -- CMD`";
        frame.render_widget(Paragraph::new(text), gaps);
    }
    filter_table(frame, view, filters);
    if !view.processes.is_empty() {
        process_table(frame, view, top);
        gap_table(frame, view, choices, gaps);
        frame.render_widget(Paragraph::new(details(view, choices)), detail);
    }
    frame.render_widget(Paragraph::new(Span::styled(KEYS, DIM)), keys);
}

fn status(view: &View, choices: &Choices) -> Line<'static> {
    let sessions = view.sessions();
    let plural = if sessions == 1 { "" } else { "s" };
    let order = if choices.reverse { "lowest" } else { "highest" };
    let state = if choices.paused {
        "PAUSED".to_owned()
    } else {
        format!("every {:.1} s", choices.interval)
    };
    Line::from(vec![
        Span::styled("ub top", BOLD),
        Span::raw(format!(
            "  {sessions} session{plural}, {} gaps  sort: {order} {} first  {state}",
            view.gaps.len(),
            choices.sort.name()
        )),
    ])
}

/// The machine, and why nothing rides on it.
fn about(view: &View) -> Vec<String> {
    let emulated = if view.emulated { "EMULATED, times are not hardware's: " } else { "" };
    let native = view.native.iter().map(|NativeLine { pids, reason }| {
        let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
        format!("no rides in {}: {reason}", pids.join(", "))
    });
    [format!("{emulated}{}", view.facts)].into_iter().chain(native).collect()
}

/// Lines that `text` takes in `width` columns, broken between words.
fn wrapped(text: &str, width: u16) -> u16 {
    let (mut lines, mut used) = (1, 0);
    for word in text.split(' ').map(|word| word.chars().count()) {
        if used > 0 && used + 1 + word > usize::from(width) {
            lines += 1;
            used = word;
        } else {
            used += word + usize::from(used > 0);
        }
    }
    lines
}

const PROCESS_COLUMNS: [&str; 7] =
    ["PID", "CALLS/s", "RIDDEN", "SAVED/s", "FRAGS", "TOP EXIT", "COMMAND"];

fn process_cells(line: &ProcessLine) -> [String; 7] {
    let indent = if line.is_session { "" } else { "  " };
    [
        pid(line.pid),
        short(line.calls),
        share(line.ridden),
        time(line.saved),
        line.fragments.map_or_else(String::new, |count| count.to_string()),
        line.exit.clone(),
        format!("{indent}{}", line.name),
    ]
}

fn process_table(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let rows = view.processes.iter().map(|line| {
        let style = if line.is_session { BOLD } else { Style::new() };
        row(process_cells(line), 5).style(style)
    });
    let widths = [7, 7, 7, 8, 5, 15].map(Constraint::Length);
    let widths = widths.into_iter().chain([Constraint::Fill(1)]);
    frame.render_widget(
        Table::new(rows, widths).header(row(PROCESS_COLUMNS, 5).style(HEADER)),
        area,
    );
}

const FILTER_COLUMNS: [&str; 6] =
    ["PID", "PACKETS/s", "DROPPED", "CALLS SAVED/s", "COMMAND", "PACKET FILTER"];

fn filter_cells(line: &FilterLine) -> [String; 6] {
    [
        pid(line.pid),
        short(line.packets),
        // Of no packets there is no share.
        if line.packets > 0.0 { share(line.dropped) } else { "-".to_owned() },
        short(line.saved),
        line.name.clone(),
        line.latest.clone(),
    ]
}

fn filter_table(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let rows = view.filters.iter().map(|line| row(filter_cells(line), 4).style(BOLD));
    let widths = [7, 9, 7, 13, 14].map(Constraint::Length);
    let widths = widths.into_iter().chain([Constraint::Fill(1)]);
    let header = row(FILTER_COLUMNS, 4).style(HEADER);
    frame.render_widget(Table::new(rows, widths).header(header), area);
}

const GAP_COLUMNS: [&str; 8] =
    ["PID", "RATE/s", "RIDDEN", "NATIVE", "RIDE", "SAVED/s", "STATE", "GAP"];

fn gap_cells(gap: &GapLine) -> [String; 8] {
    // Of a gap that nobody passes now there is no share and no saving.
    let is_passed = gap.rate > 0.0;
    [
        pid(gap.pid),
        short(gap.rate),
        if is_passed { share(gap.ridden) } else { "-".to_owned() },
        time(gap.native),
        time(gap.ride),
        time(gap.saved.filter(|_| is_passed)),
        gap.state.name().to_owned(),
        gap.label.clone(),
    ]
}

/// Widths of all columns of a gap but the last.
const GAP_WIDTHS: [u16; 7] = [7, 6, 6, 7, 7, 8, 7];

fn gap_table(frame: &mut Frame<'_>, view: &View, choices: &Choices, area: Rect) {
    let taken: u16 = GAP_WIDTHS.iter().map(|width| width + 1).sum();
    let room = usize::from(area.width.saturating_sub(taken));
    let rows = view.gaps.iter().map(|gap| {
        let mut cells = gap_cells(gap);
        cells[7] = fit(&gap.label, room);
        row(cells, 6)
    });
    let widths = GAP_WIDTHS.map(Constraint::Length).into_iter().chain([Constraint::Fill(1)]);
    let table = Table::new(rows, widths)
        .header(row(GAP_COLUMNS, 6).style(HEADER))
        .row_highlight_style(BOLD);
    let selected = (!view.gaps.is_empty()).then(|| choices.selected.min(view.gaps.len() - 1));
    let mut state = TableState::new().with_selected(selected);
    frame.render_stateful_widget(table, area, &mut state);
}

/// The label in `room` characters: first the distances from the starts of
/// functions go, then the end. The whole one is below, in [`details`].
fn fit(label: &str, room: usize) -> String {
    if label.chars().count() <= room {
        return label.to_owned();
    }
    let without = |part: &str| match part.split_once("+0x") {
        Some((name, _)) if name.contains('!') => name.to_owned(),
        _ => part.to_owned(),
    };
    let short: Vec<_> = label.split(" -> ").map(without).collect();
    let short = short.join("->");
    if short.chars().count() <= room {
        return short;
    }
    short.chars().take(room.saturating_sub(1)).chain(['…']).collect()
}

/// Everything about the selected gap.
fn details(view: &View, choices: &Choices) -> Text<'static> {
    let index = choices.selected.min(view.gaps.len().saturating_sub(1));
    let Some(gap) = view.gaps.get(index) else { return Text::raw("no gap was seen yet") };
    Text::from(vec![
        Line::from(vec![
            Span::styled(format!("{:#x} ", gap.address), DIM),
            Span::styled(gap.label.clone(), BOLD),
        ]),
        Line::raw(gap.outcome.clone()),
    ])
}

/// A row whose first `numbers` cells are right-aligned.
fn row<const N: usize>(cells: [impl Into<String>; N], numbers: usize) -> Row<'static> {
    Row::new(cells.into_iter().enumerate().map(|(index, cell)| {
        let text = Text::raw(cell.into());
        Cell::from(if index < numbers { text.right_aligned() } else { text })
    }))
}

fn pid(pid: Option<u32>) -> String {
    pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())
}

fn share(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

fn time(ns: Option<f64>) -> String {
    ns.map_or_else(|| "-".to_owned(), |ns| duration(ns).replace(' ', ""))
}

/// The same as text, for `--once`.
pub(super) fn plain(view: &View) -> String {
    let mut out = about(view).join("\n") + "\n";
    if !view.filters.is_empty() {
        out.push('\n');
        table(&mut out, &FILTER_COLUMNS, view.filters.iter().map(filter_cells));
    }
    if view.processes.is_empty() {
        return out;
    }
    out.push('\n');
    table(&mut out, &PROCESS_COLUMNS, view.processes.iter().map(process_cells));
    out.push('\n');
    let cells = |gap: &GapLine| {
        let [pid, rate, ridden, native, ride, saved, _, label] = gap_cells(gap);
        [pid, rate, ridden, native, ride, saved, gap.outcome.clone(), label]
    };
    table(&mut out, &GAP_COLUMNS, view.gaps.iter().map(cells));
    out
}

fn table<const N: usize>(
    out: &mut String,
    names: &[&str; N],
    rows: impl Iterator<Item = [String; N]>,
) {
    let all: Vec<_> = [names.map(str::to_owned)].into_iter().chain(rows).collect();
    let width =
        |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    for row in &all {
        let mut line = String::new();
        for (index, cell) in row.iter().enumerate() {
            let width = widths[index];
            let _ = if index + 2 < N {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::commands::top::rates::tests::{example, filtered};

    fn choices() -> Choices {
        Choices { sort: Column::Rate, reverse: false, paused: false, interval: 1.0, selected: 0 }
    }

    /// The screen as lines of text.
    fn screen(view: &View, choices: &Choices, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view, choices)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    #[test]
    fn fits_a_terminal_of_80_by_24() {
        let lines = screen(&example().view(Column::Rate, false), &choices(), 80, 24);
        let expected = "\
ub top  1 session, 2 gaps  sort: highest rate first  every 1.0 s
EMULATED, times are not hardware's: QEMU, tcg, kernel 6.12.95, KPTI unknown
    PID CALLS/s  RIDDEN  SAVED/s FRAGS TOP EXIT        COMMAND
   4242    100k   60.0%   20.0ms    37 syscall_refused redis-server --save ''
   4242   50.0k   80.0%   20.0ms                         redis-server
   5000      10    0.0%        -                         child
    PID RATE/s RIDDEN  NATIVE    RIDE  SAVED/s STATE   GAP
   4242  50.0k  80.0%   900ns   400ns   20.0ms riding  libc!write->epoll_wait
   5000     10   0.0%  70.0us       -        - native  redis-server!bioProcessB…
ROOM
0x7f0012345678 libc!write+0x14 -> epoll_wait
riding: saves time, with confidence
q quit  s sort  r reverse  space pause  up/down select  +/- interval";
        let expected = expected.replace("ROOM", &"\n".repeat(11));
        assert_eq!(lines.join("\n"), expected);
    }

    #[test]
    fn packet_filters_have_their_own_columns() {
        let mut view = filtered().view(Column::Rate, false);
        let lines = screen(&view, &choices(), 80, 24);
        assert_eq!(lines[0], "ub top  1 session, 0 gaps  sort: highest rate first  every 1.0 s");
        let expected = [
            "    PID PACKETS/s DROPPED CALLS SAVED/s COMMAND        PACKET FILTER",
            "    777     5.00k   90.0%         4.50k packet-counter 1.00 s: descriptor 3, lib",
        ];
        assert_eq!(lines[2..4], expected, "{}", lines.join("\n"));
        // There are neither processes with rides nor gaps.
        assert!(lines[4..23].iter().all(String::is_empty), "{}", lines.join("\n"));
        let text = plain(&view);
        assert!(text.contains("packet-counter veth0  1.00 s: descriptor 3, libc!recv"), "{text}");
        assert!(!text.contains("CALLS/s"), "{text}");

        // Beside a session that rides.
        view.processes = example().view(Column::Rate, false).processes;
        let lines = screen(&view, &choices(), 80, 24);
        assert!(lines[0].contains("2 sessions"), "{}", lines.join("\n"));
        assert!(lines[2].contains("CALLS/s") && lines[6].contains("PACKETS/s"), "{lines:?}");
        let text = plain(&view);
        assert!(text.contains("CALLS/s") && text.contains("PACKETS/s"), "{text}");
    }

    #[test]
    fn wide_terminals_show_whole_labels() {
        let lines = screen(&example().view(Column::Rate, false), &choices(), 140, 24).join("\n");
        let label = "redis-server!bioProcessBackgroundJobs+0x152 -> futex";
        assert!(lines.contains(label), "{lines}");
    }

    #[test]
    fn a_long_name_of_a_cpu_takes_a_second_line() {
        let mut view = example().view(Column::Rate, false);
        view.facts += ", and the last word";
        let lines = screen(&view, &choices(), 80, 24);
        assert!(lines[2].ends_with("the last word"), "{}", lines.join("\n"));
    }

    #[test]
    fn what_keeps_everything_native_is_said_once() {
        let reason = "rides do not pay on this machine: a call that does nothing takes 530 ns \
                      in a ride, 500 ns natively (--ride-anyway rides all the same)";
        let mut view = example().view(Column::Rate, false);
        view.native = vec![NativeLine { pids: vec![4242, 777], reason: reason.into() }];
        let lines = screen(&view, &choices(), 80, 24);
        let expected = [
            "no rides in 4242, 777: rides do not pay on this machine: a call that does",
            "nothing takes 530 ns in a ride, 500 ns natively (--ride-anyway rides all the",
            "same)",
        ];
        assert_eq!(lines[2..5], expected, "{}", lines.join("\n"));
        assert!(lines[5].contains("CALLS/s"), "{}", lines.join("\n"));
        let text = plain(&view);
        assert!(text.contains(&format!("\nno rides in 4242, 777: {reason}\n")), "{text}");
    }

    #[test]
    fn tiny_terminals_do_not_panic() {
        for (width, height) in [(1, 1), (20, 5), (40, 10)] {
            screen(&example().view(Column::Rate, false), &choices(), width, height);
            screen(&View::default(), &choices(), width, height);
        }
    }

    #[test]
    fn without_sessions_it_says_how_to_start_one() {
        let lines = screen(&View::default(), &choices(), 80, 24).join("\n");
        assert!(lines.contains("ub run -- CMD") && lines.contains("q quit"), "{lines}");
    }

    #[test]
    fn labels_lose_what_matters_least() {
        let label = "redis-server!writeToClient+0x52 -> libc!write";
        assert_eq!(fit(label, 45), label);
        assert_eq!(fit(label, 44), "redis-server!writeToClient->libc!write");
        assert_eq!(fit(label, 20), "redis-server!writeT…");
    }

    #[test]
    fn plain_text_has_everything() {
        let text = plain(&example().view(Column::Rate, false));
        for part in [
            "redis-server --save",
            "libc!write+0x14 -> epoll_wait",
            "riding: saves time, with confidence",
            "native: mostly longer than gap_max_ns",
            "100k",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(text.lines().all(|line| line == line.trim_end()), "{text}");
    }
}

//! The live screen: keys, time and signals.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use super::rates::{Column, Rates};
use super::screen::{self, Choices};
use crate::inspect;

/// How long a signal may go unnoticed.
const SIGNALS: Duration = Duration::from_millis(200);

/// Why there is no live screen.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Output goes to a file or a pipe.
    #[error("standard input and output are not a terminal; `ub top --once` prints and ends")]
    NoTerminal,
    /// The terminal does not do as it is told.
    #[error("terminal: {0}")]
    Io(#[from] io::Error),
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Quit,
    Stay,
}

/// Shows the screen until the user or a signal ends it; the terminal is as
/// before afterwards.
///
/// # Errors
/// See [`Error`].
pub(super) fn run(rates: Rates, sort: Column, interval: Duration) -> Result<(), Error> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Error::NoTerminal);
    }
    // A signal must not leave the terminal without echo.
    let ends: SigSet = [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT].into_iter().collect();
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&ends, flags).map_err(io::Error::from)?;
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&ends), None).map_err(io::Error::from)?;
    let choices = Choices {
        sort,
        reverse: false,
        paused: false,
        interval: interval.as_secs_f64(),
        selected: 0,
    };
    let mut terminal = ratatui::try_init()?;
    let result = follow(&mut terminal, rates, choices, &signals);
    ratatui::try_restore()?;
    Ok(result?)
}

fn follow(
    terminal: &mut DefaultTerminal,
    mut rates: Rates,
    mut choices: Choices,
    signals: &SignalFd,
) -> io::Result<()> {
    let interval = |choices: &Choices| Duration::from_secs_f64(choices.interval);
    let mut next = Instant::now() + interval(&choices);
    loop {
        let view = rates.view(choices.sort, choices.reverse);
        terminal.draw(|frame| screen::draw(frame, &view, &choices))?;
        // Waits for a key, the next look or a signal.
        loop {
            if matches!(signals.read_signal(), Ok(Some(_))) {
                return Ok(());
            }
            let left = next.saturating_duration_since(Instant::now());
            if event::poll(left.min(SIGNALS))? {
                match event::read()? {
                    Event::Key(key) if key.kind == KeyEventKind::Press => {
                        if press(&mut choices, key.code, key.modifiers, view.gaps.len())
                            == Action::Quit
                        {
                            return Ok(());
                        }
                    }
                    Event::Resize(..) => {}
                    _ => continue,
                }
                break;
            }
            if left.is_zero() {
                if !choices.paused {
                    rates.update(inspect::all().found);
                }
                next = Instant::now() + interval(&choices);
                break;
            }
        }
    }
}

/// What a key does, with `gaps` on the screen.
fn press(choices: &mut Choices, key: KeyCode, modifiers: KeyModifiers, gaps: usize) -> Action {
    match key {
        KeyCode::Char('q') | KeyCode::Esc => return Action::Quit,
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return Action::Quit,
        KeyCode::Char('s') => choices.sort = choices.sort.next(),
        KeyCode::Char('r') => choices.reverse = !choices.reverse,
        KeyCode::Char(' ') => choices.paused = !choices.paused,
        KeyCode::Char('+') => choices.interval = (2.0 * choices.interval).min(3600.0),
        KeyCode::Char('-') => choices.interval = (0.5 * choices.interval).max(0.1),
        KeyCode::Up => choices.selected = choices.selected.saturating_sub(1),
        KeyCode::Down => choices.selected = (choices.selected + 1).min(gaps.saturating_sub(1)),
        _ => {}
    }
    Action::Stay
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices() -> Choices {
        Choices { sort: Column::Rate, reverse: false, paused: false, interval: 1.0, selected: 0 }
    }

    #[test]
    fn keys_do_what_the_screen_says() {
        let mut choices = choices();
        let mut press = |key| super::press(&mut choices, key, KeyModifiers::NONE, 2);
        for key in [KeyCode::Char('s'), KeyCode::Char('r'), KeyCode::Char(' '), KeyCode::Char('+')]
        {
            assert_eq!(press(key), Action::Stay);
        }
        for key in [KeyCode::Down, KeyCode::Down, KeyCode::Down] {
            press(key);
        }
        assert_eq!(press(KeyCode::Char('q')), Action::Quit);
        assert_eq!((choices.sort, choices.reverse, choices.paused), (Column::Saved, true, true));
        assert_eq!((choices.interval, choices.selected), (2.0, 1));
        let quit = super::press(&mut choices, KeyCode::Char('c'), KeyModifiers::CONTROL, 0);
        assert_eq!(quit, Action::Quit);
        assert_eq!(super::press(&mut choices, KeyCode::Up, KeyModifiers::NONE, 0), Action::Stay);
        assert_eq!(choices.selected, 0);
    }

    #[test]
    fn sorting_goes_round() {
        let mut column = Column::Rate;
        for _ in 0..5 {
            column = column.next();
        }
        assert_eq!(column, Column::Rate);
    }
}

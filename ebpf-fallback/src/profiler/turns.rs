//! Timing calls and only counting them, in turns: what each turn took.

use std::time::{Duration, Instant};

/// Time that has passed while calls were watched in one way.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spent {
    pub(super) elapsed: Duration,
    /// CPU time of what is watched, in nanoseconds.
    pub(super) cpu_ns: u64,
}

/// The turns that are over, and the one that is not.
#[derive(Debug, Default)]
pub(super) struct Turns {
    pub(super) timed: Spent,
    pub(super) counted: Spent,
    current: Option<Turn>,
}

#[derive(Debug)]
struct Turn {
    only_counts: bool,
    since: Instant,
    /// CPU time until then, in nanoseconds.
    cpu_ns: u64,
}

impl Turns {
    /// One begins, when what is watched has used so much CPU time.
    pub(super) fn begin(&mut self, only_counts: bool, cpu_ns: u64) {
        self.current = Some(Turn { only_counts, since: Instant::now(), cpu_ns });
    }

    /// The current one ends, if there is one.
    pub(super) fn end(&mut self, cpu_ns: u64) {
        let Some(turn) = self.current.take() else { return };
        let spent = if turn.only_counts { &mut self.counted } else { &mut self.timed };
        spent.elapsed += turn.since.elapsed();
        spent.cpu_ns += cpu_ns.saturating_sub(turn.cpu_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_turn_is_added_up() {
        let mut turns = Turns::default();
        turns.end(7);
        for (only_counts, from, to) in
            [(false, 10, 15), (true, 20, 50), (false, 60, 62), (true, 70, 69)]
        {
            turns.begin(only_counts, from);
            turns.end(to);
        }
        assert_eq!((turns.timed.cpu_ns, turns.counted.cpu_ns), (7, 30));
        assert!(turns.timed.elapsed > Duration::ZERO && turns.counted.elapsed > Duration::ZERO);
    }
}

//! Timing calls and only counting them, in turns: what each turn took.

use std::time::{Duration, Instant};

/// What the watched threads have used up to some moment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Used {
    /// CPU time, in nanoseconds.
    pub(super) cpu_ns: u64,
    /// Calls that were only counted.
    pub(super) counted: u64,
}

/// What passed while calls were watched in one way.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spent {
    pub(super) elapsed: Duration,
    pub(super) used: Used,
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
    used: Used,
}

impl Turns {
    /// One begins, when so much had been used.
    pub(super) fn begin(&mut self, only_counts: bool, used: Used) {
        self.current = Some(Turn { only_counts, since: Instant::now(), used });
    }

    /// The current one ends, if there is one.
    pub(super) fn end(&mut self, used: Used) {
        let Some(turn) = self.current.take() else { return };
        let spent = if turn.only_counts { &mut self.counted } else { &mut self.timed };
        spent.elapsed += turn.since.elapsed();
        spent.used.cpu_ns += used.cpu_ns.saturating_sub(turn.used.cpu_ns);
        spent.used.counted += used.counted.saturating_sub(turn.used.counted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_turn_is_added_up() {
        let used = |cpu_ns, counted| Used { cpu_ns, counted };
        let mut turns = Turns::default();
        turns.end(used(7, 7));
        for (only_counts, from, to) in [
            (false, used(10, 5), used(15, 5)),
            (true, used(20, 5), used(50, 8)),
            (false, used(60, 9), used(62, 9)),
            (true, used(70, 9), used(69, 10)),
        ] {
            turns.begin(only_counts, from);
            turns.end(to);
        }
        assert_eq!((turns.timed.used.cpu_ns, turns.counted.used.cpu_ns), (7, 30));
        assert_eq!((turns.timed.used.counted, turns.counted.used.counted), (0, 4));
    }
}

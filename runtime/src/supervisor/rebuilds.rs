//! Entries to translate again, now that more is known of what is run and of
//! where their indirect branches go.
//!
//! A translation is worth its time only once: where programs go becomes known
//! bit by bit, mostly soon after a fragment was installed. So an entry waits
//! until no more is learned about it for a while, the longer the more often it
//! was translated before.
//!
//! The first time, where gaps begin, it gets the code that is known to be run
//! instead of a first look at it, and is much faster from then on. After that each
//! time adds ways that are gone more and more rarely, and costs as much as the first
//! or more; so does what others go on to. Those share a part of one processor.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::kernel::Btc;

/// How long nothing new must have been learned about an entry that was
/// translated once. Doubled for each further time.
const QUIET: Duration = Duration::from_millis(100);
/// The same of an entry that fragments with much code go on to. Longer: what is
/// learned meanwhile mostly makes it part of those.
const QUIET_WAY_ON: Duration = Duration::from_millis(300);
/// As many times as this an entry may be put off by new targets.
const PATIENCE: u32 = 5;

/// After one that can wait, others of that kind do so for so many times as long as it
/// took: they get a tenth of one processor.
const REST: u32 = 9;

/// Entries that wait to be translated again.
#[derive(Debug, Default)]
pub(super) struct Rebuilds {
    waiting: BTreeMap<(Btc, u64), Waiting>,
    /// When one that can wait may be translated.
    rested: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    /// A process to read data from.
    pid: u32,
    due: Instant,
    /// It is not put off beyond this.
    latest: Instant,
    why: Why,
    can_wait: bool,
}

/// Why an entry is to be translated again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// Fragments with much code go on there, unless that changes.
    WayOn,
    /// Something was learned about it.
    Learned,
}

/// An entry that is to be translated again now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) btc: Btc,
    pub(super) entry: u64,
    /// A process to read data from.
    pub(super) pid: u32,
    pub(super) why: Why,
    /// Whether it is one of those that share a part of one processor:
    /// [`Rebuilds::took`] is to be told how long its translation took.
    pub(super) can_wait: bool,
}

impl Rebuilds {
    /// Something was learned about `entry`, which was translated `before`
    /// times again already.
    pub(super) fn ask(&mut self, btc: Btc, entry: u64, pid: u32, before: u32, now: Instant) {
        let due = Due { btc, entry, pid, why: Why::Learned, can_wait: before > 0 };
        self.wait(due, QUIET * (1 << before.min(16)), now);
    }

    /// Fragments with much code go on at `entry`.
    pub(super) fn ask_for_more(&mut self, btc: Btc, entry: u64, pid: u32, now: Instant) {
        let due = Due { btc, entry, pid, why: Why::WayOn, can_wait: true };
        self.wait(due, QUIET_WAY_ON, now);
    }

    fn wait(&mut self, due: Due, quiet: Duration, now: Instant) {
        let waiting = self.waiting.entry((due.btc, due.entry)).or_insert(Waiting {
            pid: due.pid,
            due: now,
            latest: now + PATIENCE * quiet,
            why: due.why,
            can_wait: due.can_wait,
        });
        waiting.can_wait &= due.can_wait;
        waiting.pid = due.pid;
        waiting.due = (now + quiet).min(waiting.latest);
        waiting.why = waiting.why.max(due.why);
    }

    /// Something was learned about what is around the entries of `btc`.
    pub(super) fn put_off(&mut self, btc: Btc, now: Instant) {
        for waiting in
            self.waiting.range_mut((btc, 0)..=(btc, u64::MAX)).map(|(_, waiting)| waiting)
        {
            waiting.due = waiting.due.max(now + QUIET).min(waiting.latest);
        }
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| self.from(waiting)).min()
    }

    /// When `waiting` may be translated.
    fn from(&self, waiting: &Waiting) -> Instant {
        let rested = self.rested.filter(|_| waiting.can_wait);
        rested.map_or(waiting.due, |rested| rested.max(waiting.due))
    }

    /// The translation of one that could wait took so long, and ended at `now`.
    pub(super) fn took(&mut self, time: Duration, now: Instant) {
        self.rested = Some(now + REST * time);
    }

    /// Takes an entry that is due at `now`: what others go on to last, as
    /// translating those may make it part of them; then by time.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Due> {
        let due = self.waiting.iter().filter(|(_, waiting)| self.from(waiting) <= now);
        let (key, _) = due.max_by_key(|(_, waiting)| (waiting.why, Reverse(waiting.due)))?;
        let (btc, entry) = *key;
        let waiting = self.waiting.remove(&(btc, entry))?;
        let Waiting { pid, why, can_wait, .. } = waiting;
        Some(Due { btc, entry, pid, why, can_wait })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEARNED: Due = Due { btc: Btc(1), entry: 7, pid: 41, why: Why::Learned, can_wait: false };

    #[test]
    fn what_was_learned_is_the_better_reason() {
        let start = Instant::now();
        let mut rebuilds = Rebuilds::default();
        rebuilds.ask_for_more(Btc(1), 7, 41, start);
        let way_on = Due { why: Why::WayOn, can_wait: true, ..LEARNED };
        assert_eq!(rebuilds.take_due(start + QUIET), None);
        assert_eq!(rebuilds.take_due(start + QUIET_WAY_ON), Some(way_on));
        rebuilds.ask_for_more(Btc(1), 7, 41, start);
        rebuilds.ask(Btc(1), 7, 41, 0, start);
        rebuilds.ask_for_more(Btc(1), 7, 41, start);
        assert_eq!(rebuilds.take_due(start + QUIET_WAY_ON), Some(LEARNED));
    }

    #[test]
    fn what_others_go_on_to_comes_last() {
        let start = Instant::now();
        let mut rebuilds = Rebuilds::default();
        rebuilds.ask_for_more(Btc(1), 1, 41, start);
        rebuilds.ask(Btc(1), 7, 41, 1, start);
        rebuilds.ask(Btc(1), 8, 41, 0, start);
        let mut take = || rebuilds.take_due(start + 10 * QUIET).map(|due| due.entry);
        assert_eq!([take(), take(), take(), take()], [Some(8), Some(7), Some(1), None]);
    }

    #[test]
    fn an_entry_waits_until_nothing_new_is_learned() {
        let start = Instant::now();
        let mut rebuilds = Rebuilds::default();
        assert_eq!(rebuilds.next(), None);
        rebuilds.ask(Btc(1), 7, 40, 0, start);
        rebuilds.ask(Btc(1), 7, 41, 0, start + QUIET / 2);
        assert_eq!(rebuilds.next(), Some(start + QUIET / 2 + QUIET));
        assert_eq!(rebuilds.take_due(start + QUIET), None);
        assert_eq!(rebuilds.take_due(start + 2 * QUIET), Some(LEARNED));
        assert_eq!(rebuilds.take_due(start + 2 * QUIET), None);
    }

    #[test]
    fn what_is_learned_around_it_puts_it_off() {
        let start = Instant::now();
        let mut rebuilds = Rebuilds::default();
        rebuilds.ask(Btc(1), 7, 40, 0, start);
        rebuilds.put_off(Btc(2), start + QUIET / 2);
        assert_eq!(rebuilds.next(), Some(start + QUIET));
        rebuilds.put_off(Btc(1), start + QUIET / 2);
        assert_eq!(rebuilds.next(), Some(start + QUIET / 2 + QUIET));
        rebuilds.put_off(Btc(1), start + 100 * QUIET);
        assert_eq!(rebuilds.next(), Some(start + PATIENCE * QUIET));
    }

    #[test]
    fn it_is_not_put_off_for_ever() {
        let start = Instant::now();
        let mut rebuilds = Rebuilds::default();
        for n in 0..100 {
            rebuilds.ask(Btc(1), 7, 40, 0, start + n * QUIET / 2);
        }
        assert_eq!(rebuilds.next(), Some(start + PATIENCE * QUIET));
    }

    #[test]
    fn what_can_wait_rests_in_proportion_to_what_it_takes() {
        let start = Instant::now();
        let mut rebuilds = Rebuilds::default();
        rebuilds.took(10 * QUIET, start);
        rebuilds.ask(Btc(1), 7, 41, 1, start);
        let rested = start + REST * 10 * QUIET;
        assert_eq!(rebuilds.next(), Some(rested));
        rebuilds.ask_for_more(Btc(1), 9, 41, start);
        assert_eq!(rebuilds.next(), Some(rested));
        // The first time does not wait for that.
        rebuilds.ask_for_more(Btc(1), 8, 41, start);
        rebuilds.ask(Btc(1), 8, 41, 0, start);
        assert_eq!(rebuilds.next(), Some(start + QUIET));
        let mut take = |now| rebuilds.take_due(now).map(|due| (due.entry, due.can_wait));
        let soon = start + 10 * QUIET;
        assert_eq!([take(soon), take(soon)], [Some((8, false)), None]);
        assert_eq!([take(rested), take(rested)], [Some((7, true)), Some((9, true))]);
    }

    #[test]
    fn the_next_time_it_waits_longer() {
        let start = Instant::now();
        let mut rebuilds = Rebuilds::default();
        rebuilds.ask(Btc(1), 7, 40, 3, start);
        assert_eq!(rebuilds.next(), Some(start + 8 * QUIET));
        // No overflow, however often.
        rebuilds.ask(Btc(1), 8, 40, u32::MAX, start);
        assert_eq!(rebuilds.next(), Some(start + 8 * QUIET));
    }
}

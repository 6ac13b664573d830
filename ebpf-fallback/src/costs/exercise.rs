//! Work whose cost is known natively, to be done again in rides.
//!
//! Where there is the module, one process does it in both ways, and what rides
//! cost on this machine is measured instead of estimated.

use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::refill::{self, Refill};
use super::{cpu_ns, median, ns_each, null_calls, speed};

/// Batches of which the median counts.
const BATCHES: usize = 15;
/// Least share of a call's time that riding must save to be called a gain. There is
/// next to no code between the calls that are measured, and less than this is lost
/// again by what there is in any program, or is noise: an emulated guest without KPTI
/// in which messages took 6 % less, and calls that do nothing 5 % more, served a third
/// fewer requests by redis.
const WORTH: f64 = 0.1;
/// Calls in a batch of the work without messages.
const CALLS: u32 = 1000;
/// Turns of code between two calls: some hundred instructions, a short gap.
const TURNS: u32 = 20;

/// Kinds of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Calls that do nothing, with next to nothing in between.
    NullCalls,
    /// The same with code in between.
    Code,
    /// Datagrams, sent and received one by one.
    Messages,
}

impl Work {
    /// Every kind, in the order in which it is to be done.
    pub const ALL: [Self; 3] = [Self::NullCalls, Self::Code, Self::Messages];
}

/// What work needs.
#[derive(Debug)]
pub struct Workbench {
    to: OwnedFd,
    from: OwnedFd,
}

impl Workbench {
    /// Makes the socket for messages.
    ///
    /// # Errors
    /// Without Unix sockets.
    pub fn new() -> io::Result<Self> {
        let (to, from) = refill::sockets()?;
        Ok(Self { to, from })
    }

    /// Does a batch of `work`; returns nanoseconds of CPU time for each of its
    /// system calls.
    ///
    /// # Errors
    /// What a call answers.
    pub fn batch(&self, work: Work) -> io::Result<f64> {
        let start = cpu_ns();
        match work {
            Work::NullCalls => null_calls(CALLS),
            Work::Code => {
                for _ in 0..CALLS {
                    speed::turns(TURNS);
                    null_calls(1);
                }
            }
            Work::Messages => return refill::timed(&self.to, &self.from, 1),
        }
        Ok((cpu_ns() - start) / f64::from(CALLS))
    }

    /// The median of many batches.
    ///
    /// # Errors
    /// What a call answers.
    pub fn time(&self, work: Work) -> io::Result<f64> {
        let mut batches = [0.0; BATCHES];
        for batch in &mut batches {
            *batch = self.batch(work)?;
        }
        Ok(median(&mut batches))
    }
}

/// Nanoseconds for the code of [`Work::Code`] without its call: the median of many
/// batches.
#[must_use]
pub fn code_alone_ns() -> f64 {
    ns_each(CALLS, || {
        for _ in 0..CALLS {
            speed::turns(TURNS);
        }
    })
}

/// Nanoseconds for each kind of work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// A call of [`Work::NullCalls`].
    pub null_call_ns: f64,
    /// The code between two calls of [`Work::Code`].
    pub code_alone_ns: f64,
    /// A call of [`Work::Messages`].
    pub message_ns: f64,
}

impl Times {
    /// Of calls that rode, in the order of [`Work::ALL`]: the code is what they take
    /// longer with it.
    #[must_use]
    pub fn of_rides([null_call_ns, call_and_code_ns, message_ns]: [f64; 3]) -> Self {
        Self { null_call_ns, code_alone_ns: (call_and_code_ns - null_call_ns).max(0.0), message_ns }
    }

    /// The shorter ones of two measurements of the same.
    #[must_use]
    pub fn shorter(&self, other: &Self) -> Self {
        Self {
            null_call_ns: self.null_call_ns.min(other.null_call_ns),
            code_alone_ns: self.code_alone_ns.min(other.code_alone_ns),
            message_ns: self.message_ns.min(other.message_ns),
        }
    }
}

/// What was measured natively and in rides.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Exercise {
    /// Natively.
    pub native: Times,
    /// The same work in rides.
    pub ridden: Times,
}

impl Exercise {
    /// Time of translated code over that of the original: never less than 1,
    /// or the noise of a short measurement would be called a gain.
    #[must_use]
    pub fn translated(&self) -> f64 {
        (self.ridden.code_alone_ns / self.native.code_alone_ns.max(1e-9)).max(1.0)
    }

    /// Whether riding makes any kind of call cheaper. If not, no gap can pay:
    /// translated code takes at least as long as the original.
    #[must_use]
    pub fn is_gain(&self) -> bool {
        let saves = |native: f64, ridden: f64| native - ridden > WORTH * native;
        saves(self.native.null_call_ns, self.ridden.null_call_ns)
            || saves(self.native.message_ns, self.ridden.message_ns)
    }

    /// What calls that do something pay for the crossing besides the switch.
    #[must_use]
    pub fn refill(&self) -> Refill {
        let switch_ns = self.native.null_call_ns;
        // A ridden message pays for the ride, but for no crossing.
        let without = self.ridden.message_ns - self.ridden.null_call_ns;
        Refill::between(switch_ns, self.native.message_ns, without)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXERCISE: Exercise = Exercise {
        native: Times { null_call_ns: 300.0, code_alone_ns: 100.0, message_ns: 1800.0 },
        ridden: Times { null_call_ns: 50.0, code_alone_ns: 130.0, message_ns: 850.0 },
    };

    #[test]
    fn rides_show_what_code_and_crossings_cost() {
        assert!((EXERCISE.translated() - 1.3).abs() < 1e-9);
        // Of a message's 1800 ns, 800 remain without any crossing: 300 of the
        // others are the switch.
        let refill = EXERCISE.refill();
        assert!((refill.most_ns - 700.0).abs() < 1e-9, "{refill:?}");
        assert!((refill.within_ns - 1500.0).abs() < 1e-9, "{refill:?}");
    }

    #[test]
    fn one_kind_of_cheaper_call_is_a_gain() {
        assert!(EXERCISE.is_gain());
        let mut slower = Exercise { native: EXERCISE.ridden, ridden: EXERCISE.native };
        assert!(!slower.is_gain());
        slower.ridden.message_ns = slower.native.message_ns * 0.93;
        assert!(!slower.is_gain(), "within the noise");
        slower.ridden.message_ns = slower.native.message_ns * 0.85;
        assert!(slower.is_gain(), "calls that do something lose more by the crossing");
    }

    #[test]
    fn what_was_slow_only_once_is_no_gain() {
        let times = |null_call_ns, code_alone_ns, message_ns| Times {
            null_call_ns,
            code_alone_ns,
            message_ns,
        };
        let slow = times(100.0, 900.0, 1000.0);
        let native = slow.shorter(&times(120.0, 200.0, 700.0));
        assert_eq!(native, times(100.0, 200.0, 700.0));
        let ridden = times(110.0, 210.0, 690.0);
        assert!(Exercise { native: slow, ridden }.is_gain());
        assert!(!Exercise { native, ridden }.is_gain());
    }

    #[test]
    fn noise_is_no_gain() {
        let mut faster = EXERCISE;
        faster.ridden.code_alone_ns = 10.0;
        assert!((faster.translated() - 1.0).abs() < 1e-9);
        faster.ridden.message_ns = 2000.0;
        assert!(faster.refill().most_ns.abs() < 1e-9);
    }

    #[test]
    fn code_in_rides_is_what_calls_take_longer_with_it() {
        assert_eq!(Times::of_rides([50.0, 180.0, 850.0]), EXERCISE.ridden);
        // The noise of two measurements.
        assert_eq!(Times::of_rides([50.0, 49.0, 850.0]).code_alone_ns, 0.0);
    }

    #[test]
    fn every_work_takes_time() {
        let bench = Workbench::new().unwrap();
        let times = Work::ALL.map(|work| bench.time(work).unwrap());
        assert!(times.iter().all(|ns| *ns > 0.0), "{times:?}");
        assert!(code_alone_ns() > 0.0);
    }
}

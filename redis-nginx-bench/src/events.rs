//! What the guest driver says while it measures in rounds: one line of JSON
//! for each event, so that nothing measured is lost when the guest is.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cost::Settled;
use crate::outcome::{Counts, Latency, Machine, Round};
use crate::plan::{Mode, Plan, Workload};
use crate::{Error, Result};

/// What the driver is to do: a [`Plan`] for how, and this for what. The plan's
/// own workloads and rounds do not matter here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundsPlan {
    /// How things are run.
    pub plan: Plan,
    /// What, in this order.
    pub work: Vec<Work>,
    /// Whether the calls of the native program are counted, in a short session
    /// of its own that translates nothing.
    pub count_native: bool,
}

/// Rounds of one workload within one pair of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// The workload.
    pub workload: Workload,
    /// Tells pairs of processes of the workload apart.
    pub launch: u32,
    /// How many rounds.
    pub rounds: u32,
}

/// One timed load of one program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Operations and wall-clock time.
    pub round: Round,
    /// CPU time of the server in it, in nanoseconds.
    pub cpu_ns: u64,
    /// Of it, in user mode: by the kernel's ticks, so coarse.
    #[serde(default)]
    pub user_ns: u64,
    /// How long single operations took, where the load generator says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
}

/// What is known of a program after its last round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Digest of the checks.
    pub digest: String,
    /// What was wrong.
    pub faults: Vec<String>,
    /// What the session counted between the warm-up and the last round.
    pub counts: Option<Counts>,
    /// The session's last report. Long, and not part of the printed events.
    #[serde(skip)]
    pub report: Option<Value>,
}

/// One event. The workload and the launch that all but the first carry are
/// those of the [`Work`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The machine; comes first.
    Machine {
        /// Its facts.
        machine: Machine,
    },
    /// The programs run and are warm.
    Warm {
        /// Which work.
        work: Work,
        /// Operations of one load.
        operations: u64,
        /// How the translation came to rest; `None` natively.
        settled: Option<Settled>,
    },
    /// The native program was measured with the modules under test not loaded,
    /// in a process of its own, before or behind the others.
    Unloaded {
        /// Which work.
        work: Work,
        /// The samples.
        samples: Vec<Sample>,
    },
    /// A round is over.
    Round {
        /// Which work.
        work: Work,
        /// Mode and sample, in the order they were taken.
        samples: Vec<(Mode, Sample)>,
    },
    /// The programs have ended.
    Finished {
        /// Which work.
        work: Work,
        /// How each did.
        ends: Vec<(Mode, End)>,
    },
    /// The calls of the native program.
    Counted {
        /// The workload.
        workload: Workload,
        /// Its calls.
        counts: Counts,
    },
    /// Something could not be measured; the driver goes on with the next work.
    Failed {
        /// Which work.
        work: Work,
        /// Why.
        error: String,
        /// Whether something that it needs is missing here, which is no mistake.
        missing: bool,
    },
}

impl Work {
    /// The modes in which it is done.
    #[must_use]
    pub fn modes(&self, plan: &Plan) -> Vec<Mode> {
        let context = self.workload.is_context();
        plan.modes.iter().copied().filter(|mode| !context || *mode == Mode::Native).collect()
    }
}

impl Event {
    /// Reads one line.
    ///
    /// # Errors
    /// [`Error::Output`] if it is not an event.
    pub fn parse(line: &str) -> Result<Self> {
        serde_json::from_str(line)
            .map_err(|error| Error::output("ub-bench-guest", format!("{error} in {line:?}")))
    }
}

/// Puts pieces of output together to events.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// The events that end in `bytes`.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Result<Event>> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            events.push(Event::parse(String::from_utf8_lossy(&line).trim()));
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_pieces() {
        let work = Work { workload: Workload::Null, launch: 1, rounds: 3 };
        let event = Event::Failed { work, error: "no".into(), missing: true };
        let text = serde_json::to_string(&event).unwrap();
        let mut lines = Lines::default();
        assert!(lines.push(&text.as_bytes()[..7]).is_empty());
        let rest = format!("{}\nnonsense\n{{", &text[7..]);
        let events = lines.push(rest.as_bytes());
        assert_eq!(events.len(), 2);
        assert_eq!(events[0].as_ref().unwrap(), &event);
        assert!(events[1].is_err());
    }

    #[test]
    fn samples_keep_everything() {
        let work = Work { workload: Workload::REDIS_GET, launch: 0, rounds: 1 };
        let latency = Latency { mean_us: 2.5, percentiles_us: [(50, 1.0), (99, 7.0)].into() };
        let round = Round { operations: 5, seconds: 0.5 };
        let sample = Sample { round, cpu_ns: 3, user_ns: 1, latency: Some(latency) };
        let event = Event::Round { work, samples: vec![(Mode::Ub, sample)] };
        assert_eq!(Event::parse(&serde_json::to_string(&event).unwrap()).unwrap(), event);
    }
}

//! What riding costs.

use serde::Serialize;

use crate::costs::Refill;
use crate::costs::exercise::Exercise;

/// What riding costs: counted elsewhere, or measured where there is the
/// module.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RideCosts {
    /// Time of translated code over that of the original, within a fragment.
    pub translated: f64,
    /// The same of gaps that lead through several fragments, the way from one
    /// to the next included.
    pub linked: f64,
    /// Instructions up to which a gap is taken to stay in one fragment.
    pub fragment_instructions: f64,
    /// Instructions that are executed for a ridden call that does nothing.
    pub call_instructions: f64,
    /// What was measured; then it counts instead of `call_instructions`, of
    /// `translated`, and of what is estimated of crossings.
    pub measured: Option<Exercise>,
}

impl Default for RideCosts {
    /// Within a fragment: `make bench-code` on a Xeon, in the geometric mean.
    /// Linked: the user side of redis-get, `ub-demo --user-cost`. The call: what
    /// `ub doctor --measure` finds in `make payoff`, where an instruction takes a nanosecond.
    fn default() -> Self {
        Self {
            translated: 1.10,
            linked: 1.6,
            fragment_instructions: 128.0,
            call_instructions: 428.0,
            measured: None,
        }
    }
}

impl RideCosts {
    /// What a ridden call costs that does nothing, in nanoseconds.
    pub(super) fn call_ns(&self, instruction_ns: f64) -> f64 {
        let estimate = || self.call_instructions * instruction_ns;
        self.measured.map_or_else(estimate, |measured| measured.ridden.null_call_ns)
    }

    /// Whether any gap can be faster ridden on this machine, as far as is known.
    pub(super) fn may_pay(&self) -> bool {
        self.measured.is_none_or(|measured| measured.is_gain())
    }

    /// What calls that do something pay for the crossing besides the switch.
    pub(super) fn refill(&self, estimate: Refill) -> Refill {
        self.measured.map_or(estimate, |measured| measured.refill())
    }

    pub(super) fn translated(&self) -> f64 {
        self.measured.map_or(self.translated, |measured| measured.translated())
    }

    /// What `user_ns` of a gap's own code take more when it is translated.
    pub(super) fn slower_ns(&self, user_ns: f64, instruction_ns: f64) -> f64 {
        let first = user_ns.min(self.fragment_instructions * instruction_ns);
        let translated = self.translated();
        let linked = self.linked.max(translated);
        first * (translated - 1.0) + (user_ns - first) * (linked - 1.0)
    }
}

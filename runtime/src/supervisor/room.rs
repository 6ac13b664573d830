//! Room for fragments, which the module may lack.

/// Backs off while the module has no room: after each refusal twice as many
/// reports are passed over before the next translation.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// In reports.
    pause: u32,
    left: u32,
}

impl Room {
    const LONGEST_PAUSE: u32 = 1024;

    /// The module had none.
    pub(super) fn exhausted(&mut self) {
        self.pause = (2 * self.pause).clamp(8, Self::LONGEST_PAUSE);
        self.left = self.pause;
    }

    /// Length of the current or last pause, in reports.
    pub(super) fn pause(&self) -> u32 {
        self.pause
    }

    /// Something was freed, or was installed after all.
    pub(super) fn appeared(&mut self) {
        *self = Self::default();
    }

    /// Whether to try for this report.
    pub(super) fn try_now(&mut self) -> bool {
        if self.left == 0 {
            return true;
        }
        self.left -= 1;
        false
    }
}

//! Installed fragments, for people.

use ub_translator::fragment::{Exit, ExitKind, Parts};

use super::Supervisor;
use crate::inspect::{ExitDump, FragmentDump};
use crate::kernel::{Btc, Kernel};

/// Most bytes of user code that go with one fragment, over all stretches.
const GUEST_BYTES: u64 = 64 << 10;

impl<K: Kernel, P> Supervisor<K, P> {
    /// The fragment of `btc` that stands for `address`, or else one that
    /// contains it; with the user's code as it is now.
    #[must_use]
    pub fn fragment(&self, btc: Btc, address: u64) -> Option<FragmentDump> {
        let parts = self.spaces.get(&btc)?.fragment(address)?;
        let mut left = GUEST_BYTES;
        let mut guest = Vec::new();
        for source in &parts.sources {
            let length = (source.end - source.start).min(left);
            left -= length;
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            // The code may have gone: then the translation alone is shown.
            let copied =
                self.kernel.read_code(btc, source.start, &mut bytes).map_or(0, |read| read.copied);
            bytes.truncate(copied);
            guest.push((source.start, bytes));
        }
        Some(FragmentDump {
            entry: parts.entry,
            code: parts.code.clone(),
            map: parts.map.clone(),
            exits: exits(parts),
            guest,
        })
    }

    /// The address spaces of the session, each with a process that has or had
    /// it where one is known.
    pub fn processes(&self) -> impl Iterator<Item = (Btc, Option<u32>)> + '_ {
        self.spaces.iter().map(|(btc, space)| (*btc, space.thread))
    }
}

fn exits(parts: &Parts) -> Vec<ExitDump> {
    parts.exits.iter().map(|exit| ExitDump { address: exit.user_ip, why: why(exit) }).collect()
}

fn why(exit: &Exit) -> String {
    match exit.kind {
        ExitKind::Syscall => "system call: the ride goes on behind it".to_owned(),
        ExitKind::Branch => "branch to code outside the fragment".to_owned(),
        ExitKind::Indirect => "indirect branch to a target that is not predicted".to_owned(),
        ExitKind::Unsupported => format!("instruction is not translated ({:?})", exit.reason),
        ExitKind::Fault => "the instruction faulted".to_owned(),
        ExitKind::Guard => "a run-time check refused the operand".to_owned(),
        ExitKind::Poll => "the kernel has other work".to_owned(),
    }
}

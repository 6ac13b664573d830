//! Runs a guest program natively and as a fragment, and compares.

use std::sync::atomic::Ordering;

use ub_ring3::state::ARITHMETIC_FLAGS;
use ub_ring3::{CpuState, GuestMemory, Loaded, NativeStop, Runner, run_native};
use ub_translator::fragment::ExitKind;
use ub_translator::verifier::{Features, Policy, verify};
use ub_translator::{CodeSource, CpuFeatures, Options, TranslateError, translate};

/// The guest's code area as a source.
pub struct Code<'a>(pub &'a GuestMemory);

impl CodeSource for Code<'_> {
    fn read_code(&mut self, address: u64, buf: &mut [u8]) -> usize {
        let bytes = self.0.read_code(address, buf.len());
        buf[..bytes.len()].copy_from_slice(&bytes);
        bytes.len()
    }
}

/// Everything that one comparison needs.
pub struct Oracle {
    pub memory: GuestMemory,
    runner: Runner,
}

/// What a comparison showed, beyond that both ways agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The first instruction is not translated.
    Useless,
    /// The last fragment was left so.
    Left(ExitKind),
}

impl Oracle {
    pub fn new() -> Self {
        Self {
            memory: GuestMemory::new().expect("guest memory can be mapped"),
            runner: Runner::new().expect("the runner can be set up"),
        }
    }

    /// Options for this machine.
    pub fn options() -> Options {
        Options::new(CpuFeatures::host())
    }

    /// Compares the program at the start of the code area, from `state` to
    /// its `int3` or fault: all native, against up to `fragments` fragments
    /// and then native from wherever the last was left. `pending` sets the
    /// words that polls look at. Err describes a difference.
    pub fn compare(
        &mut self,
        state: &CpuState,
        options: &Options,
        fragments: usize,
        pending: bool,
    ) -> Result<Outcome, String> {
        let entry = self.memory.code();
        let before = self.memory.snapshot();
        let mut native = state.clone();
        // SAFETY: test programs make no system calls and end; the addresses
        // they compute lie in the guest or, being random, in no mapping.
        let native_stop =
            unsafe { run_native(entry, &mut native) }.map_err(|error| error.to_string())?;
        let native_memory = self.memory.snapshot();
        self.memory.restore(&before);

        let words = self.runner.poll_words();
        words.clear();
        if pending {
            words.softirq.store(1, Ordering::SeqCst);
        }
        let mut ours = state.clone();
        let mut left = Outcome::Useless;
        let mut at = entry;
        for _ in 0..fragments {
            let Some(loaded) = self.load(at, options)? else { break };
            // SAFETY: the fragment is verified; for the addresses as above.
            let entered = unsafe { self.runner.enter(&loaded, &mut ours) }
                .map_err(|error| error.to_string())?;
            words.clear();
            left = Outcome::Left(entered.exit.kind);
            at = entered.next_ip();
            let goes_on =
                matches!(entered.exit.kind, ExitKind::Branch | ExitKind::Indirect | ExitKind::Poll);
            if !goes_on {
                break;
            }
        }
        // SAFETY: as above.
        let stop = unsafe { run_native(at, &mut ours) }.map_err(|error| error.to_string())?;
        let our_memory = self.memory.snapshot();
        self.memory.restore(&before);

        // Flags that are dead where the program faults may differ: there
        // nothing will read them. At the final trap all of them count.
        let flags = match native_stop {
            NativeStop::Trap(_) => ARITHMETIC_FLAGS,
            NativeStop::Signal(_) => 0,
        };
        let mut differences = native.differences(&ours, flags);
        if let Some(difference) = native_memory.first_difference(&our_memory) {
            differences.push(format!("memory: {difference:?}"));
        }
        if !same_stop(&native_stop, &stop) {
            differences.push(format!("stop: {native_stop:x?} != {stop:x?}"));
        }
        if differences.is_empty() {
            Ok(left)
        } else {
            Err(format!("left by {left:?} at {at:#x}; native != fragment: {differences:#?}"))
        }
    }
}

impl Oracle {
    /// The verified fragment for `entry`; none if it would be useless.
    fn load(&self, entry: u64, options: &Options) -> Result<Option<Loaded>, String> {
        let fragment = match translate(entry, &mut Code(&self.memory), options) {
            Ok(fragment) => fragment,
            Err(TranslateError::Useless { .. }) => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let policy = Policy::new(Features::host());
        let fragment = verify(fragment, &policy).map_err(|error| error.to_string())?;
        Loaded::new(&fragment).map(Some).map_err(|error| error.to_string())
    }
}

fn same_stop(a: &NativeStop, b: &NativeStop) -> bool {
    match (a, b) {
        (NativeStop::Trap(a), NativeStop::Trap(b)) => a == b,
        (NativeStop::Signal(a), NativeStop::Signal(b)) => {
            (a.signo, a.ip, a.code, a.address) == (b.signo, b.ip, b.code, b.address)
        }
        _ => false,
    }
}
